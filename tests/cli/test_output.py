"""What is printed: tables, curves, tokens and progress, on a terminal and off one."""

import pytest

from puna.cli import output


def test_a_curve_falls_from_left_to_right(capsys: pytest.CaptureFixture[str]) -> None:
    output.curve([(step, 10 - step) for step in range(10)], width=20, height=5)
    rows = capsys.readouterr().out.splitlines()
    columns = [row.index("•") for row in rows if "•" in row]
    assert columns == sorted(columns) and "10.000" in rows[0] and "1.000" in rows[4]


def test_points_that_lie_apart_are_joined(capsys: pytest.CaptureFixture[str]) -> None:
    output.curve([(0, 4.0), (10, 0.0)], width=11, height=5)
    rows = capsys.readouterr().out.splitlines()
    assert sum(row.count("·") for row in rows) == 9 and sum(row.count("•") for row in rows) == 2


def test_bars_are_as_long_as_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    output.bars([("1-10", 100), ("11-20", 50), ("21-30", 1), ("31-40", 0)])
    lengths = [sum(character in "█▉▊▋▌▍▎▏" for character in row) for row in capsys.readouterr().out.splitlines()]
    assert lengths == [32, 16, 1, 0]


def test_a_flat_curve_and_none_at_all_are_drawn_too(capsys: pytest.CaptureFixture[str]) -> None:
    output.curve([(1, 2.0), (2, 2.0)])
    output.curve([])
    assert "no points yet" in capsys.readouterr().out


def test_learnt_tokens_are_bracketed_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.tokens([("hi ", False), ("ye", True), ("s", True), (" no", False)])
    assert capsys.readouterr().out == "hi [yes] no\n"


def test_progress_off_a_terminal_says_the_end_and_not_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    watch = output.ProgressDisplay()
    watch.stage("train")
    for step in range(1, 101):
        watch.advance(step, 100, loss=1 / step)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "train: 100/100  loss 0.01000" and len(lines) <= 3


def test_progress_of_training_tells_loss_rate_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([0.0, 100.0, 110.0, 120.0])  # building kernels takes most of the first step
    watch = output.ProgressDisplay(clock=lambda: next(seconds))
    watch.stage("train")
    for step in range(1, 4):
        watch.advance(step, 1200, loss=1.23456, lr=2e-4, grad_norm=0.5, tokens_per_s=12345.6)
    watch.advance(1200, 1200, loss=12.0, lr=0.0)
    first, *others, last = capsys.readouterr().err.splitlines()
    assert first == "train: 1/1,200  loss 1.235  lr 2.0e-04  12,346 tokens/s"
    assert others[-1] == "train: 3/1,200  loss 1.235  lr 2.0e-04  12,346 tokens/s  18 h 17 min left"
    assert last == "train: 1,200/1,200  loss 12.00  lr 0"


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    watch = output.ProgressDisplay(quiet=True)
    watch.stage("train")
    watch.advance(1, 1)
    watch.note("x")
    watch.close()
    assert capsys.readouterr().err == ""


def test_an_empty_table_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("a",), [], empty="none: puna train")
    assert capsys.readouterr().out == "none: puna train\n"
