"""The offline engine."""

from vllm.engine.llm_engine import LLMEngine
from vllm.sampling_params import RequestOutputKind, SamplingParams


class Counter:
    """Ids of requests."""

    value = -1

    def __next__(self):
        self.value += 1
        return self.value


class LLM:
    """Adds requests, then steps until they are done."""

    def __init__(self, model, **kwargs):
        self.llm_engine = LLMEngine(model)
        self.request_counter = Counter()
        self.model_config = self.llm_engine.model_config

    def get_tokenizer(self):
        """The model's own."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.llm_engine.model)

    def get_default_sampling_params(self):
        """Those of the model."""
        return SamplingParams()

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        """The outputs, in order."""
        prompts = prompts if isinstance(prompts, list) else [prompts]
        many = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        for prompt, params in zip(prompts, many, strict=True):
            params = params or SamplingParams()
            params.output_kind = RequestOutputKind.FINAL_ONLY
            self.llm_engine.add_request(str(next(self.request_counter)), prompt, params, lora_request)
        outputs = []
        while self.llm_engine.has_unfinished_requests():
            outputs += [o for o in self.llm_engine.step() if o.finished]
        return sorted(outputs, key=lambda o: int(o.request_id))

    def chat(self, messages, sampling_params=None, *, use_tqdm=True, **_options):
        """A conversation, or several."""
        talks = messages if isinstance(messages[0], list) else [messages]
        prompts = ["\n".join(m["role"] + ": " + m["content"] for m in talk) for talk in talks]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)
