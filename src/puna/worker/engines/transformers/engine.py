"""A transformers causal language model as the worker's own code uses it: streams of rows in the running batch."""

from __future__ import annotations

import importlib
import queue
import threading
from typing import Any, Dict, Iterator, List, Optional

from puna.worker.engines.engine import Delta, Engine, EngineRefusal, LoadedAdapter
from puna.worker.engines.transformers.draw import Draw, Forms, Matcher, can_hold
from puna.worker.engines.transformers.loop import MAX_ROWS, BatchRow, Unlike
from puna.worker.engines.transformers.shared import Part, SharedModel
from puna.worker.openai.parameters import FORMS

REPLACEMENT = "\ufffd"  # what an unfinished character decodes to
EXTRAS = ("presence_penalty", "frequency_penalty", "logit_bias", "stop_token_ids", "min_tokens", "allowed_token_ids",
          "skip_special_tokens", "include_stop_str_in_output", "logprobs", "top_logprobs", "echo")  # fmt: skip
# What a model's own generation_config.json says of these holds for requests that do not, as on vLLM.
OF_MODEL = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class TransformersEngine(Engine):
    """One model of the app."""

    kind = "transformers"

    def __init__(self, model: Any, name: str, shared: SharedModel) -> None:
        self._model, self._shared, self.model = model, shared, name
        self.concurrency = MAX_ROWS
        self.max_model_len = int(getattr(model.config, "max_position_embeddings", 0) or 0)
        self.extras = (EXTRAS + FORMS * can_hold()) if shared.loop is not None else ()
        self._forms = Forms()
        self._tokenizer: Any = None
        self._is_warming = False

    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(self.model)
        return self._tokenizer

    def first_token(self) -> None:
        # It needs no text: a tokenizer takes its time, and some models lie beside none.
        self._is_warming = True
        try:
            super().first_token()
        finally:
            self._is_warming = False

    def stream(
        self, prompt: List[int], params: Dict[str, Any], adapter: Optional[LoadedAdapter] = None
    ) -> Iterator[Delta]:
        given = {name: value for name, value in params.items() if value is not None}
        if adapter is not None:
            raise EngineRefusal("a model of transformers takes no adapters with requests: use vLLM, or merge it")
        limit = self.max_model_len or len(prompt) + int(given.get("max_tokens", 256))
        if not prompt or len(prompt) >= limit:
            raise EngineRefusal("the prompt has %d tokens; this model takes %d with the reply" % (len(prompt), limit))
        most = min(int(given.get("max_tokens", 256)), limit - len(prompt))
        said = self._model.generation_config.to_diff_dict()
        given = dict({name: said[name] for name in OF_MODEL if said.get(name) is not None}, **given)
        return self._joined(prompt, given, most)

    def _joined(self, prompt: List[int], params: Dict[str, Any], most: int) -> Iterator[Delta]:
        """The choices as rows of the running batch."""
        loop = self._shared.loop
        if loop is None:
            yield from self._as_they_come(prompt, params, most)
            return
        inbox: Any = queue.SimpleQueue()
        texts = [self._text(params) for _ in range(int(params.get("n", 1)))]
        rows = self._rows(prompt, params, most, inbox)
        try:
            loop.add(rows)
            living = set(range(len(rows)))
            while living:
                index, step = inbox.get()
                if step.error is not None:
                    raise step.error
                if index not in living:
                    continue
                is_last = step.reason is not None
                # As vLLM has it: a token that ends a reply is counted, and is no part of its text.
                is_told = step.token not in rows[index].ends or texts[index].has_stop
                text = texts[index].add(step.token if is_told else None, is_last)
                delta = Delta(index, text, [step.token], step.reason)
                delta.scores = [] if step.score is None else [step.score]
                delta.prompt_scores = step.prompt
                if texts[index].is_stopped:
                    delta.finish_reason = "stop"
                if delta.finish_reason is not None:
                    rows[index].is_abandoned = True
                    living.discard(index)
                yield delta
        except Unlike:  # of the first step: nothing has been yielded yet
            self._shared.loop, self.extras = None, ()
            yield from self._as_they_come(prompt, params, most)
        finally:
            for row in rows:
                row.is_abandoned = True

    def _rows(self, prompt: List[int], params: Dict[str, Any], most: int, inbox: Any) -> List[BatchRow]:
        torch = importlib.import_module("torch")
        ids = torch.tensor(prompt, device=self._model.device)
        grammar, words = self._grammar(params), int(self._model.config.vocab_size)
        ends = frozenset(self._ends(params)) | frozenset(params.get("stop_token_ids") or ())
        rows = []
        for index in range(int(params.get("n", 1))):
            row = BatchRow(ids, _draw(params, index), most, ends, lambda step, i=index: inbox.put((i, step)))  # type: ignore[misc]
            row.draw.form = None if grammar is None else Matcher(grammar, words)
            row.wants_prompt = bool(params.get("echo")) and params.get("top") is not None and index == 0
            rows.append(row)
        return rows

    def _grammar(self, params: Dict[str, Any]) -> Any:
        constraint = params.get("constraint")
        if constraint is None:
            return None
        if params.get("min_tokens") or params.get("allowed_token_ids"):
            raise EngineRefusal("a form together with `min_tokens` or `allowed_token_ids` needs vLLM")
        words = int(self._model.config.vocab_size)
        return self._forms.compiled(constraint, self.tokenizer(), words, self._ends({}))

    def _ends(self, params: Dict[str, Any]) -> List[int]:
        ends = self._model.generation_config.eos_token_id
        return [] if ends is None or params.get("ignore_eos") else ends if isinstance(ends, list) else [ends]

    def _text(self, params: Dict[str, Any]) -> TextDecoder:
        text = TextDecoder(None if self._is_warming else self.tokenizer(), params.get("stop") or [])
        text.skips_special = params.get("skip_special_tokens", True)
        text.has_stop = params.get("include_stop_str_in_output", False)
        return text

    def _as_they_come(self, prompt: List[int], params: Dict[str, Any], most: int) -> Iterator[Delta]:
        """The choices one after the other, in batches of equal settings: the model's cache cannot be joined."""
        beyond = sorted(set(params) & {"constraint", "top", *EXTRAS})
        if beyond:
            raise EngineRefusal("this model's cache cannot be joined, and so it takes no `%s`: use vLLM" % beyond[0])
        for index in range(int(params.get("n", 1))):
            yield from self._choice(index, prompt, params, most)

    def _choice(self, index: int, prompt: List[int], params: Dict[str, Any], most: int) -> Iterator[Delta]:
        part, ends = self._part(prompt, params, most)
        if params.get("seed") is not None and part.options["do_sample"]:
            part.seed, part.settings = int(params["seed"]) + index, object()  # rows of a batch draw from one generator
        inbox: Any = queue.SimpleQueue()
        part.on_tokens = inbox.put

        def work() -> None:
            try:
                self._shared.generate(part)
            except BaseException as error:  # noqa: BLE001 - raised in the thread that reads the stream
                inbox.put(error)
            inbox.put(None)

        threading.Thread(target=work, name="puna-stream", daemon=True).start()
        text = self._text(params)
        try:
            count = 0
            while True:
                token = inbox.get()
                if isinstance(token, BaseException):
                    raise token
                count += token is not None
                is_end = token is None or token in ends
                new = text.add(token, is_last=is_end or count == most)
                reason = "stop" if is_end or text.is_stopped else "length" if count == most else None
                yield Delta(index, new, [] if token is None else [token], reason)
                if reason is not None:
                    return
        finally:
            part.abandoned.set()

    def _part(self, prompt: List[int], params: Dict[str, Any], most: int) -> Any:
        torch = importlib.import_module("torch")
        config, ends = self._model.generation_config, self._ends(params)
        temperature = float(params.get("temperature", 1.0))
        options: Dict[str, Any] = {"max_new_tokens": most, "do_sample": temperature > 0}
        options["eos_token_id"] = ends or None
        options["pad_token_id"] = config.pad_token_id if config.pad_token_id is not None else (ends or [0])[0]
        if temperature > 0:
            options["temperature"] = temperature
            options.update({name: params[name] for name in ("top_p", "min_p") if name in params})
            options["top_k"] = max(0, int(params.get("top_k", 0)))
        if params.get("repetition_penalty", 1.0) != 1.0:
            options["repetition_penalty"] = params["repetition_penalty"]
        # A penalty would count the padding as well, so such a call is a batch of its own.
        settings: Any = object() if "repetition_penalty" in options else ("stream", tuple(map(str, options.items())))
        ids = torch.tensor([prompt], device=self._model.device)
        return Part(ids, torch.ones_like(ids), settings, options), ends


