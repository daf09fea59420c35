"""Each step says up to WORDS more words of its own prompt for every request that is in."""

import glob
import json
import os
import threading
import time
from types import SimpleNamespace as Record

from vllm import widest
from vllm.sampling_params import RequestOutputKind

WORDS, STEP_S = 4, 0.001


def words_by_id(model):
    """The tokenizer's vocabulary, read when a prompt comes as token ids."""
    name = "models--" + model.replace("/", "--")
    pattern = os.path.join(os.environ["HF_HOME"], "hub", name, "snapshots", "*", "tokenizer.json")
    with open(glob.glob(pattern)[0], encoding="utf-8") as file:
        return {number: word for word, number in json.load(file)["model"]["vocab"].items()}


def said(prompt, model):
    """A prompt's words, whatever shape it came in."""
    if isinstance(prompt, dict) and "prompt_token_ids" in prompt:
        known = words_by_id(model) if any(prompt["prompt_token_ids"]) else {}
        return [known.get(number, str(number)) for number in prompt["prompt_token_ids"]]
    return (prompt["prompt"] if isinstance(prompt, dict) else prompt).split()


def reply(prompt, params, model):
    """All that will be said: the prompt's words, not beyond a stop word or the limit."""
    words = []
    for word in said(prompt, model)[: params.max_tokens or 16]:
        if word in params.stop:
            break
        words.append(word)
    return words


class LLMEngine:
    """Continuous batching: a request comes in between two steps and leaves when it has said all."""

    def __init__(self, model):
        self.model = model
        self.model_config = Record(max_model_len=4096, runner_type="generate")
        self.vllm_config = Record(model_config=self.model_config, scheduler_config=Record(max_num_seqs=64))
        self.requests, self.threads = {}, set()

    def add_request(self, request_id, prompt, params, lora_request=None, priority=0):
        """A request comes in; its parameters are its own from here."""
        self.threads.add(threading.get_ident())
        params = params.clone()
        entry = Record(prompt=prompt, params=params, words=reply(prompt, params, self.model), done=0)
        self.requests[request_id] = entry
        return request_id

    def abort_request(self, request_ids, internal=False):
        """Its client has gone."""
        for request_id in request_ids:
            self.requests.pop(request_id, None)

    def has_unfinished_requests(self):
        """Something runs."""
        return bool(self.requests)

    def get_num_unfinished_requests(self):
        """So many run."""
        return len(self.requests)

    def step(self):
        """Some more words for everybody."""
        self.threads.add(threading.get_ident())
        assert len(self.threads) == 1, "the engine is used by several threads"
        widest.note(len(self.requests))
        time.sleep(STEP_S)
        return [output for output in (self._advance(*item) for item in list(self.requests.items())) if output]

    def _advance(self, request_id, entry):
        begun, entry.done = entry.done, min(entry.done + WORDS, len(entry.words))
        finished = entry.done == len(entry.words)
        if finished:
            del self.requests[request_id]
        kind = entry.params.output_kind
        if kind == RequestOutputKind.FINAL_ONLY and not finished:
            return None
        words = entry.words[begun : entry.done] if kind == RequestOutputKind.DELTA else entry.words[: entry.done]
        text, reason = " ".join(words), "length" if finished else None
        choices = [
            Record(index=index, text=text, token_ids=words, finish_reason=reason) for index in range(entry.params.n)
        ]
        prompt = entry.prompt if isinstance(entry.prompt, str) else None
        return Record(
            request_id=request_id, prompt=prompt, prompt_token_ids=[], outputs=choices, finished=finished, metrics=None
        )
