"""Changes the product's behaviour in small ways, one at a time, and says which changes no test sees: `make mutate`."""

from __future__ import annotations

import argparse
import ast
import hashlib
import itertools
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mutate_tree import ROOT, Stopped, Tree, workspace
from mutations import Mutant, candidates, is_python

J = TypeVar("J")
SOURCE = ROOT / "src" / "puna"
CACHE = ROOT / ".coverage-mutate"
ACCEPTED = ROOT / "scripts" / "mutants.toml"
NOT_QUICK = "not process and not engine and not gpu"
FILES_A_MAP = 6  # test files measured by one pytest: its start is paid once, and one that fails spoils few
SLOWER = 10.0  # a test that takes so many times its own time, and GRACE_S, hangs
GRACE_S = 60.0
OWN_S = 120.0
LOCK = threading.Lock()  # of what the workers write to: the coverage, the results, the terminal
KILLED, TIMEOUT, SURVIVED, UNSEEN, ACCEPTED_AS = "killed", "timeout", "survived", "not covered", "accepted"


@dataclass
class Result:
    """What became of a mutant."""

    mutant: Mutant
    outcome: str
    by: str = ""
    """The first test that failed, or why it was accepted."""
    tests: int = 0
    seconds: float = 0.0
    diff: str = ""


@dataclass
class Coverage:
    """Which quick tests enter which function, and how long each takes."""

    seconds: dict[str, float] = field(default_factory=dict)
    covered: dict[str, dict[str, set[str]]] = field(default_factory=dict)

    def add(self, measured: dict[str, Any]) -> None:
        """Take over what one pytest measured; tests that fail on the tree as it is say nothing about a mutant."""
        failed = set(measured["failed"])
        self.seconds |= {test: s for test, s in measured["seconds"].items() if test not in failed}
        for path, functions in measured["covered"].items():
            for function, tests in functions.items():
                self.covered.setdefault(path, {}).setdefault(function, set()).update(set(tests) - failed)

    def tests(self, mutant: Mutant) -> list[str]:
        """Those that enter its function, or for what runs at import any of its module's; fastest first."""
        functions = self.covered.get(mutant.path.removeprefix("src/puna/"), {})
        is_function = mutant.function in functions
        some = functions[mutant.function] if is_function else set().union(*functions.values())
        return sorted(some, key=lambda test: (self.seconds[test], test))


class Imports:
    """Who imports whom, read from the text of the sources and the tests."""

    def __init__(self) -> None:
        self.files = {_module(path): path for root in (SOURCE, ROOT / "tests") for path in root.rglob("*.py")}
        self.direct = {path: self._of(path) for path in self.files.values()}

    def _of(self, path: Path) -> set[Path]:
        found = set()
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {self.files[name] for name in names if name in self.files}
        # pytest imports the conftests of a test's folders by itself.
        return found | {file for folder in path.parents if (file := folder / "conftest.py") in self.files.values()}

    def closure(self, path: Path) -> set[Path]:
        """It and all that it imports, however far."""
        found, todo = set(), [path]
        while todo:
            one = todo.pop()
            if one not in found:
                found.add(one)
                todo.extend(self.direct.get(one, ()))
        return found

    def near(self, test: Path) -> set[Path]:
        """The modules that a test file is about: what it imports, and what is in its own package."""
        package = SOURCE / test.relative_to(ROOT / "tests").parts[0]
        return self.direct[test] | {path for path in self.closure(test) if path.is_relative_to(package)}


def _module(path: Path) -> str:
    base = ROOT / "src" if path.is_relative_to(ROOT / "src") else ROOT / "tests"
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


# ---- what to mutate ----------------------------------------------------------------------------------------------


def sources(args: argparse.Namespace) -> list[Path]:
    """The modules that were asked for.

    Raises:
        SystemExit: there is none of that name.
    """
    if args.changed:
        words = ["git", "diff", "--name-only", "--diff-filter=d", "--merge-base", args.changed, "--", "src/puna"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"mutate: git knows no {args.changed}: {done.stderr.strip()}")
        return [ROOT / name for name in done.stdout.split() if name.endswith(".py")]
    found = []
    for name in args.modules or ["puna"]:
        path = ROOT / "src" / Path(*name.split("."))
        some = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else sorted(path.rglob("*.py"))
        if not some:
            sys.exit(f"mutate: there is no module {name} (write it like puna.serve.limits, or a package: puna.serve)")
        found += some
    return found


