"""worker.pyz is small, the same for the same sources, and holds the worker alone."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from puna.backends.pack import worker_bytes, worker_folder, worker_pyz


def test_equal_sources_give_equal_bytes_in_one_file(tmp_path: Path) -> None:
    first = worker_pyz(tmp_path)
    stamp = first.stat().st_mtime_ns
    worker_bytes.cache_clear()
    assert worker_pyz(tmp_path) == first and first.stat().st_mtime_ns == stamp
    assert first.read_bytes() == worker_bytes() and list(tmp_path.iterdir()) == [first]


def test_the_zip_holds_the_worker_alone() -> None:
    names = zipfile.ZipFile(io.BytesIO(worker_bytes())).namelist()
    assert {"__main__.py", "puna/__init__.py", "puna/worker/main.py"} <= set(names)
    assert all(n.startswith("puna/worker/") for n in names if n not in ("__main__.py", "puna/__init__.py"))
    assert len(worker_bytes()) < 500_000


def test_the_unpacked_worker_is_the_same(tmp_path: Path) -> None:
    path = worker_folder(tmp_path)
    assert worker_folder(tmp_path) == path and list(tmp_path.iterdir()) == [path]
    archive = zipfile.ZipFile(io.BytesIO(worker_bytes()))
    assert all((path / name).read_bytes() == archive.read(name) for name in archive.namelist())
