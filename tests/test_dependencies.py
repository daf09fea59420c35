"""The dependencies of pyproject.toml: each with bounds, its newest tested release pinned, and no stranger imported."""

import ast
import re
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from parsed import ROOT, nodes, product, said

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAMED = [
    Requirement(text) for text in (*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts))
]
BOUNDED = [each for each in NAMED if each.name != "puna"]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
BY_PRIVATE_NAMES = {"uvicorn", "prometheus-client", "typer"}
"""Puna uses classes of these that their authors may change without a word: bounded by the next minor release."""
IMPORTED_AS = {"yaml": "pyyaml", "pynvml": "nvidia-ml-py"}
BROUGHT_ALONG = {
    **dict.fromkeys(("pydantic", "starlette", "anyio", "annotated_types"), "fastapi"),
    **dict.fromkeys(("pydantic_core", "typing_extensions"), "pydantic"),
    **dict.fromkeys(("uvloop", "httptools", "h11"), "uvicorn"),
    **dict.fromkeys(("numpy", "tokenizers"), "transformers"),
    **{"pyarrow": "datasets", "re2": "pathspec"},
}
"""Modules of packages without a bound of their own: whoever brings one has it."""

ONLY_WHERE_INSTALLED = {"ray", "vllm", "flash_attn", "tensorboard", "wandb", "mlflow", "xgrammar", "peft", "triton"}


def test_every_dependency_has_a_lowest_and_an_uppermost_release() -> None:
    offenders = []
    for each in BOUNDED:
        operators = sorted(bound.operator for bound in each.specifier)
        if operators != ["<", ">="]:
            offenders.append(f"{each}: one >= and one <")
    assert not offenders, "\n".join(offenders)


def test_the_newest_tested_release_lies_within_the_bounds() -> None:
    offenders = []
    for each in BOUNDED:
        pinned = PINNED.get(canonicalize_name(each.name))
        if pinned is None or not each.specifier.contains(pinned):
            offenders.append(f"{each}: constraints.txt has {pinned}")
    assert not offenders, "\n".join(offenders)


def test_what_is_used_by_private_names_is_bounded_by_its_next_minor_release() -> None:
    offenders = []
    for each in BOUNDED:
        if each.name in BY_PRIVATE_NAMES:
            upper = next(Version(bound.version) for bound in each.specifier if bound.operator == "<")
            tested = Version(PINNED[each.name])
            if upper.release != (tested.major, tested.minor + 1):
                offenders.append(f"{each}: tested is {tested}")
    assert not offenders, "\n".join(offenders)


def test_the_product_imports_what_it_names_and_no_more() -> None:
    named = {canonicalize_name(each.name) for each in BOUNDED}
    known = set(sys.stdlib_module_names) | {"puna"} | ONLY_WHERE_INSTALLED
    offenders = []
    for path in product():
        for node in nodes(path):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                modules = [node.module]
            else:
                continue
            for module in {re.split(r"\W", module)[0] for module in modules} - known:
                if canonicalize_name(IMPORTED_AS.get(module) or BROUGHT_ALONG.get(module) or module) not in named:
                    offenders.append(f"{said(path)}:{node.lineno}: {module}")
    assert not offenders, "\n".join(offenders)
