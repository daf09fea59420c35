"""worker.pyz: the worker's sources as one file for any CPython from 3.8 on; equal sources give equal bytes."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import uuid
import zipfile
from functools import lru_cache
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "worker"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip can hold
ENTRY = "import sys\nfrom puna.worker.main import main\nsys.exit(main(sys.argv[1:]))\n"


@lru_cache(maxsize=1)
def worker_bytes() -> bytes:
    """The zip, not compressed: reading it is faster than inflating, and it has some 240 kB."""
    paths = sorted(SOURCES.rglob("*.py"))
    files = {f"puna/worker/{path.relative_to(SOURCES).as_posix()}": path.read_bytes() for path in paths}
    files["puna/__init__.py"] = b""
    files["__main__.py"] = ENTRY.encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
    return buffer.getvalue()


def worker_pyz(folder: Path) -> Path:
    """`worker-<digest>.pyz` in `folder`; written once."""
    data = worker_bytes()
    path = folder / f"worker-{hashlib.sha256(data).hexdigest()[:16]}.pyz"
    if not path.exists():
        temporary = path.with_name(f".{uuid.uuid4().hex}")
        temporary.write_bytes(data)
        os.replace(temporary, path)
    return path


def worker_folder(folder: Path) -> Path:
    """The same, unpacked into `folder/worker-<digest>`, which Python runs as it runs the zip.

    An interpreter keeps its compiled modules beside the sources of a folder, and cannot inside a zip: 40 ms a start.
    """
    data = worker_bytes()
    path = folder / f"worker-{hashlib.sha256(data).hexdigest()[:16]}"
    if not path.exists():
        temporary = folder / f".{uuid.uuid4().hex}"
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(temporary)
        try:
            temporary.rename(path)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
    return path