def drawn(args: argparse.Namespace, paths: Iterable[Path]) -> list[Mutant]:
    """The sample: of all mutants of these modules, or of those whose name has the words of `--only`.

    As it was drawn: what an interrupted run has tried is a smaller sample.
    """
    texts = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in paths}
    every = [m for path, text in texts.items() for m in candidates(path, text) if args.only in m.name]
    if args.again:
        results = json.loads(args.again.read_text())
        lost = {(r["mutant"]["function"], _changed(r["diff"])) for r in results if r["outcome"] in (SURVIVED, UNSEEN)}
        found = [m for m in every if (m.function, _changed(m.diff(texts[m.path]))) in lost]
        return [m for m in found if is_python(m, texts[m.path])]
    random.Random(args.seed).shuffle(every)
    # To compile each of tens of thousands takes minutes: only as many as are wanted.
    return list(itertools.islice((m for m in every if is_python(m, texts[m.path])), args.sample))


def accepted() -> dict[tuple[str, str, str], str]:
    """Mutants that need no test, and why: module, the change of its line."""
    entries = tomllib.loads(ACCEPTED.read_text()).get("mutant", [])
    return {(e["path"], e["before"], e["after"]): e["why"] for e in entries}


def changed_line(mutant: Mutant, source: bytes) -> tuple[str, str, str]:
    """Its module and its first changed line before and after, without indents: what `mutants.toml` names it by."""
    return mutant.path, *_changed(mutant.diff(source))


def _changed(diff: str) -> tuple[str, str]:
    """The first line that a diff takes and the first that it gives; they stay when lines above them come and go."""
    lines = [line for line in diff.splitlines()[2:] if line[:1] in "+-"]
    before = next((line[1:].strip() for line in lines if line[0] == "-"), "")
    after = next((line[1:].strip() for line in lines if line[0] == "+"), "")
    return before, after


# ---- which tests -------------------------------------------------------------------------------------------------


def measure(trees: Sequence[Tree], paths: Sequence[Path], imports: Imports) -> Coverage:
    """Run the quick tests near these modules, once, with line coverage by test; kept in a cache.

    Near: a test imports the module itself, or lies in its package's folder and imports it however far. A behaviour
    that only another package's tests would see is no behaviour that its own are sure of.
    """
    wanted, coverage = set(paths), Coverage()
    files = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if imports.near(p) & wanted]
    todo: list[tuple[Path, Path]] = []
    for file in files:
        text = hashlib.sha256()
        for path in sorted(imports.closure(file)):
            text.update(path.read_bytes())
        kept = CACHE / f"{file.relative_to(ROOT).as_posix().replace('/', '.')}-{text.hexdigest()[:16]}.json"
        if kept.exists():
            coverage.add(json.loads(kept.read_text()))
        else:
            todo.append((file, kept))
    if todo:
        say(f"measuring what {len(todo)} of {len(files)} test files cover")
        CACHE.mkdir(exist_ok=True)
        groups = [todo[n : n + FILES_A_MAP] for n in range(0, len(todo), FILES_A_MAP)]
        everywhere(trees, groups, lambda tree, group: _measure(tree, group, coverage))
    return coverage


def _measure(tree: Tree, group: Sequence[tuple[Path, Path]], coverage: Coverage) -> None:
    out = tree.root / ".map.json"
    names = [file.relative_to(ROOT).as_posix() for file, _ in group]
    env = {"PUNA_MUTATE_MAP": str(out), "PUNA_MUTATE_SOURCE": str(tree.root / "src" / "puna")}
    code, said = tree.pytest(["-m", NOT_QUICK, *names], env, 1800.0)
    if not out.exists():
        if code != 5:  # 5: none of them is quick
            say(f"nothing was measured of {' '.join(names)}:\n{said[-1500:]}")
        return
    measured = json.loads(out.read_text())
    out.unlink()
    for test in measured["failed"]:
        say(f"fails without any mutant, and is left out: {test}")
    for (_, kept), name in zip(group, names, strict=True):
        mine = {test for test in measured["seconds"] if test.partition("::")[0] == name}
        covered = {
            path: {function: some for function, tests in functions.items() if (some := sorted(mine & set(tests)))}
            for path, functions in measured["covered"].items()
        }
        part = {
            "seconds": {test: measured["seconds"][test] for test in mine},
            "failed": [test for test in measured["failed"] if test in mine],
            "covered": covered,
        }
        if not part["failed"]:
            for old in CACHE.glob(f"{name.replace('/', '.')}-*.json"):
                old.unlink()
            new = kept.with_suffix(".new")
            new.write_text(json.dumps(part))
            new.rename(kept)
        with LOCK:
            coverage.add(part)


