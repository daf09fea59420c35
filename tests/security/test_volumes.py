"""Volumes, which apps fill with what they like: no path and no link leads out of one."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from puna.control.resources.volumes import Volumes
from puna.errors import PunaError
from security.conftest import Tally
from security.fort import Fort, differences, standing

pytestmark = pytest.mark.process

SECRET = "s3cret-beside-the-volume"
PATHS = [
    *(
        "..",
        "../key",
        "../../key",
        "a/../../key",
        "./../key",
        "....//key",
        "..;/key",
        "%2e%2e/key",
        "..%2fkey",
        "%2e%2e%2fkey",
    ),
    *(
        "%252e%252e/key",
        "..%5ckey",
        "..\\key",
        "/etc/passwd",
        "//etc/passwd",
        "%2fetc%2fpasswd",
        "file%00.txt",
        "%00",
        "a%0a/../..",
    ),
    *(
        ".",
        "",
        "/",
        "a/..",
        "~/.ssh",
        "file/..",
        "file/x",
        "..%c0%afkey",
        "%c0%ae%c0%ae/key",
        "\u2025/key",
        "\uff0e\uff0e/key",
    ),
]
LINKS = {
    "file": "{secret}",
    "folder": "{outside}",
    "up": "..",
    "root": "/",
    "proc": "/proc/self",
    "self": "self",
    "null": "/dev/zero",
}


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fort]:
    with standing(tmp_path_factory.mktemp("f")) as made:
        (made.home.root / "key-beside").write_text(SECRET)
        yield made


def test_no_path_leads_out_of_a_volume(fort: Fort, tally: Tally) -> None:
    before, admin = fort.dump(), fort.bearer("admin")
    key = fort.home.key.read_bytes()
    for path in PATHS:
        where = (path if path.isascii() else quote(path)).replace("..", "%2e%2e")  # or the client would resolve them
        for method in ("GET", "PUT", "DELETE"):
            url = f"/api/v1/volumes/vault/files/{where}"
            reply = fort.call.request(method, url, content=b"evil" if method == "PUT" else None, headers=admin)
            for odd in (fort.home.volumes / "vault").iterdir():
                # An odd name is a file of the volume's own: gone again, nothing has changed.
                if odd.is_dir():
                    shutil.rmtree(odd)
                elif odd.name != "file":
                    odd.unlink()
            refused = differences(before, fort.dump()) == [] and key not in reply.content
            tally(f"{method} {path!r}: {reply.status_code}", refused=refused and b"root:" not in reply.content)
        listed = fort.call.get("/api/v1/volumes/vault/entries", params={"path": path, "recursive": True}, headers=admin)
        tally(
            f"entries of {path!r}: {listed.status_code}", refused=listed.status_code >= 400 or "key" not in listed.text
        )
    for name in (
        "..",
        ".",
        "",
        "vault/..",
        "%2e%2e",
        "..%2f",
        "vault%00",
        "Vault",
        "vault%2f..%2f..",
        "vault/%2e%2e/empty",
    ):
        for method in ("GET", "DELETE"):
            reply = fort.call.request(method, f"/api/v1/volumes/{name}", headers=admin)
            tally(f"{method} volume {name!r}: {reply.status_code}", refused=differences(before, fort.dump()) == [])
    for name in ("../x", "a/b", "..", ".", "", ".hidden", "a\0b", "a\nb", "x" * 64, "/tmp/x", "-rf", "é"):
        reply = fort.call.post("/api/v1/volumes", json={"name": name}, headers=admin)
        tally(f"a volume called {name!r}", refused=reply.status_code == 400)
    assert differences(before, fort.dump()) == []


def test_no_link_that_an_app_has_planted_is_followed(fort: Fort, tally: Tally, tmp_path: Path) -> None:
    admin, volume = fort.bearer("admin"), fort.home.volumes / "empty"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text(SECRET)
    for name, target in LINKS.items():
        (volume / name).symlink_to(target.format(secret=outside / "secret", outside=outside))
    os.mkfifo(volume / "pipe")
    os.link(outside / "secret", volume / "hard")  # what a hard link means an app could read without it
    for name in [*LINKS, "pipe"]:
        for path in (name, f"{name}/secret", f"{name}/a/b", f"{name}/%2e%2e/file"):
            for method in ("GET", "PUT", "DELETE"):
                if method == "DELETE" and path == name:
                    continue
                url = f"/api/v1/volumes/empty/files/{path}"
                reply = fort.call.request(method, url, content=b"evil" if method == "PUT" else None, headers=admin)
                kept = (outside / "secret").read_text() == SECRET and list(outside.iterdir()) == [outside / "secret"]
                tally(f"{method} {path}: {reply.status_code}", refused=reply.status_code >= 400 and kept)
        listed = fort.call.get("/api/v1/volumes/empty/entries", params={"path": name}, headers=admin)
        tally(f"entries of {name}", refused=listed.status_code >= 400 or SECRET not in listed.text)
    whole = fort.call.get("/api/v1/volumes/empty/entries", params={"recursive": True}, headers=admin).json()["items"]
    tally("a walk through links", refused={item["path"] for item in whole} == {*LINKS, "pipe", "hard"})
    for name in [*LINKS, "pipe"]:
        fort.call.delete(f"/api/v1/volumes/empty/files/{name}", headers=admin)
        tally(f"what {name} leads to, deleted with it", refused=(outside / "secret").read_text() == SECRET)
    (volume / "all").symlink_to(outside)
    fort.call.delete("/api/v1/volumes/empty", headers=admin)
    tally("what a volume's links lead to, deleted with it", refused=(outside / "secret").read_text() == SECRET)
    (fort.home.volumes / "swapped").symlink_to(outside)
    for method, path in (("GET", "files/secret"), ("GET", "entries"), ("PUT", "files/x"), ("DELETE", "files/secret")):
        url = f"/api/v1/volumes/swapped/{path}"
        reply = fort.call.request(method, url, content=b"evil" if method == "PUT" else None, headers=admin)
        tally(f"{method} {path} of a volume that is a link", refused=reply.status_code == 404)


def test_a_link_that_comes_and_goes_is_never_followed(fort: Fort, tally: Tally, tmp_path: Path) -> None:
    """An app may put a link in place of a folder between any two steps."""
    volumes, outside = Volumes(fort.home), tmp_path / "outside"
    volumes.create("race")
    outside.mkdir()
    (outside / "f").write_text(SECRET)
    volume, stop = fort.home.volumes / "race", threading.Event()
    (volume / "real").mkdir()
    (volume / "real" / "f").write_text("fine")
    (volume / "link").symlink_to(outside)

    def swap() -> None:
        turn = 0
        while not stop.is_set():
            for name in ("real", "link"):
                turn += 1
                with contextlib.suppress(OSError):  # a write has made a folder of that name: out of the way with it
                    os.rename(volume / "d", volume / f"made-{turn}")
                with contextlib.suppress(OSError):
                    os.rename(volume / name, volume / "d")
                with contextlib.suppress(OSError):
                    os.rename(volume / "d", volume / name)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(400):
            text = ""
            try:
                with volumes.open("race", "d/f") as file:
                    text = file.read().decode()
            except (PunaError, OSError):
                pass
            tally("a read in a race", refused=text in ("", "fine"))
            try:
                with volumes.writing("race", "d/g") as out:
                    out.write(b"evil")
            except (PunaError, OSError):
                pass
            tally("a write in a race", refused=not (outside / "g").exists())
            try:
                volumes.remove("race", "d/f2")
                found = volumes.entries("race", "d", recursive=True)
            except (PunaError, OSError):
                found = []
            tally("a list in a race", refused=all(entry.bytes != len(SECRET) for entry in found))
    finally:
        stop.set()
        thread.join()
    assert (outside / "f").read_text() == SECRET
