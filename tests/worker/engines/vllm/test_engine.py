"""The batches by which vLLM's kernels are compiled ahead, on an engine that notes what it is asked."""

from __future__ import annotations

import pytest

from puna.worker.engines.vllm import engine


class Recorder:
    """An engine that notes what it is asked."""

    concurrency, max_model_len = 20, 2048

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[tuple[str, object], ...]]] = []

    def stream(self, prompt: list[int], params: dict[str, object]) -> list[object]:
        self.asked.append((len(prompt), tuple(sorted(params.items()))))
        if params.get("top_k") == 41:
            raise ValueError("top_k")
        return []


def test_compiling_ahead_runs_every_way_of_sampling_and_up_to_the_largest_batch() -> None:
    recorder = Recorder()
    engine.compile_ahead(recorder)
    ways = {params for _, params in recorder.asked}
    assert len(ways) == len(engine.SAMPLING)
    assert engine.batch_sizes(20) == [1, 2, 3, 5, 8, 16, 20]
    assert max(length for length, _ in recorder.asked) == engine.LONG_PROMPT_TOKENS


def test_an_error_while_compiling_ahead_fails_the_validation() -> None:
    with pytest.raises(ValueError, match="top_k"):
        engine.run_batch(Recorder(), [[1], [2]], {"top_k": 41})
