"""The folder that the worker runs from is small, the same for the same sources, and holds the worker alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from puna.backends.local import GO_ALONG, WORKER, worker_folder


def test_equal_sources_give_one_folder(tmp_path: Path) -> None:
    first = worker_folder(tmp_path)
    stamp = first.stat().st_mtime_ns
    assert worker_folder(tmp_path) == first and first.stat().st_mtime_ns == stamp
    assert list(tmp_path.iterdir()) == [first]


def test_it_holds_the_worker_alone_and_all_of_it(tmp_path: Path) -> None:
    path = worker_folder(tmp_path)
    files = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    along = [WORKER.parent / "process" / name for name in GO_ALONG]
    own = {f.relative_to(WORKER.parents[1]).as_posix(): f.read_bytes() for f in (*WORKER.rglob("*.py"), *along)}
    assert own.items() <= files.items() and set(files) - set(own) == {"__main__.py", "puna/__init__.py"}
    assert files["puna/__init__.py"] == b"" and sum(map(len, files.values())) < 500_000


def test_those_who_write_it_at_once_all_have_one_and_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(worker_folder, [tmp_path] * 32))
    assert list(tmp_path.iterdir()) == list(found)
