"""Archives that somebody made to hurt."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from puna.errors import ProjectError
from puna.home import Home
from puna.packaging import archive, source


def member(
    name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(data) if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as archive_:
        for info, data in members:
            archive_.addfile(info, io.BytesIO(data) if info.size else None)
    return buffer.getvalue()


HOSTILE = {
    "climbs out": tar(member("../evil")),
    "climbs out from below": tar(member("a/../../evil")),
    "absolute": tar(member("/tmp/evil")),
    "backslash": tar(member("..\\evil")),
    "newline": tar(member("a\nb")),
    "symbolic link": tar(member("link", kind=tarfile.SYMTYPE, link="/etc/passwd")),
    "write through a link": tar(member("d", kind=tarfile.SYMTYPE, link="/tmp"), member("d/evil")),
    "hard link": tar(member("link", kind=tarfile.LNKTYPE, link="/etc/passwd")),
    "character device": tar(member("zero", kind=tarfile.CHRTYPE)),
    "block device": tar(member("sda", kind=tarfile.BLKTYPE)),
    "pipe": tar(member("pipe", kind=tarfile.FIFOTYPE)),
    "contiguous file": tar(member("c", kind=tarfile.CONTTYPE)),
    "sparse file": tar(member("s", kind=tarfile.GNUTYPE_SPARSE)),
    "twice": tar(member("a", b"1"), member("a", b"2")),
    "twice by another spelling": tar(member("a", b"1"), member("./a", b"2")),
    "file as folder": tar(member("a"), member("a/b")),
    "folder as file": tar(member("a/b"), member("a")),
    "very long name": tar(member("n" * 300)),
    "not gzip": b"hello",
    "cut short": tar(member("a", b"x" * 100_000))[:-200],
    "gzip of no tar": gzip.compress(b"hello" * 1000),
    "nothing": b"",
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_it_is_refused_and_leaves_nothing(name: str, home: Home) -> None:
    with pytest.raises(ProjectError):
        source.unpack(HOSTILE[name], home)
    assert list(home.sources.iterdir()) == []
    assert not (home.root / "evil").exists() and not Path("/tmp/evil").exists()


def test_a_bomb_is_refused_before_it_fills_anything(tmp_path: Path) -> None:
    zeros = tar(member("zeros", b"\0" * 3_000_000))
    assert len(zeros) < 10_000
    with pytest.raises(ProjectError, match="MiB"):
        archive.extract(zeros, tmp_path, limit_bytes=1_000_000, limit_files=10)
    assert list(tmp_path.iterdir()) == []


def test_many_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="files"):
        archive.extract(tar(*(member(f"f{i}", b"") for i in range(50))), tmp_path, limit_files=10)
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.size = 8**11 - 1
    with pytest.raises(ProjectError, match="MiB"):
        archive.extract(gzip.compress(info.tobuf()), tmp_path)
    record = tarfile.TarInfo("a")
    record.type, record.size = tarfile.XHDTYPE, 10_000_000
    with pytest.raises(ProjectError, match="impossible"):
        archive.extract(gzip.compress(record.tobuf(tarfile.USTAR_FORMAT)), tmp_path)


def test_long_and_foreign_names_survive(tmp_path: Path) -> None:
    name = "深/" * 60 + "x" * 120 + ".py"
    archive.extract(tar(member(name, b"1")), tmp_path)
    assert (tmp_path / name).read_bytes() == b"1"


def test_modes_come_down_to_two(tmp_path: Path) -> None:
    script, plain = member("a.sh"), member("b.txt")
    script[0].mode, plain[0].mode = 0o6777, 0o600
    archive.extract(tar(script, plain), tmp_path)
    assert (tmp_path / "a.sh").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "b.txt").stat().st_mode & 0o7777 == 0o644
