"""How long a whole run takes, from some of its steps: what a token, an evaluation and a checkpoint cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from trainers.gauge import Clock


def whole_run(clock: Clock, tokens: Sequence[int], warm: int, every: tuple[int, int]) -> dict[str, Any]:
    """Seconds of all steps of `tokens`; `every` is how many steps lie between evaluations and between checkpoints.

    A step's mark comes before its evaluation and checkpoint, so that these count to the step after.
    """
    eval_steps, save_steps = every
    measured = [step for step in clock.steps(tokens) if step["step"] > warm]
    before = [int(step["step"]) - 1 for step in measured]
    plain = [s for s, n in zip(measured, before, strict=True) if n % eval_steps and n % save_steps]
    token_s = sum(s["seconds"] for s in plain) / sum(s["tokens"] for s in plain)
    rest = {n: s["seconds"] - token_s * s["tokens"] for n, s in zip(before, measured, strict=True)}
    evaluation_s = _median([over for n, over in rest.items() if n % eval_steps == 0 and n % save_steps])
    saves = [over - (evaluation_s if n % eval_steps == 0 else 0.0) for n, over in rest.items() if n % save_steps == 0]
    checkpoint_s = _median(saves)
    steps = len(tokens)
    # One of each after the last step, and one evaluation before the first.
    evaluations, checkpoints = -(-steps // eval_steps) + 1, -(-steps // save_steps)
    training_s = token_s * sum(tokens) + evaluations * evaluation_s + checkpoints * checkpoint_s
    seconds = sum(s["seconds"] for s in measured)
    begin_s = max(0.0, clock.seconds[0] - token_s * tokens[0] - evaluation_s)
    return {
        "steps_of_the_job": steps,
        "tokens_of_the_job": sum(tokens),
        "steps_measured": len(measured),
        "tokens_per_s": 1 / token_s,
        "seconds_per_evaluation": evaluation_s,
        "evaluations": evaluations,
        "seconds_per_checkpoint": checkpoint_s,
        "checkpoints": checkpoints,
        "checkpoints_measured": len(saves),
        "begin_s": begin_s,
        "training_s": training_s,
        "whole_s": begin_s + training_s,
        "whole_by_proportion_s": begin_s + seconds / sum(s["tokens"] for s in measured) * sum(tokens),
        "steps": measured,
    }


def _median(seconds: Sequence[float]) -> float:
    return max(0.0, statistics.median(seconds)) if seconds else 0.0


def curves_apart(one: Sequence[float], other: Sequence[float], window: int = 10) -> dict[str, float]:
    """The largest relative difference of two loss curves, step by step and of their means over `window` steps."""

    def largest(a: Sequence[float], b: Sequence[float]) -> float:
        return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))

    def smooth(losses: Sequence[float]) -> list[float]:
        width = min(window, len(losses))
        return [statistics.fmean(losses[at : at + width]) for at in range(len(losses) - width + 1)]

    return {"raw": largest(one, other), "smoothed": largest(smooth(one), smooth(other)), "window": window}
