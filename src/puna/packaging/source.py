"""The user's project folder: checked before anything is built, and kept as an immutable snapshot of what belongs to it.

.punaignore and .gitignore are read as git reads them: pathspec knows git's grammar, and RE2 tries the patterns in time
linear in the path, since strangers write them.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import re2
from pathspec import PathSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from puna.artifacts import Source, drafting
from puna.config import project, runtime, schema
from puna.config.project import Project
from puna.errors import ProjectError
from puna.home import Home
from puna.packaging import archive
from puna.packaging.archive import MAX_BYTES, MAX_FILES
from puna.process.locks import HeldError, locked

ALWAYS = (
    ".git/",
    ".hg/",
    ".svn/",
    "__pycache__/",
    "*.pyc",
    ".venv/",
    "venv/",
    "node_modules/",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".ipynb_checkpoints/",
    ".DS_Store",
    ".gitignore",
    ".punaignore",
)
FILES = (".gitignore", ".punaignore")
MAX_FILE_BYTES, MAX_RULES, MAX_RULE_CHARACTERS = 64 * 1024, 1000, 255
MAX_MATCHING_S = 20.0
"""All rules are tried on each path of a project; hostile ones are linear too, and still slow together."""

PROBE = "puna\x01probe"
"""The last rule, and no file's name: RE2 says "no match" of rules that exceed its memory."""


class Ignore:
    """Patterns in order; the last one that matches decides."""

    def __init__(self, spec: PathSpec[GitIgnoreSpecPattern]) -> None:
        self._spec = spec
        self._spent_s = 0.0

    @classmethod
    def of(cls, folder: Path) -> Ignore:
        """The rules for `folder`: the fixed ones, then .gitignore, then .punaignore, which may take back with `!`.

        Raises:
            ProjectError: there are too many, or one is too long.
        """
        lines = list(ALWAYS)
        for name in FILES:
            if (folder / name).is_file():
                with (folder / name).open(encoding="utf-8", errors="replace") as file:
                    text = file.read(MAX_FILE_BYTES + 1)
                found = text.splitlines()
                if len(text) > MAX_FILE_BYTES or len(found) > MAX_RULES:
                    limits = f"at most {MAX_RULES} lines and {MAX_FILE_BYTES >> 10} KiB"
                    raise ProjectError(f"{name} is too long", limits)
                for number, line in enumerate(found, 1):
                    if len(line) > MAX_RULE_CHARACTERS and not line.startswith("#"):
                        raise ProjectError(
                            f"{name}: line {number} has {len(line)} characters", f"at most {MAX_RULE_CHARACTERS}"
                        )
                lines += found
        return cls.parse(lines)

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Ignore:
        """Rules from pattern lines; comments, empty lines and what git takes for no pattern are skipped.

        Raises:
            ProjectError: RE2 cannot hold them.
        """
        # `data/**` is what lies in data, not data itself: pathspec would leave the folder with what `!` keeps in it.
        rules = [line + "/*" if line.endswith("/**") else line for line in lines]
        try:
            spec = PathSpec.from_lines(_pattern, [*rules, PROBE], backend="re2")
        except re2.error:
            spec = None
        if spec is None or not spec.match_file(PROBE):
            raise ProjectError("the ignore lists are too complicated", "use fewer and simpler patterns") from None
        return cls(spec)

    def covers(self, path: str, is_folder: bool) -> bool:
        """True when `path`, relative with `/`, stays behind.

        Raises:
            ProjectError: all paths together have taken too long.
        """
        began = time.monotonic()
        text = path.encode(errors="replace").decode()  # a name that is no UTF-8 has surrogates
        ignored = bool(self._spec.match_file(text + "/" if is_folder else text))
        self._spent_s += time.monotonic() - began
        if self._spent_s > MAX_MATCHING_S:
            raise ProjectError("the ignore lists take too long to try", "use fewer and simpler patterns")
        return ignored


