"""Commands of a build: streamed, cancelled, and never outliving their owner."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from load import load_factor
from puna.packaging import command
from puna.packaging.command import BuildCancelledError, masked

pytestmark = pytest.mark.process

ENV = {"PATH": os.environ["PATH"]}


def never() -> bool:
    return False


def sh(line: str, folder: Path, **more: object) -> tuple[int, list[str]]:
    options = {"log": lambda line: None, "cancelled": never} | more
    return command.run(["/bin/sh", "-c", line], ENV, folder, **options)  # type: ignore[arg-type]


def wait_for(condition: object, seconds: float = 5) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_lines_come_as_they_are_written_and_the_status_last(tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    status, lines = sh(
        "echo one; sleep 0.6; echo two >&2; exit 3", tmp_path, log=lambda line: seen.append((line, time.monotonic()))
    )
    assert (status, lines) == (3, ["one", "two"])
    assert seen[1][1] - seen[0][1] > 0.4


def test_the_environment_is_the_one_given(tmp_path: Path) -> None:
    _, lines = sh("env", tmp_path)
    names = {line.partition("=")[0] for line in lines}
    assert names <= {"PATH", "PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE"}


def test_credentials_and_colours_do_not_reach_the_log(tmp_path: Path) -> None:
    _, lines = sh(r"printf '\033[31mfrom https://me:pass@x.example/simple\033[0m\n'", tmp_path)
    assert lines == ["from https://***@x.example/simple"]
    assert masked("git+https://token@h/x https://h/a@b") == "git+https://***@h/x https://h/a@b"


def test_of_a_progress_bar_the_last_state_is_kept(tmp_path: Path) -> None:
    assert sh(r"printf '10%%\r50%%\r100%%\n'", tmp_path)[1] == ["100%"]


def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    status, lines = command.run(["no-such-program"], ENV, tmp_path, log=lambda line: None, cancelled=never)
    assert status == 127 and "no-such-program" in lines[0]


def test_what_a_command_leaves_in_the_background_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    sh("sleep 100 & echo $! > pid", tmp_path)
    assert time.monotonic() - started < 5 * load_factor()
    assert wait_for(lambda: not alive(int((tmp_path / "pid").read_text())))


def test_cancelling_ends_all_descendants_within_five_seconds(tmp_path: Path) -> None:
    line = "trap '' TERM; (trap '' TERM; sleep 100) & echo $! > pid; sleep 100"
    started = time.monotonic()
    with pytest.raises(BuildCancelledError):
        sh(line, tmp_path, cancelled=lambda: (tmp_path / "pid").exists())
    assert time.monotonic() - started < 5 * load_factor()
    assert wait_for(lambda: not alive(int((tmp_path / "pid").read_text())))


def test_a_builder_that_is_killed_takes_its_commands_along(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from puna.packaging import command\n"
        "command.run(['/bin/sh', '-c', 'sleep 100 & echo $! > pid; sleep 100'], {'PATH': '/usr/bin:/bin'},"
        f" Path({str(tmp_path)!r}), log=print, cancelled=lambda: False)"
    )
    builder = subprocess.Popen([sys.executable, "-c", code])
    pid_file = tmp_path / "pid"
    assert wait_for(lambda: pid_file.exists() and pid_file.read_text().strip(), 20)
    pid = int(pid_file.read_text())
    assert alive(pid)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert wait_for(lambda: not alive(pid), 2)


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    status, lines = sh("head -c 3500000 /dev/zero | tr '\\0' x; echo; echo end", tmp_path)
    assert status == 0 and lines[-1] == "end" and sum(map(len, lines[:-1])) == 3_500_000
    assert len(lines) >= 4 and max(map(len, lines)) < 2 * command.MAX_LINE_BYTES
