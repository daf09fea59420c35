"""Nothing stands in the product whose name nothing in it reads: no function, method, constant, field or key of a file.

By name only: what shares its name with something that is read goes unseen.
"""

from __future__ import annotations

import ast
import collections
import re
from collections.abc import Iterator
from pathlib import Path

import puna

ROOT = Path(puna.__file__).parent
BESIDE = [ROOT.parents[1] / folder for folder in ("scripts", "bench")]
FOR_USERS = {"client"}
"""The client's methods are for programs; a test of its own calls each."""
OTHERS_CALL = re.compile(
    r"__\w+__|_[se]_[A-Z]\w+|data_received|message_event|get_renderables|display|_unset_keepalive_if_required"
    r"|create_module|isolation_level|argtypes|reconfigure"
)
"""What a library asks for by name, and readers of syntax trees, which are found by their nodes' names."""
HARMLESS = {"dataclass", "property", "staticmethod", "classmethod", "contextmanager", "asynccontextmanager"}
HARMLESS |= {"cache", "cached_property", "lru_cache", "abstractmethod", "overload"}
"""Decorators that do not register what they stand over."""
REASONS = {
    "build_next": "one build to its end, for tests",
    "FRESH": "one of the words of the table that it stands in",
    "per_device_eval_batch_size": "the tutorial's recipe has it",
    "bnb_4bit_quant_type": "its one value is checked when the file is read",
    "base_image": "read, and told to be without effect",
    "modified": "a key of JSON, by asdict",
    "logits_max_diff": "the same",
    "embedding_and_head": "the same",
}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for folder in (ROOT, *BESIDE):
        for path in sorted(folder.rglob("*.py")):
            yield path, ast.parse(path.read_text())


def is_registered(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """A decorator that is none of the harmless ones hands it to somebody."""
    words = (ast.unparse(one).partition("(")[0].rpartition(".")[2] for one in node.decorator_list)
    return any(word not in HARMLESS for word in words)


def is_shown(node: ast.ClassDef) -> bool:
    """Its fields are keys of JSON: answered by the API, or written into a file by `asdict`."""
    return any(ast.unparse(base).rpartition(".")[2] in {"BaseModel", "TypedDict"} for base in node.bases)


def defined(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not is_registered(node):
            yield node.name, node.lineno
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name | ast.Attribute):
                    yield target.id if isinstance(target, ast.Name) else target.attr, node.lineno
        if isinstance(node, ast.ClassDef) and not is_shown(node):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.target.id, field.lineno


def read(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 80:
            yield from re.findall(r"[A-Za-z_]\w*", node.value)  # entry points, getattr, keys of JSON


def test_whatever_is_defined_is_read() -> None:
    uses: collections.Counter[str] = collections.Counter()
    found: dict[str, list[str]] = collections.defaultdict(list)
    for path, tree in trees():
        uses.update(read(tree))
        if path.is_relative_to(ROOT) and not FOR_USERS & set(path.relative_to(ROOT).parts):
            for name, line in defined(tree):
                found[name].append(f"{path.relative_to(ROOT)}:{line}")
    dead = [f"{', '.join(where)} {name}" for name, where in found.items() if not uses[name] and name not in REASONS]
    dead = [line for line in dead if not OTHERS_CALL.fullmatch(line.rpartition(" ")[2])]
    assert not dead, "read by nobody:\n" + "\n".join(dead)
    assert set(REASONS) <= set(found), "no longer there: forget it here too"


def test_every_key_of_a_recipe_and_of_a_project_is_read_somewhere() -> None:
    """Keys are words in other places too, in tables of what must be over 0: there nobody reads them."""
    loads = {
        node.attr
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    unread, seen = [], 0
    for path, tree in trees():
        if path.name not in ("recipe.py", "project.py"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and re.fullmatch(r"\w*Recipe|Project", node.name):
                names = [one.target.id for one in node.body if isinstance(one, ast.AnnAssign)]  # type: ignore[union-attr]
                unread += [f"{node.name}.{name}" for name in names if name not in loads | set(REASONS)]
                seen += len(names)
    assert seen > 60 and unread == []