def own_file(mutant: Mutant) -> Path:
    """The test file at its module's path."""
    path = ROOT / mutant.path
    return ROOT / "tests" / path.parent.relative_to(SOURCE) / f"test_{path.stem}.py"


def process_files(mutant: Mutant, imports: Imports) -> list[str]:
    """Test files with process tests for a module: its own, those that import it, its package's; nearest first."""
    path = ROOT / mutant.path
    folder = own_file(mutant).parent
    package = ROOT / "tests" / path.relative_to(SOURCE).parts[0]
    ranked = []
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        if not re.search(r"mark\.process", file.read_text()) or "engine" in file.parts:
            continue
        is_own, is_direct = file.stem == f"test_{path.stem}", path in imports.direct[file]
        if file.is_relative_to(package) or is_direct:
            far = path not in imports.closure(file)
            ranked.append((not is_own, not is_direct, not file.is_relative_to(folder), far, file))
    return [file.relative_to(ROOT).as_posix() for *_, file in sorted(ranked)]


# ---- the trial ---------------------------------------------------------------------------------------------------


def everywhere(trees: Sequence[Tree], jobs: Iterable[J], work: Callable[[Tree, J], None]) -> None:
    """Do `work(tree, job)` for each job, in as many threads as there are trees; the first error ends all.

    Raises:
        Stopped: the run is to end.
    """
    waiting: queue.SimpleQueue[J] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    errors: list[BaseException] = []

    def run(tree: Tree) -> None:
        try:
            while not errors:
                work(tree, waiting.get_nowait())
        except queue.Empty:
            return
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits for this one
            errors.append(error)

    threads = [threading.Thread(target=run, args=(tree,)) for tree in trees]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
    except KeyboardInterrupt:
        trees[0].stopped.set()
        for thread in threads:
            thread.join()
        raise Stopped from None
    if errors:
        raise errors[0]


class Trial:
    """Tries mutants in copies of the tree."""

    def __init__(self, args: argparse.Namespace, coverage: Coverage, imports: Imports, total: int) -> None:
        self.args, self.coverage, self.imports, self.total = args, coverage, imports, total
        self.accepted = accepted()
        self.results: list[Result] = []

    def one(self, tree: Tree, mutant: Mutant) -> None:
        """Try one, and note what became of it."""
        path, started = tree.root / mutant.path, time.monotonic()
        source = path.read_bytes()
        why = self.accepted.get(changed_line(mutant, source))
        if why is not None:
            result = Result(mutant, ACCEPTED_AS, why)
        else:
            path.write_bytes(mutant.apply(source))
            try:
                result = self._judged(tree, mutant)
            finally:
                path.write_bytes(source)
        result.seconds, result.diff = round(time.monotonic() - started, 1), mutant.diff(source)
        with LOCK:
            self.results.append(result)
            say(f"{len(self.results)}/{self.total} {result.outcome:<11} {mutant.name}  {result.by[:100]}")

    def _judged(self, tree: Tree, mutant: Mutant) -> Result:
        tests = self.coverage.tests(mutant)
        if tests:
            wanted = tree.root / ".wanted.json"
            wanted.write_text(json.dumps(tests))
            env = {"PUNA_MUTATE_TESTS": str(wanted)}
            timeout_s = GRACE_S + SLOWER * sum(self.coverage.seconds[test] for test in tests)
            files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
            result = self._run(tree, mutant, ["-m", NOT_QUICK, *files], env, timeout_s)
            result.tests = len(tests)
            if result.outcome != SURVIVED:
                return result
        own = own_file(mutant)
        if own.is_file():  # what a fixture or a cache made for another test of it counts there only
            result = self._run(tree, mutant, ["-m", NOT_QUICK, own.relative_to(ROOT).as_posix()], {}, OWN_S)
            if result.outcome != SURVIVED:
                return result
        files = [] if self.args.quick else process_files(mutant, self.imports)
        if files:
            # So long and no longer: what is killed by none of the nearest process tests counts as not killed.
            result = self._run(tree, mutant, ["-m", "process", *files], {}, self.args.process_s)
            result.tests = len(tests) + len(files)
            if result.outcome == KILLED:
                return result
        return Result(mutant, SURVIVED if tests or files else UNSEEN, tests=len(tests))

    @staticmethod
    def _run(tree: Tree, mutant: Mutant, words: Sequence[str], env: dict[str, str], timeout_s: float) -> Result:
        env = env | {"PYTHONDONTWRITEBYTECODE": "1"}
        code, said = tree.pytest(["-x", *words], env, timeout_s)
        if code in (0, 5):
            return Result(mutant, SURVIVED)
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        by = failed[0] if failed else "" if code is None else said.strip().splitlines()[-1][:100]
        return Result(mutant, TIMEOUT if code is None else KILLED, by)


