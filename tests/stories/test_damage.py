"""Files of an environment or bundle are damaged under an endpoint: nobody says that it serves; a rebuild mends it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.artifacts import SHORT
from stories.conftest import Up, standing, write_app

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with standing() as up:
        yield up


@pytest.fixture
def folder(up: Up, tmp_path: Path) -> Path:
    """An app that needs six, deployed as `app`; each test has a runtime of its own."""
    folder = write_app(tmp_path / "app", tmp_path.name)
    (folder / "app.py").write_text("import six\n" + (folder / "app.py").read_text())
    (folder / "inferless-runtime-config.yaml").write_text(
        f"build:\n  python_packages: [six==1.17.0]\n  run: ['true {tmp_path.name}']\n"
    )
    told = up.puna("deploy", str(folder), "--gpu", "cpu", "--min-replica", "1")
    assert told.returncode == 0, told.stderr
    return folder


def harm_environment(up: Up) -> None:
    for path in up.home.environments.glob("*/venv/lib/python*/site-packages/six.py"):
        path.unlink()


def harm_bundle(up: Up) -> None:
    (serving,) = (r for r in up.client.endpoint("app")["revisions"] if r["state"] == "serving")
    (path,) = (p for p in up.home.bundles.glob("*/app/app.py") if p.parts[-3].startswith(serving["bundle"][:SHORT]))
    path.chmod(0o644)
    path.unlink()
    path.write_text("raise SystemExit('these are not the words of the app')\n")


def die(up: Up) -> None:
    for pid in up.worker_pids():
        os.kill(pid, signal.SIGKILL)


def works(up: Up) -> bool:
    return up.call().status_code == 200


@pytest.mark.parametrize("harm", [harm_environment, harm_bundle])
def test_the_same_deploy_finds_the_damage_and_mends_it(up: Up, folder: Path, harm: object) -> None:
    harm(up)  # type: ignore[operator]
    told = up.puna("deploy", str(folder), "--gpu", "cpu", "--min-replica", "1")
    assert told.returncode == 0, told.stderr
    die(up)
    assert works(up), "it was said to serve"
    again = up.puna("deploy", str(folder), "--gpu", "cpu", "--min-replica", "1", "--json")
    assert again.returncode == 0 and works(up)


@pytest.mark.parametrize("harm", [harm_environment, harm_bundle])
def test_dying_replicas_say_what_is_damaged_and_a_rebuild_mends_it(up: Up, folder: Path, harm: object) -> None:
    before = _events(up).count("is damaged")  # the story before this one has its own
    harm(up)  # type: ignore[operator]
    die(up)
    up.until(lambda: _events(up).count("is damaged") > before, 30, "an event that names the damage")
    assert "puna rebuild app" in _events(up)
    told = up.puna("rebuild", "app")
    assert told.returncode == 0, told.stderr
    assert works(up)
    die(up)
    assert works(up)


def test_an_endpoint_that_fails_is_not_said_to_serve(up: Up, folder: Path, tmp_path: Path) -> None:
    """It works when it is built, and not any more."""
    switch = tmp_path / "switch"
    text = (folder / "app.py").read_text()
    (folder / "app.py").write_text(
        f"import os\nassert not os.path.exists({str(switch)!r}), 'it was switched off'\n{text}"
    )
    assert up.puna("deploy", str(folder), "--gpu", "cpu", "--min-replica", "1").returncode == 0
    switch.touch()
    die(up)
    up.until(lambda: "switched off" in _events(up), 30, "a death")
    for words in (("deploy", str(folder), "--gpu", "cpu", "--min-replica", "1"), ("rebuild", "app")):
        told = up.puna(*words)
        assert told.returncode != 0 and "switched off" in told.stderr, told.stdout + told.stderr
    switch.unlink()
    told = up.puna("rebuild", "app")
    assert told.returncode == 0 and works(up), told.stderr


def _events(up: Up) -> str:
    return " ".join(str(event["message"]) for event in up.client.events("app"))
