"""What a request asks of the engine."""

import copy


class RequestOutputKind:
    """vLLM's."""

    CUMULATIVE, DELTA, FINAL_ONLY = 0, 1, 2


class SamplingParams:
    """The fields that the apps here use."""

    def __init__(self, n=1, max_tokens=16, temperature=1.0, top_p=1.0, top_k=0, stop=None, seed=None, **more):
        self.n, self.max_tokens, self.temperature, self.top_p, self.top_k = n, max_tokens, temperature, top_p, top_k
        self.stop = [stop] if isinstance(stop, str) else list(stop or [])
        self.seed, self.output_kind = seed, RequestOutputKind.CUMULATIVE
        self.extra_args = more.pop("extra_args", None)
        for name, value in more.items():
            setattr(self, name, value)

    def clone(self):
        """As vLLM does when a request enters."""
        return copy.deepcopy(self)
