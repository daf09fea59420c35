"""What is at home in an app's process: what is printed leaves it, what is kept may come back to another caller."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from puna.worker.proof import verdict
from puna.worker.proof.library import Known
from puna.worker.proof.source import NotProved, Sources


def test_only_the_process_s_own_streams_go_out(tmp_path: Path) -> None:
    for number in (1, 2):
        with open(number, "w", closefd=False) as stream:
            assert verdict._goes_out(stream)
    with (tmp_path / "kept").open("w") as file:
        assert not verdict._goes_out(file)
    assert not verdict._goes_out(file), "it is closed"
    assert not verdict._goes_out(io.StringIO())


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_an_app_whose_prints_stay_in_a_file_is_not_proved(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Known(Sources(str(tmp_path)))
    with open(1, "w", closefd=False) as out, open(2, "w", closefd=False) as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        verdict.must_be_at_home(known, False)
        with (tmp_path / "kept").open("w") as kept:
            monkeypatch.setattr(sys, name, kept)
            with pytest.raises(NotProved, match=f"sys.{name} is a file that keeps what is printed"):
                verdict.must_be_at_home(known, False)
