"""What is printed: tables, curves, tokens and progress, on a terminal and off one."""

import pytest

from puna.cli import output


def test_a_curve_falls_from_left_to_right(capsys: pytest.CaptureFixture[str]) -> None:
    output.curve([(step, 10 - step) for step in range(10)], width=20, height=5)
    rows = capsys.readouterr().out.splitlines()
    columns = [row.index("•") for row in rows if "•" in row]
    assert columns == sorted(columns) and "10.000" in rows[0] and "1.000" in rows[4]


def test_a_flat_curve_and_none_at_all_are_drawn_too(capsys: pytest.CaptureFixture[str]) -> None:
    output.curve([(1, 2.0), (2, 2.0)])
    output.curve([])
    assert "no points yet" in capsys.readouterr().out


def test_learnt_tokens_are_bracketed_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.tokens([("hi ", False), ("yes", True)])
    assert capsys.readouterr().out == "hi [yes]\n"


def test_progress_off_a_terminal_says_the_end_and_not_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    watch = output.Watch()
    watch.stage("train")
    for step in range(1, 101):
        watch.advance(step, 100, loss=1 / step)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "train: 100/100  loss 0.01" and len(lines) <= 3


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    watch = output.Watch(quiet=True)
    watch.stage("train")
    watch.advance(1, 1)
    watch.note("x")
    watch.close()
    assert capsys.readouterr().err == ""


def test_an_empty_table_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("a",), [], empty="none: puna train")
    assert capsys.readouterr().out == "none: puna train\n"