def _draw(params: Dict[str, Any], index: int) -> Draw:
    draw = Draw(
        float(params.get("temperature", 1.0)), int(params.get("top_k", 0)), float(params.get("top_p", 1.0)),
        float(params.get("min_p", 0.0)),
    )  # fmt: skip
    draw.repetition = float(params.get("repetition_penalty", 1.0))
    draw.presence, draw.frequency = (float(params.get(name + "_penalty", 0.0)) for name in ("presence", "frequency"))
    draw.bias = {int(token): float(bias) for token, bias in params.get("logit_bias", {}).items()}
    draw.allowed, draw.min_tokens = params.get("allowed_token_ids", []), params.get("min_tokens", 0)
    draw.top = params.get("top")
    draw.seed = None if params.get("seed") is None else int(params["seed"]) + index
    return draw


class TextDecoder:
    """Tokens in, text out: whole characters only, and nothing that may yet turn out to begin a stop."""

    def __init__(self, tokenizer: Any, stops: List[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._hold = max(map(len, stops), default=1) - 1
        self._ids: List[int] = []
        self._from = self._read = 0  # tokens before `_from` are returned; those before `_read` are decoded
        self._held = ""
        self.is_stopped = False
        self.skips_special, self.has_stop = True, False

    def add(self, token: Optional[int], is_last: bool) -> str:
        """The text that one more token makes certain."""
        if self._tokenizer is None:
            return ""
        if token is not None:
            self._ids.append(token)
        # Decoded with the tokens before them, because some tokenizers write a space by what stands to the left.
        before = self._tokenizer.decode(self._ids[self._from : self._read], skip_special_tokens=self.skips_special)
        whole = self._tokenizer.decode(self._ids[self._from :], skip_special_tokens=self.skips_special)
        if is_last or not whole.endswith(REPLACEMENT):
            self._held += whole[len(before) :]
            self._from, self._read = self._read, len(self._ids)
        places = [(self._held.find(stop), stop) for stop in self._stops if stop in self._held]
        if places:
            self.is_stopped = True
            place, stop = min(places)
            return self._held[: place + len(stop) * self.has_stop]
        size = len(self._held) if is_last else max(0, len(self._held) - self._hold)
        text, self._held = self._held[:size], self._held[size:]
        return text
