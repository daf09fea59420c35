"""A transformers causal language model as the worker's own code uses it: streams, batched with other calls."""

from __future__ import annotations

import importlib
import queue
import threading
from typing import Any, Dict, Iterator, List, Optional

from puna.worker.engine import Adapter, Delta, Engine, EngineRefusal
from puna.worker.transformers_rows import Part, Rows

CONCURRENCY = 32  # rows of one padded batch: more would wait for the longest reply among ever more
REPLACEMENT = "\ufffd"  # what an unfinished character decodes to


class TransformersEngine(Engine):
    """One model of the app."""

    kind = "transformers"

    def __init__(self, model: Any, name: str, rows: Rows) -> None:
        self._model, self._rows, self.model = model, rows, name
        self.concurrency = CONCURRENCY
        self.max_model_len = int(getattr(model.config, "max_position_embeddings", 0) or 0)
        self._tokenizer: Any = None

    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(self.model)
        return self._tokenizer

    def stream(self, prompt: List[int], params: Dict[str, Any], adapter: Optional[Adapter] = None) -> Iterator[Delta]:
        given = {name: value for name, value in params.items() if value is not None}
        if adapter is not None:
            raise EngineRefusal("a model of transformers takes no adapters with requests: use vLLM, or merge it")
        limit = self.max_model_len or len(prompt) + int(given.get("max_tokens", 256))
        if not prompt or len(prompt) >= limit:
            raise EngineRefusal("the prompt has %d tokens; this model takes %d with the reply" % (len(prompt), limit))
        most = min(int(given.get("max_tokens", 256)), limit - len(prompt))
        return self._deltas(prompt, given, most)

    def _deltas(self, prompt: List[int], params: Dict[str, Any], most: int) -> Iterator[Delta]:
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
                self._rows.generate(part)
            except BaseException as error:  # noqa: BLE001 - raised in the thread that reads the stream
                inbox.put(error)
            inbox.put(None)

        threading.Thread(target=work, name="puna-stream", daemon=True).start()
        # The warm-up's one token needs no text, and some models lie beside no tokenizer.
        text = Text(self.tokenizer() if most > 1 or params.get("stop") else None, params.get("stop") or [])
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
            part.leave()

    def _part(self, prompt: List[int], params: Dict[str, Any], most: int) -> Any:
        torch = importlib.import_module("torch")
        config = self._model.generation_config
        ends = config.eos_token_id
        ends = [] if ends is None or params.get("ignore_eos") else ends if isinstance(ends, list) else [ends]
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


class Text:
    """Tokens in, text out: whole characters only, and nothing that may yet turn out to begin a stop."""

    def __init__(self, tokenizer: Any, stops: List[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._hold = max(map(len, stops), default=1) - 1
        self._ids: List[int] = []
        self._from = self._read = 0  # tokens before `_from` are told; those before `_read` are decoded
        self._held = ""
        self.is_stopped = False

    def add(self, token: Optional[int], is_last: bool) -> str:
        """The text that one more token makes certain."""
        if self._tokenizer is None:
            return ""
        if token is not None:
            self._ids.append(token)
        # Decoded with the tokens before them, because some tokenizers write a space by what stands to the left.
        before = self._tokenizer.decode(self._ids[self._from : self._read], skip_special_tokens=True)
        whole = self._tokenizer.decode(self._ids[self._from :], skip_special_tokens=True)
        if is_last or not whole.endswith(REPLACEMENT):
            self._held += whole[len(before) :]
            self._from, self._read = self._read, len(self._ids)
        places = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.is_stopped = True
            return self._held[: min(places)]
        size = len(self._held) if is_last else max(0, len(self._held) - self._hold)
        told, self._held = self._held[:size], self._held[size:]
        return told