def _pattern(line: str) -> GitIgnoreSpecPattern:
    """A rule that speaks of what it names alone: nobody asks for what lies below a folder that stays behind."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # `[[]`: Python may read it otherwise one day; RE2 does not
            found = GitIgnoreSpecPattern(line)
            if found.regex is None:
                return found
            text = found.regex.pattern.replace("(?:(?P<ps_d>/)|$)", "/?$").replace("(?P<ps_d>/)", "/$")
            # `v[!0-9]` is no folder `v/`: in git a class takes no slash, in pathspec it does.
            return GitIgnoreSpecPattern(re.compile(text.replace("[^", "[^/")), found.include)
    except (ValueError, re.error):
        return GitIgnoreSpecPattern("")  # git: an invalid pattern never matches


CLASS = "InferlessPythonModel"
LOCK = ".sources.lock"
MAX_CODE_BYTES = 2 << 20
"""Of one file that is parsed here: its tree takes a hundred times as much."""


def check(folder: Path) -> Project:
    """Look for what would fail later: app.py and its class, the schema, the runtime file; nothing is executed.

    Returns the settings of the project, which were read on the way.

    Raises:
        ProjectError: what is wrong in the folder, with the line.
        SchemaError: input_schema.py is wrong.
        RuntimeSpecError: the runtime file is wrong.
    """
    app = folder / "app.py"
    if not app.is_file():
        raise ProjectError(f"{folder} has no app.py", f"write one, or: puna init MODEL {folder}")
    if (folder / "model.py").exists():
        raise ProjectError(
            "model.py is not allowed beside app.py: the platform makes a file of that name", "rename model.py"
        )
    _check_app(parse(app))
    schema.read_literal(folder / "input_schema.py")
    settings = project.load(folder)
    if settings.runtime_file:
        runtime.load(folder / settings.runtime_file)
    return settings


def parse(path: Path) -> ast.Module:
    """The syntax tree of a Python file; nothing is executed.

    Raises:
        ProjectError: it is not Python, with the line.
    """
    if path.stat().st_size > MAX_CODE_BYTES:
        raise ProjectError(f"{path.name} is over {MAX_CODE_BYTES >> 20} MiB", "keep data in files of its own")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user's `"\d"` is theirs to see when the app runs
            return ast.parse(path.read_bytes(), path.name)
    except (RecursionError, MemoryError):
        raise ProjectError(f"{path.name} is nested too deeply", f"correct {path.name}") from None
    except SyntaxError as error:
        text = f": `{error.text.strip()}`" if error.text else ""
        raise ProjectError(f"{path.name} line {error.lineno}: {error.msg}{text}", f"correct {path.name}") from None
    except ValueError as error:
        raise ProjectError(f"{path.name} is not Python: {error}") from None


def _check_app(tree: ast.Module) -> None:
    found: ast.stmt | None = None
    nearly: list[ast.ClassDef] = []
    for node in _top_level(tree.body):
        if isinstance(node, ast.ClassDef):
            found = node if node.name == CLASS else found
            nearly += [node] if node.name.lower().startswith("inferless") else []
        elif isinstance(node, ast.ImportFrom | ast.Assign) and CLASS in _bound(node):
            found = node
    if found is None:
        where = f"; line {nearly[0].lineno} has class {nearly[0].name}" if nearly else ""
        raise ProjectError(f"app.py has no class {CLASS}{where}", f"name the class {CLASS}, exactly")
    if not isinstance(found, ast.ClassDef) or any(ast.unparse(base) != "object" for base in found.bases):
        return  # the methods are elsewhere; validation will see
    methods = {node.name: node for node in found.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assigned = {name for node in found.body if isinstance(node, ast.Assign) for name in _bound(node)}
    if "infer" not in methods and "infer" not in assigned:
        raise ProjectError(
            f"app.py line {found.lineno}: class {CLASS} has no method infer", "add `def infer(self, inputs):`"
        )
    if "infer" in methods:
        arguments = methods["infer"].args
        if len(arguments.posonlyargs + arguments.args) < 2 and arguments.vararg is None:
            raise ProjectError(
                f"app.py line {methods['infer'].lineno}: infer takes no inputs", "write `def infer(self, inputs):`"
            )


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import, those under `if`, `try` and `with` too."""
    for node in body:
        yield node
        for name in ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _top_level(getattr(node, name, []))


