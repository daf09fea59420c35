"""A package `vllm` to lie beside an app: small, but it steps, refuses, aborts and breaks as an engine does."""

from pathlib import Path
from textwrap import dedent

INIT = """
    def __getattr__(name):
        import importlib
        homes = {"LLM": "vllm.entrypoints.llm", "SamplingParams": "vllm.sampling_params"}
        if name not in homes:
            raise AttributeError(name)
        return getattr(importlib.import_module(homes[name]), name)
"""
SAMPLING = """
    class RequestOutputKind:
        CUMULATIVE, DELTA, FINAL_ONLY = 0, 1, 2

    class SamplingParams:
        def __init__(self, max_tokens=4, temperature=1.0):
            if temperature < 0:
                raise ValueError("temperature must be non-negative")
            self.max_tokens, self.temperature, self.output_kind = max_tokens, temperature, RequestOutputKind.CUMULATIVE
"""
ENGINE = """
    import threading, time
    from types import SimpleNamespace as Record

    from vllm.sampling_params import RequestOutputKind

    class LLMEngine:
        '''Each step adds one word to each request. `together` waits for five of its kind, `forever` for its end.'''

        def __init__(self):
            self.model_config = Record(max_model_len=64, runner_type="generate")
            self.vllm_config = Record(model_config=self.model_config, scheduler_config=Record(max_num_seqs=8))
            self.requests, self.threads = {}, set()

        def add_request(self, request_id, prompt, params, lora_request=None, priority=0):
            self.threads.add(threading.get_ident())
            if prompt == "refuse":
                raise ValueError("this prompt is refused")
            self.requests[request_id] = Record(prompt=prompt, params=params, words=[])
            return request_id + "-internal"

        def abort_request(self, request_ids, internal=False):
            self.threads.add(threading.get_ident())
            for request_id in request_ids:
                open("aborted-" + str(self.requests.pop(request_id).prompt), "w").close()

        def has_unfinished_requests(self):
            return bool(self.requests)

        def get_num_unfinished_requests(self):
            return len(self.requests)

        def reset_prefix_cache(self):
            assert not self.requests, "requests run"
            return True

        def step(self):
            self.threads.add(threading.get_ident())
            assert len(self.threads) == 1, "the engine is used by several threads"
            time.sleep(0.002)
            prompts = [r.prompt for r in self.requests.values()]
            if "explode" in prompts and prompts.count("forever") == 2:
                raise RuntimeError("CUDA error: an illegal memory access")
            return [o for o in (self.advance(*item, prompts) for item in list(self.requests.items())) if o]

        def advance(self, request_id, request, prompts):
            if request.prompt in ("explode", "forever") or (
                request.prompt == "together" and prompts.count("together") < 5 and not request.words
            ):
                if request.prompt == "forever":
                    open("running-forever", "w").close()
                return None
            request.words.append("w%d" % len(request.words))
            finished = len(request.words) >= request.params.max_tokens
            if finished:
                del self.requests[request_id]
            is_delta = request.params.output_kind == RequestOutputKind.DELTA
            words = request.words[-1:] if is_delta else list(request.words)
            if request.params.output_kind == RequestOutputKind.FINAL_ONLY and not finished:
                return None
            reason = "length" if finished else None
            choice = Record(index=0, text=" ".join(words), token_ids=words, finish_reason=reason)
            return Record(request_id=request_id, prompt=request.prompt, outputs=[choice], finished=finished)
"""
LLM = """
    from vllm.engine import LLMEngine
    from vllm.sampling_params import RequestOutputKind

    class Counter:
        value = -1

        def __next__(self):
            self.value += 1
            return self.value

    class LLM:
        def __init__(self, model, **kwargs):
            self.llm_engine = LLMEngine()
            self.request_counter = Counter()
            self.model_config = self.llm_engine.model_config

        def get_tokenizer(self):
            return None

        def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
            prompts = [prompts] if isinstance(prompts, str) else prompts
            for prompt in prompts:
                sampling_params.output_kind = RequestOutputKind.FINAL_ONLY
                self.llm_engine.add_request(str(next(self.request_counter)), prompt, sampling_params)
            outputs = []
            while self.llm_engine.has_unfinished_requests():
                outputs += [o for o in self.llm_engine.step() if o.finished]
            return sorted(outputs, key=lambda o: int(o.request_id))

        def reset_prefix_cache(self):
            return self.llm_engine.reset_prefix_cache()
"""


def write(folder: Path, llm: str = LLM) -> None:
    """Lay the package into an app's folder, where `import vllm` finds it first."""
    files = {"__init__": INIT, "sampling_params": SAMPLING, "engine": ENGINE}
    files |= {"entrypoints/__init__": "", "entrypoints/llm": llm}
    for name, text in files.items():
        path = folder / "vllm" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
