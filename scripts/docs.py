"""Writes the generated parts of README and docs: the tree, the recipe's keys, the states, the command list."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "puna"
# Settings that the file has at its top, and the option of `puna deploy` for one of their values.
TOP_LEVEL = {"env": "--env", "secrets": "--secret", "volumes": "--volume"}


def sentence(path: Path) -> str:
    """The first line of a module's docstring, without its full stop."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].rstrip(".:")


def rooms() -> str:
    """The source tree, one sentence a room."""
    return tree(deep=False)


def tree(deep: bool = True) -> str:
    """The source tree, one sentence a module."""
    lines = ["src/puna/"]
    top = [p for p in sorted(SRC.glob("*.py")) if p.name not in ("__init__.py", "__main__.py")]
    lines += [f"  {p.name:<18}{sentence(p)}" for p in top]
    for folder in packages(SRC):
        lines += branch(folder, "  ", deep)
    return "```\n" + "\n".join(lines) + "\n```"


def packages(folder: Path) -> list[Path]:
    """The packages right inside a folder."""
    return sorted(p for p in folder.iterdir() if (p / "__init__.py").exists())


def branch(folder: Path, indent: str, deep: bool) -> list[str]:
    """One package, and with `deep` what is in it."""
    lines = [f"{indent}{folder.name + '/':<18}{sentence(folder / '__init__.py')}"]
    if deep:
        modules = [p for p in sorted(folder.glob("*.py")) if p.name != "__init__.py"]
        lines += [f"{indent}  {p.name:<22}{sentence(p)}" for p in modules]
        for inner in packages(folder):
            lines += branch(inner, indent + "  ", deep)
    return lines


def attribute_docs(cls: type) -> dict[str, str]:
    """The string under each attribute of a class."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for this, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(this, ast.AnnAssign) and isinstance(this.target, ast.Name) and isinstance(following, ast.Expr):
            if isinstance(following.value, ast.Constant) and isinstance(following.value.value, str):
                found[this.target.id] = " ".join(following.value.value.split())
    return found


def recipe_keys() -> str:
    """Every key of a recipe, with its default."""
    from puna.config.recipe import Recipe

    rows = ["| key | default | meaning |", "|---|---|---|"]

    def walk(cls: type, prefix: str) -> Iterator[str]:
        hints, docs = typing.get_type_hints(cls), attribute_docs(cls)
        for field in dataclasses.fields(cls):
            if dataclasses.is_dataclass(hints[field.name]):
                yield from walk(hints[field.name], f"{prefix}{field.name}.")  # type: ignore[arg-type]
                continue
            default = "required" if field.default is dataclasses.MISSING else f"`{_yaml(field.default)}`"
            yield f"| `{prefix}{field.name}` | {default} | {docs.get(field.name, '').replace('|', '/')} |"

    return "\n".join(rows + list(walk(Recipe, "")))


def settings() -> str:
    """Every setting of an endpoint, with its spellings, range and default."""
    from puna.config.settings import RANGES, Settings, setting

    rows = ["| setting | in inferless.yaml | option | range | default | meaning |", "|---|---|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        said = setting(name)
        file = f"`configuration.{said.file}`" if said.file else f"`{name}`" if name in TOP_LEVEL else ""
        option = ", ".join(f"`{word}`" for word in (said.option or TOP_LEVEL.get(name, "")).split())
        default = field.get_default(call_default_factory=True)
        shown = f"{default:g}" if name in RANGES else _yaml(default) if isinstance(default, bool) else ""
        meaning = " ".join((field.description or "").split())
        rows.append(f"| `{name}` | {file} | {option} | {RANGES.get(name, '')} | {shown} | {meaning} |")
    return "\n".join(rows)


def _yaml(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)


def commands() -> str:
    """Every command with its line of help."""
    from puna.cli.main import TABLE

    lines = []
    for group, entries in TABLE.items():
        lines += [f"\n**{group}**\n"] + [f"- `puna {name}`: {command.help}" for name, command in entries.items()]
    return "\n".join(lines).strip()


def states() -> str:
    """The state tables of deploy, as diagrams."""
    from puna.control.domain.states import TABLES, diagram

    return "\n".join(f"### {name}\n\n{diagram(name)}" for name in TABLES).rstrip()


def errors() -> str:
    """The error tree."""
    from puna import errors as module

    return "```\n" + (module.__doc__ or "").split("\n\n", 1)[1].strip() + "\n```"


def parameters() -> str:
    """What becomes of each parameter of OpenAI's paths."""
    from puna.worker.openai import parameters as module

    return module.as_markdown()


PARTS: dict[tuple[str, str], Callable[[], str]] = {
    ("README.md", "rooms"): rooms,
    ("docs/00-overview.md", "tree"): tree,
    ("docs/00-overview.md", "commands"): commands,
    ("docs/00-overview.md", "errors"): errors,
    ("docs/02-train.md", "recipe"): recipe_keys,
    ("docs/06-deploy.md", "states"): states,
    ("docs/06-deploy.md", "settings"): settings,
    ("docs/07-serve.md", "parameters"): parameters,
}


def rendered(name: str) -> str:
    """A file's text with its generated parts made anew."""
    text = (ROOT / name).read_text()
    for (file, part), make in PARTS.items():
        if file == name:
            pattern = rf"(<!-- {part}: generated[^>]*-->\n).*?(<!-- /{part} -->)"
            text, count = re.subn(pattern, lambda m, make=make: m[1] + make() + "\n" + m[2], text, flags=re.DOTALL)  # type: ignore[misc]
            assert count == 1, f"{name} has no `<!-- {part}: generated -->` part"
    return text


def main() -> int:
    """Write every file anew."""
    for name in dict.fromkeys(file for file, _ in PARTS):
        (ROOT / name).write_text(rendered(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
