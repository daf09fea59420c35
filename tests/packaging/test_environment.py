"""Real environments, built with uv from tiny packages."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from environments import leftovers
from load import load_factor
from puna.artifacts import SHORT
from puna.config.runtime import RuntimeSpec
from puna.errors import BuildError, NotFoundError
from puna.home import Home
from puna.packaging import environment, surroundings
from puna.packaging.command import BuildCancelledError
from puna.packaging.environment import Environment, build, find_python, find_uv

pytestmark = pytest.mark.process

TINY = RuntimeSpec(python_packages=("six==1.17.0", "python-dateutil>=2.8,<3"))


def imports(python: Path, module: str) -> bool:
    return subprocess.run([python, "-I", "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def test_an_environment_holds_what_was_asked_for_and_is_built_once(home: Home) -> None:
    lines: list[str] = []
    built = build(TINY, home, lines.append)
    assert built.path.name == TINY.digest[:SHORT] and built.digest == TINY.digest
    assert "six==1.17.0" in built.packages and any(p.startswith("python-dateutil==2.") for p in built.packages)
    assert imports(built.python, "six") and imports(built.python, "dateutil") and not imports(built.python, "yaml")
    assert {"venv", "spec.yaml", "packages.txt", "build.log", "environment.json"} <= {
        p.name for p in built.path.iterdir()
    }
    assert any("six==1.17.0" in line for line in lines)
    assert (built.path / "build.log").read_text().splitlines() == lines
    started = time.monotonic()
    assert build(TINY, home, lines.append) == built == Environment.open(built.path)
    assert time.monotonic() - started < 0.5 * load_factor()


def test_installed_programs_start(home: Home) -> None:
    built = build(RuntimeSpec(python_packages=("tabulate==0.10.0",), run=("pip --version",)), home, lambda line: None)
    shown = subprocess.run([built.path / "venv" / "bin" / "tabulate", "-h"], capture_output=True, text=True, check=True)
    assert "Usage" in shown.stdout


def test_an_unknown_package_fails_with_the_resolvers_sentence_and_leaves_nothing(home: Home) -> None:
    lines: list[str] = []
    with pytest.raises(BuildError, match="Because no-such-package-of-puna was not found") as caught:
        build(RuntimeSpec(python_packages=("six", "no-such-package-of-puna==1.0")), home, lines.append)
    assert caught.value.exit_code != 0 and "python_packages" in caught.value.hint
    assert "no-such-package-of-puna" in caught.value.detail
    assert leftovers(home) == []


def test_packages_that_contradict_each_other_are_named(home: Home) -> None:
    with pytest.raises(BuildError, match=r"six==1\.17\.0 and six>=1\.18"):
        build(RuntimeSpec(python_packages=("six==1.17.0", "six>=1.18")), home, lambda line: None)


def test_run_lines_run_in_order_in_the_environment_and_stay_out_of_the_log(home: Home) -> None:
    lines: list[str] = []
    run = ("export TOKEN=hunter2; echo first > note", "cat note; python -c 'import sys; print(sys.prefix)'")
    built = build(RuntimeSpec(run=run), home, lines.append)
    assert "first" in lines and str(built.path / "venv") in lines
    assert not any("hunter2" in line for line in lines)
    assert stat.S_IMODE((built.path / "spec.yaml").stat().st_mode) == 0o600


def test_a_run_line_that_fails_is_named_by_number(home: Home) -> None:
    with pytest.raises(BuildError, match="run line 2 of 2 ended with status 7: the reason") as caught:
        build(RuntimeSpec(run=("true", "echo the reason; exit 7")), home, lambda line: None)
    assert "exit 7" not in str(caught.value) + caught.value.detail
    assert leftovers(home) == []


def test_a_build_sees_no_secrets(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_hidden")
    monkeypatch.setenv("PUNA_KEY", "puna_hidden")
    wheels = [tmp_path / "one", tmp_path / "two"]
    for folder in wheels:
        folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", f"{wheels[0]} {wheels[1]} {tmp_path / 'none'}")
    lines: list[str] = []
    build(RuntimeSpec(run=("env",)), home, lines.append)
    text = "\n".join(lines)
    assert "hidden" not in text
    assert f"UV_FIND_LINKS={wheels[0]},{wheels[1]}\n" in text
    assert f"HOME={Path.home()}\n" not in text


def test_two_builders_of_one_environment_build_it_once(home: Home) -> None:
    spec, logs, found = RuntimeSpec(run=("sleep 1.5; echo built >> ../../count",)), ([], []), []  # type: ignore[var-annotated]
    threads = [threading.Thread(target=lambda log=log: found.append(build(spec, home, log.append))) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert (home.environments / "count").read_text() == "built\n"
    assert any("waiting" in line for line in logs[0] + logs[1])


def test_a_cancelled_build_stops_within_five_seconds_and_leaves_nothing(home: Home) -> None:
    begun = threading.Event()
    started = 0.0

    def log(line: str) -> None:
        if line == "begun":
            begun.set()

    def cancelled() -> bool:
        nonlocal started
        if begun.is_set() and not started:
            started = time.monotonic()
        return begun.is_set()

    with pytest.raises(BuildCancelledError):
        build(RuntimeSpec(run=("echo begun; sleep 60",)), home, log, cancelled=cancelled)
    assert time.monotonic() - started < 5 * load_factor()
    assert leftovers(home) == []


def test_a_crashed_build_is_cleaned_at_the_next_try(home: Home) -> None:
    spec = RuntimeSpec(run=("test -e ../../once || { touch ../../once; touch ../../begun; sleep 60; }",))
    code = (
        "from pathlib import Path; from puna.home import Home; from puna.config.runtime import RuntimeSpec\n"
        "from puna.packaging.environment import build\n"
        f"build(RuntimeSpec(run={spec.run!r}), Home(Path({str(home.root)!r})), print)"
    )
    builder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while not (home.environments / "begun").exists():
        assert time.monotonic() < end and builder.poll() is None
        time.sleep(0.05)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    path = home.environments / spec.digest[:SHORT]
    (path / "half-written").write_text("")
    with pytest.raises(NotFoundError):
        Environment.open(path)
    built = build(spec, home, lambda line: None)
    assert built.path == path and not (path / "half-written").exists()
    assert json.loads((path / "environment.json").read_text())["digest"] == spec.digest


def test_a_python_that_is_not_there_is_not_downloaded(home: Home) -> None:
    with pytest.raises(BuildError, match=r"no Python 3\.99") as caught:
        build(RuntimeSpec(python_version="3.99"), home, lambda line: None)
    assert "uv python install 3.99" in caught.value.hint
    assert find_python(f"{sys.version_info.major}.{sys.version_info.minor}", find_uv(), {}) == sys.executable


def test_an_interpreter_of_another_version_is_found_and_used(home: Home) -> None:
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    others = {
        found.name
        for folder in surroundings.python_path(os.environ["PATH"]).split(os.pathsep)
        for found in Path(folder).glob("python3.[0-9]*")
        if re.fullmatch(r"python3\.(8|9|1\d)", found.name) and found.name != own
    }
    if not others:
        pytest.skip("this machine has one Python only")
    version = min(others).removeprefix("python")
    built = build(RuntimeSpec(python_version=version), home, lambda line: None)
    shown = subprocess.run([built.python, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(f"Python {version}.")


def test_a_driver_older_than_the_cuda_asked_for_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    lines: list[str] = []
    for label in ("CUDA Version", "CUDA UMD Version"):
        smi.write_text(f"#!/bin/sh\necho '| NVIDIA-SMI 550.1   Driver Version: 550.1   {label}: 12.4 |'\n")
        smi.chmod(0o755)
        for wanted in ("12.1.1", "12.4.1", "12.9.0", None):
            environment.warn_of_driver(wanted, lines.append)
    assert lines == ["warning: the app wants CUDA 12.9.0; the driver here goes up to 12.4"] * 2


# What a machine without the package, or without dpkg, looks like from inside a build.
DPKG = "#!/bin/sh\nfor name; do :; done\n[ -e {folder}/$name ] && echo installed\n"
APT = """\
#!/bin/sh
echo apt-get $*
[ $1 = update ] && exit 0
[ -e {folder}/broken ] && echo 'E: Unable to locate it' && exit 100
exit 0
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "machine"
    folder.mkdir()
    for name, text in (("dpkg-query", DPKG), ("apt-get", APT), ("sudo", '#!/bin/sh\nshift\nexec "$@"\n')):
        (folder / name).write_text(text.format(folder=folder) if name != "sudo" else text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_missing_system_packages_come_from_apt_where_that_is_allowed(
    home: Home, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, lines = RuntimeSpec(system_packages=("ffmpeg", "libfoo-dev")), []  # type: ignore[var-annotated]
    (machine / "ffmpeg").touch()
    monkeypatch.setenv("PUNA_APT", "0")
    with pytest.raises(BuildError, match="missing system packages: libfoo-dev") as caught:
        build(spec, home, lines.append)
    assert "apt-get install -y libfoo-dev" in caught.value.hint and leftovers(home) == []
    monkeypatch.setenv("PUNA_APT", "1")
    (machine / "broken").touch()
    with pytest.raises(BuildError, match="E: Unable to locate it"):
        build(spec, home, lines.append)
    (machine / "broken").unlink()
    build(spec, home, lines.append)
    assert any(line.endswith("install -y -q --no-install-recommends -- libfoo-dev") for line in lines)


def test_a_package_under_its_new_name_counts(home: Home, machine: Path) -> None:
    (machine / "libgl1").touch()
    lines: list[str] = []
    build(RuntimeSpec(system_packages=("libgl1-mesa-glx",)), home, lines.append)
    assert any("libgl1 is its name" in line for line in lines)


def test_a_machine_without_dpkg_is_only_warned_about(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    lines: list[str] = []
    build(RuntimeSpec(system_packages=("libssl-dev",)), home, lines.append)
    assert any(line.startswith("warning: no dpkg") for line in lines)


def test_a_password_in_an_address_is_masked_in_the_log_and_its_file(home: Home) -> None:
    lines: list[str] = []
    built = build(RuntimeSpec(run=("echo from https://me:hunter2@127.0.0.1/simple",)), home, lines.append)
    text = (built.path / "build.log").read_text()
    assert "from https://***" in text and "hunter2" not in text + "\n".join(lines)