# ---- the report --------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(f"mutate: {text}", file=sys.stderr, flush=True)


def report(results: Sequence[Result]) -> str:
    """What survived, with its diff, and the rate by package."""
    shown = [r for r in results if r.outcome in (SURVIVED, UNSEEN)]
    lines = [f"{r.outcome}: {r.mutant.name} (in {r.mutant.function or 'the module'})\n{r.diff}" for r in shown]
    lines.append(f"{'package':<14}{'mutants':>8}{'killed':>8}{'survived':>10}{'accepted':>10}{'rate':>7}")
    packages = sorted({_package(r.mutant) for r in results})
    for name in [*packages, "all"]:
        count = Counter(r.outcome for r in results if name in ("all", _package(r.mutant)))
        killed, lost = count[KILLED] + count[TIMEOUT], count[SURVIVED] + count[UNSEEN]
        rate = f"{killed / (killed + lost):.0%}" if killed + lost else "-"
        lines.append(f"{name:<14}{count.total():>8}{killed:>8}{lost:>10}{count[ACCEPTED_AS]:>10}{rate:>7}")
    return "\n".join(lines)


def rate(results: Sequence[Result]) -> float:
    """Killed, of those that count, in percent."""
    count = Counter(r.outcome for r in results)
    judged = count.total() - count[ACCEPTED_AS]
    return 100 * (count[KILLED] + count[TIMEOUT]) / judged if judged else 100.0


def _package(mutant: Mutant) -> str:
    return Path(mutant.path).parts[2].removesuffix(".py")


def main() -> int:
    """Draw, measure, try, report; 0, or 1 when fewer than `--at-least` percent were killed, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="make mutate ARGS=...", description=__doc__)
    parser.add_argument("--modules", nargs="+", metavar="NAME", help="modules or packages, e.g. puna.serve.limits")
    parser.add_argument("--changed", metavar="REF", help="the modules that differ from where this branch left REF")
    parser.add_argument("--sample", type=int, default=200, help="mutants at most (200)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (0)")
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose name has this text")
    parser.add_argument("--quick", action="store_true", help="without the process tests")
    parser.add_argument("--process-s", type=float, default=240.0, help="process tests of a mutant end after this (240)")
    parser.add_argument("--workers", type=int, default=2, help="copies of the tree that run at once (2)")
    parser.add_argument("--again", type=Path, metavar="FILE", help="those that survived in the results of a --json")
    parser.add_argument("--list", action="store_true", help="name the mutants and try none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--at-least", type=float, default=0.0, metavar="PERCENT", help="exit 1 when fewer are killed")
    args = parser.parse_args()
    paths = sources(args)
    chosen = drawn(args, paths)
    if args.list or not chosen:
        print("\n".join(mutant.name for mutant in chosen) or "mutate: no mutant")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell lets what it starts in the background ignore the first
        signal.signal(number, signal.default_int_handler)
    imports, stopped = Imports(), threading.Event()
    results: list[Result] = []
    try:
        with workspace() as folder:
            trees = [Tree(folder, "0", stopped)]
            for n in range(1, min(args.workers, len(chosen))):
                trees.append(Tree(folder, str(n), stopped, compiled=trees[0].root))
            of = sorted({ROOT / mutant.path for mutant in chosen})
            trial = Trial(args, measure(trees, of, imports), imports, len(chosen))
            results = trial.results
            everywhere(trees, chosen, trial.one)
    except (Stopped, KeyboardInterrupt):
        say("stopped; what was tried until then:")
        stopped.set()
    results = sorted(results, key=lambda r: (r.mutant.path, r.mutant.start))
    print(report(results))
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    if stopped.is_set():
        return 130
    return int(rate(results) < args.at_least)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
