"""Uploaded archives that somebody made to hurt: nothing of them lies anywhere when they are refused."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from load import load_factor
from puna.errors import ProjectError
from puna.packaging import archive
from security.conftest import Tally
from security.fort import Fort, differences, standing

pytestmark = pytest.mark.process

APP = b"class InferlessPythonModel:\n    def infer(self, inputs):\n        return {}\n"
Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fort]:
    with standing(tmp_path_factory.mktemp("f")) as made:
        yield made


def member(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = "", **pax: str) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, link, pax
    info.size = len(data) if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
    return info, data


def tar(*members: Member, app: bool = True, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as made:
        for info, data in ([member("app.py", APP)] if app else []) + list(members):
            made.addfile(info, io.BytesIO(data) if info.size else None)
    return buffer.getvalue()


def packed(*members: Member, app: bool = True, form: int = tarfile.PAX_FORMAT) -> bytes:
    return gzip.compress(tar(*members, app=app, form=form))


def renamed(name: bytes, data: bytes = b"x") -> bytes:
    """A header whose name tarfile would not write."""
    info = tarfile.TarInfo("x" * len(name))
    info.size = len(data)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[: len(name)] = name
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return gzip.compress(tar()[:-10240] + bytes(block) + data.ljust(512, b"\0") + b"\0" * 1024)


def hidden() -> bytes:
    """A link in what a header calls the content of a file, and a record before it that calls it none."""
    link = member("evil", kind=tarfile.SYMTYPE, link="/etc")[0].tobuf(tarfile.USTAR_FORMAT)
    whole = tar(member("cover", link + b"\0" * 512, size="0"), app=False)
    return gzip.compress(whole)


def odd_names(outside: Path) -> dict[str, bytes]:
    deep = "/".join("d" * 1 for _ in range(1500)) + "/f"
    return {
        "climbs out": packed(member(f"../{outside.name}/x")),
        "climbs out from below": packed(member("a/../../evil")),
        "climbs and comes back": packed(member("../files/app.py")),
        "absolute": packed(member(f"{outside}/x")),
        "two slashes": packed(member(f"/{outside}/x")),
        "a dot before": packed(member("./../evil")),
        "backslash": packed(member("..\\evil")),
        "a drive": packed(member("C:\\evil")),
        "newline": packed(member("a\nb")),
        "NUL in a record": packed(member("a", path="b\0c")),
        "a record's name climbs": packed(member("a", path="../evil")),
        "a record's link": packed(member("l", kind=tarfile.SYMTYPE, link="a", linkpath="/etc")),
        "escape": packed(member("\x1b[2J")),
        "right to left": packed(member("a\u202egpj.py")),
        "raw bytes": renamed(b"\xff\xfe"),
        "raw climb": renamed(b"a/../../e"),
        "twice": packed(member("a", b"1"), member("a", b"2")),
        "twice by another spelling": packed(member("a", b"1"), member("./a", b"2")),
        "twice by slashes": packed(member("d/a", b"1"), member("d//a", b"2")),
        "app.py twice": packed(member("app.py", b"evil")),
        "a file as a folder": packed(member("a"), member("a/b")),
        "a folder as a file": packed(member("a/b"), member("a")),
        "a folder called nothing": packed(member(".", kind=tarfile.REGTYPE)),
        "very long name": packed(member("n" * 300)),
        "very long path": packed(member("/".join("n" * 200 for _ in range(40)))),
        "very deep": packed(member(deep)),
    }


def odd_kinds(outside: Path) -> dict[str, bytes]:
    sym, hard = tarfile.SYMTYPE, tarfile.LNKTYPE
    return {
        "symbolic link": packed(member("l", kind=sym, link="/etc/passwd")),
        "symbolic link within": packed(member("l", kind=sym, link="app.py")),
        "symbolic link as app.py": packed(member("app.py", kind=sym, link="/etc/passwd"), app=False),
        "write through a link": packed(member("d", kind=sym, link=str(outside)), member("d/evil")),
        "write through two": packed(
            member("a", kind=sym, link="."), member("a/b", kind=sym, link=".."), member("a/b/c")
        ),
        "write over a link": packed(member("d", kind=sym, link=str(outside / "x")), member("d")),
        "hard link": packed(member("l", kind=hard, link="/etc/passwd")),
        "hard link within": packed(member("l", kind=hard, link="app.py")),
        "hard link, then write": packed(member("l", kind=hard, link=f"{outside}/x"), member("l", b"evil")),
        "character device": packed(member("zero", kind=tarfile.CHRTYPE)),
        "block device": packed(member("sda", kind=tarfile.BLKTYPE)),
        "pipe": packed(member("pipe", kind=tarfile.FIFOTYPE)),
        "contiguous file": packed(member("c", kind=tarfile.CONTTYPE)),
        "sparse file": packed(member("s", kind=tarfile.GNUTYPE_SPARSE)),
        "sparse by a record": packed(member("s", **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})),
        "sparse of an old kind": packed(member("s", **{"GNU.sparse.size": "99999999999", "GNU.sparse.numblocks": "1"})),
        "a record for all": packed(member("g", kind=tarfile.XGLTYPE)),
        "Solaris' record": packed(member("g", kind=tarfile.SOLARIS_XHDTYPE)),
        "an unknown kind": packed(member("u", kind=b"Z")),
        "a link in a file": hidden(),
        "a size by a record": packed(member("a", b"xyz", size="10000000000")),
    }


def damaged() -> dict[str, bytes]:
    lying = tarfile.TarInfo("a")
    lying.size = 8**11 - 1
    whole = packed(member("a", os.urandom(100_000)))
    return {
        "a header that lies": gzip.compress(lying.tobuf()),
        "a size below nothing": renamed(b"a") and gzip.compress(_negative()),
        "not gzip": b"hello",
        "a zip": b"PK\x03\x04" + b"\0" * 100,
        "plain tar": tar(),
        "nothing": b"",
        "an empty gzip": gzip.compress(b""),
        "gzip of no tar": gzip.compress(b"hello" * 1000),
        "gzip in gzip": gzip.compress(whole),
        "cut short": whole[:-200],
        "cut in the middle": whole[: len(whole) // 2],
        "tar cut short in a good gzip": gzip.compress(tar(member("a", b"x" * 100_000))[:50_000]),
        "a wrong checksum": whole[:-8] + b"\0" * 8,
        "gzip and more": whole[:-1] + b"\1" + b"junk" * 100,
        "many zeros": _many_zeros(),
        "only folders": packed(member("d", kind=tarfile.DIRTYPE), app=False),
    }


def _negative() -> bytes:
    block = bytearray(tarfile.TarInfo("a").tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = b"\xff" * 12  # base 256: -1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"\0" * 1024


def _many_zeros() -> bytes:
    """10 GiB of zeros in 10 MB, as one member of gzip after another."""
    head = tarfile.TarInfo("z")
    head.size = 10 << 30
    piece = gzip.compress(b"\0" * (64 << 20))
    return gzip.compress(head.tobuf(tarfile.GNU_FORMAT)) + piece * 160


def test_nothing_of_a_hostile_archive_stays(fort: Fort, tally: Tally, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("mine")
    before = fort.dump()
    for name, data in (odd_names(outside) | odd_kinds(outside) | damaged()).items():
        began = time.monotonic()
        reply = fort.call.put("/api/v1/sources", content=data, headers=fort.bearer("deploy"))
        untouched = (outside / "x").read_text() == "mine" and len(list(outside.iterdir())) == 1
        clean = differences(before, fort.dump()) == [] and not [
            p for p in fort.home.sources.iterdir() if p.name[0] == "."
        ]
        quick = time.monotonic() - began < 30 * load_factor()
        tally(
            f"{name}: {reply.status_code} {reply.text[:60]}",
            refused=reply.status_code == 400 and untouched and clean and quick,
        )


def test_a_bomb_is_refused_before_it_fills_anything(tally: Tally, tmp_path: Path) -> None:
    bombs = {
        "zeros": packed(member("z", b"\0" * 3_000_000)),
        "files": packed(*(member(f"f{n}") for n in range(50))),
        "empty files": packed(*(member(f"f{n}", b"") for n in range(50))),
        "folders": packed(*(member(f"d{n}", kind=tarfile.DIRTYPE) for n in range(50))),
    }
    for name, data in bombs.items():
        with pytest.raises(ProjectError):
            archive.extract(data, tmp_path, limit_bytes=1_000_000, limit_files=10)
        tally(f"{name} on the disk", refused=list(tmp_path.iterdir()) == [])


def test_modes_owners_and_times_are_ours(tally: Tally, tmp_path: Path) -> None:
    script = member("a.sh")
    script[0].mode, script[0].uid, script[0].gid, script[0].mtime = 0o7777, 12345, 12345, 1
    archive.extract(packed(script), tmp_path)
    found = (tmp_path / "a.sh").stat()
    tally("setuid, setgid, sticky, written by all", refused=found.st_mode & 0o7777 == 0o755)
    tally("another owner", refused=(found.st_uid, found.st_gid) == (os.geteuid(), os.getegid()))


def test_names_that_differ_by_case_or_spelling_only_stay_two_files(tally: Tally, tmp_path: Path) -> None:
    names = {"A.py": b"1", "a.py": b"2", "\u00e9": b"3", "e\u0301": b"4", "\ufb01": b"5", "fi": b"6"}
    archive.extract(packed(*(member(name, data) for name, data in names.items()), app=False), tmp_path)
    for name, data in names.items():
        tally(f"{name!r} written over", refused=(tmp_path / name).read_bytes() == data)
