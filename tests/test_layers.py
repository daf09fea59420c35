"""The layer table of the design, enforced: imports go down it, never up, never in a circle, lazy ones included."""

import ast
import functools
import sys
from pathlib import Path

from parsed import SRC, nodes

ROOT = SRC / "puna"

# A module may import from rows above its own, and from its own room. Rooms in one row are strangers.
LAYERS: list[set[str]] = [
    {"errors", "process"},
    {"front", "home", "names", "progress"},
    {"artifacts"},
    {"config", "instance", "tokens"},
    {"demo", "console"},
    {"data", "merge", "packaging", "publish", "train"},
    {"backends"},
    {"control"},
    {"serve"},
    {"control_plane"},
    {"client", "supervisor"},
    {"pipeline", "server"},
    {"cli"},
]
# The rooms of the control plane, by the same rule.
CONTROL: list[set[str]] = [
    {"domain"},
    {"store", "wire"},
    {"resources", "telemetry"},
    {"operations", "reconcile"},
    {"builds"},
    {"api"},
]
GATEWAYS_KNOW = {"domain", "wire"}
"""What `serve` may know of the control plane."""
GO_ALONG = {"puna.process.renewal", "puna.process.tree"}
"""What lies beside the worker in its folder: it, too, runs in the app's environment."""
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@functools.cache
def imports(path: Path) -> list[str]:
    """Every module imported in the file, wherever the import stands."""
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the module in full"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
            found.append(node.module or "")
    return found


@functools.cache
def edges() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        named = {name for name in imports(path) if name in MODULES and name != module}
        # `from puna.config import recipe` names the room too; the room's own __init__ is empty of imports.
        graph[module] = {n for n in named if not (n != "puna" and any(o.startswith(n + ".") for o in named))}
        graph[module] -= {"puna"}
    return graph


def test_every_room_stands_in_the_layer_table() -> None:
    rooms = {room(m) for m in MODULES} - {"", "worker", "__main__"}
    assert rooms <= set(LEVEL), f"give {rooms - set(LEVEL)} a row in LAYERS"


def broken(module: str, other: str) -> str:
    """Say which rule an import breaks, if it breaks one."""
    mine, theirs = room(module), room(other)
    if mine == "worker":
        return "" if theirs == "worker" or other in GO_ALONG else f"{module} imports {other}: the worker is an island"
    if theirs == "worker":
        is_allowed = other == "puna.worker.protocol"
        return "" if is_allowed else f"{module} imports {other}: only worker.protocol may be"
    if mine == "serve" and theirs == "control" and ".".join(other.split(".")[2:3]) not in GATEWAYS_KNOW:
        return f"{module} imports {other}: gateways know control.{' and control.'.join(sorted(GATEWAYS_KNOW))} only"
    is_up = mine in LEVEL and theirs in LEVEL and mine != theirs and LEVEL[theirs] >= LEVEL[mine]
    return f"{module} imports {other}, which is not below it" if is_up else ""


def test_imports_go_down_the_table() -> None:
    every = [broken(module, other) for module, others in edges().items() for other in sorted(others)]
    offenders = [message for message in every if message]
    assert not offenders, "\n".join(offenders)


def test_rooms_of_the_control_plane_use_those_below_them() -> None:
    levels = {room: level for level, rooms in enumerate(CONTROL) for room in rooms}
    offenders = []
    for module in sorted(m for m in MODULES if m.startswith("puna.control.")):
        mine = module.split(".")[2]
        for other in sorted(o for o in edges()[module] if o.startswith("puna.control.")):
            theirs = other.split(".")[2]
            if mine != theirs and levels[theirs] >= levels[mine]:
                offenders.append(f"{module} imports {other}, which is not below it")
    assert not offenders, "\n".join(offenders)


def test_the_worker_needs_the_standard_library_only() -> None:
    offenders = [f"{module} imports {other}" for module in sorted(GO_ALONG) for other in edges()[module]]
    for module in sorted({m for m in MODULES if room(m) == "worker"} | GO_ALONG):
        tops = {(name, name.split(".")[0]) for name in imports(MODULES[module])}
        wrong = [name for name, top in tops if top != "puna" and top not in sys.stdlib_module_names]
        offenders += [f"{module} imports {name}" for name in wrong]
    assert not offenders, "\n".join(offenders)


def test_no_import_runs_in_a_circle() -> None:
    seen: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join((*path, module))}"
        if module not in seen:
            seen.add(module)
            for other in edges()[module]:
                visit(other, (*path, module))

    for module in MODULES:
        visit(module, ())