def _bound(node: ast.ImportFrom | ast.Assign) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def check_links(folder: Path) -> None:
    """Every link below `folder`, whatever the ignore list says, must stay in it.

    Raises:
        ProjectError: one leads out of it, or nowhere.
    """
    root = folder.resolve()
    for above, folders, files in os.walk(root):
        for path in (Path(above, name) for name in (*folders, *files)):
            if path.is_symlink():
                _target(path, path.relative_to(root).as_posix(), root)


def _target(link: Path, name: str, root: Path) -> Path:
    try:
        target = link.resolve()
        inside = target.is_relative_to(root) and target.exists()
    except (OSError, RuntimeError):  # a link to itself
        target, inside = link, False
    if not inside:
        raise ProjectError(
            f"{name} is a link to {target}, which is not in the project", "copy the file into the project"
        )
    return target


def listing(folder: Path, *, limit_bytes: int = MAX_BYTES, limit_files: int = MAX_FILES) -> list[tuple[str, Path]]:
    """`(relative name, file)` of everything that belongs to the project, sorted.

    Raises:
        ProjectError: a link leaves the folder, or the project is too large.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise ProjectError(f"{folder} is no folder", "name the folder that holds app.py")
    found, total = [], 0
    for name, file in _walk((root,), "", Ignore.of(root)):
        total += file.stat().st_size
        if total > limit_bytes:
            raise archive.too_large(limit_bytes)
        found.append((name, file))
        if len(found) > limit_files:
            raise archive.too_many(limit_files)
    return sorted(found)


def _walk(around: tuple[Path, ...], prefix: str, ignore: Ignore) -> Iterator[tuple[str, Path]]:
    """Files below `around[-1]`; `around` are the real folders from the root down to it."""
    for path in sorted(around[-1].iterdir()):
        name = prefix + path.name
        if ignore.covers(name, path.is_dir()):
            continue
        target = path
        if path.is_symlink():
            target = _target(path, name, around[0])
            if any(folder.is_relative_to(target) for folder in around):
                raise ProjectError(f"{name} is a link to a folder around it", "remove the link")
        if target.is_dir():
            yield from _walk((*around, target), name + "/", ignore)
        elif target.is_file():  # sockets and pipes stay behind
            yield name, target


def snapshot(folder: Path, home: Home) -> Source:
    """A copy of the project under `home.sources`, named by its digest; an equal one is not made twice.

    Raises:
        ProjectError: as `listing`.
        MachineError: the disk is full.
    """
    files = listing(folder)
    if not files:
        raise ProjectError(f"{folder} holds no files", "name the folder that holds app.py")
    with using(home):
        with drafting("source", home.sources) as draft:
            for name, file in files:
                target = draft.path / "files" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
                target.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)
        found = Source.open(draft.final)
        os.utime(found.path)  # one that was there already counts as new: it may be deployed in a moment
    return found


@contextlib.contextmanager
def using(home: Home) -> Iterator[None]:
    """While snapshots are written or marked as used, none is removed."""
    with locked(home.sources / LOCK, shared=True):
        yield


@contextlib.contextmanager
def removing(home: Home) -> Iterator[bool]:
    """While snapshots are removed, nobody is `using` them; False, and nothing may be removed, where somebody is."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(home.sources / LOCK, timeout_s=0))
        except HeldError:
            yield False
        else:
            yield True


def pack(folder: Path) -> bytes:
    """The project as tar.gz; the same files give the same bytes.

    Raises:
        ProjectError: as `listing`.
    """
    return archive.write(listing(folder))


def unpack(data: bytes, home: Home) -> Source:
    """The snapshot of a project that was sent as tar.gz.

    Raises:
        ProjectError: the archive is damaged, too large or hostile.
    """
    with tempfile.TemporaryDirectory(dir=home.sources, prefix=f".draft-{os.getpid()}-unpack-") as temporary:
        archive.extract(data, Path(temporary))
        return snapshot(Path(temporary), home)
