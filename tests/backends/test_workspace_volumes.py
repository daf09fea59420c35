"""A namespace of a command's own: it sees a volume where nobody else does, also where it may not make a folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.replicas import wait_for
from puna.backends import workspace
from puna.backends.base import Launch, Phase
from puna.backends.local import LocalBackend, validate
from puna.home import Home
from puna.process import namespace

pytestmark = pytest.mark.process
NOBODY = 65534
NOWHERE = "/var/lib/puna-tests-no-such-folder/data"


@pytest.fixture(scope="module", autouse=True)
def namespaces(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("volume")
    why = workspace._refusal(json.dumps({str(folder / "mnt"): str(folder)}))
    if why:
        pytest.skip(f"this kernel lets nobody mount for himself: {why}")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / "volume"
    folder.mkdir()
    (folder / "words").write_text("from the volume")
    return folder


def test_the_command_sees_the_volume_and_nobody_else_does(volume: Path, tmp_path: Path) -> None:
    path = tmp_path / "mnt" / "data"
    code = f"cat {path}/words; echo written > {path}/new; pwd"
    argv = workspace.with_volumes({str(path): str(volume)}, ["/bin/sh", "-c", code])
    out = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=True, timeout=20).stdout
    assert out == f"from the volume{tmp_path}\n"
    assert (volume / "new").read_text() == "written\n" and not (path / "new").exists()


def test_without_mounts_the_command_is_as_it_was() -> None:
    assert workspace.with_volumes({}, ["a", "b"]) == ["a", "b"]


def test_somebody_who_may_make_no_folder_covers_the_one_above(volume: Path, tmp_path: Path) -> None:
    """As root this runs as nobody; the script is copied to where nobody may read it."""
    python = next((p for p in ("/usr/bin/python3", "/usr/local/bin/python3") if os.access(p, os.X_OK)), "")
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if os.geteuid() != 0:
        as_nobody, python = [], sys.executable
    elif not python or not shutil.which("setpriv"):
        pytest.skip("no setpriv, or no Python that nobody may run")
    shared = Path("/tmp") / f"puna-mounts-test-{os.getpid()}"
    shutil.copytree(volume, shared)
    try:
        shared.chmod(0o755)
        script = shared / "namespace.py"
        shutil.copy(namespace.__file__, script)
        code = f"cat {NOWHERE}/words; ls -d /var/lib/dpkg /var/tmp /var/run; id -u"
        argv = [
            *as_nobody,
            python,
            "-I",
            "-S",
            str(script),
            "volumes",
            json.dumps({NOWHERE: str(shared)}),
            "/bin/sh",
            "-c",
            code,
        ]
        done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=20, check=False)
        assert done.stdout.startswith("from the volume"), done.stderr
        assert done.stdout.endswith(f"{NOBODY if as_nobody else os.getuid()}\n") and "/var/tmp" in done.stdout
        refused = subprocess.run(
            [
                *as_nobody,
                python,
                "-I",
                "-S",
                str(script),
                "volumes",
                json.dumps({"/no-such-top": str(shared)}),
                "/bin/true",
            ],
            capture_output=True,
            text=True,
            cwd="/",
            timeout=20,
            check=False,
        )
        assert refused.returncode == namespace.EXIT_REFUSED and "only root can make /no-such-top" in refused.stderr
    finally:
        shutil.rmtree(shared)
    assert not Path(NOWHERE).exists()


APP = """
    import os
    VOLUME = os.environ["NFS_VOLUME"]
    class InferlessPythonModel:
        def infer(self, inputs):
            with open(VOLUME + "/seen", "a") as file:
                file.write("x")
            return {"text": open(VOLUME + "/words").read()}
"""


def test_a_validation_and_a_replica_have_their_volume(
    volume: Path, tmp_path: Path, launch: Callable[..., Launch], local: LocalBackend
) -> None:
    path = str(tmp_path / "mnt" / "data")
    env = {"PATH": os.environ["PATH"], "NFS_VOLUME": path}
    validate(
        launch("v1", APP, env=env, mounts={path: str(volume)}), Home(tmp_path / "home"), tmp_path / "report.json", 20
    )
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["ok"] and told["outputs"][0]["data"] == ["from the volume"], told
    local.start(launch("r1", APP, env=env, mounts={path: str(volume)}))
    wait_for(local, Phase.READY)
    assert (volume / "seen").read_text() == "x"  # the validation
    local.stop("r1", 2)
    wait_for(local, Phase.EXITED)
    assert os.listdir(path) == []
