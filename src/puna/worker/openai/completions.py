"""OpenAI's chat and text completions, on the engine that the app holds: request in, reply or stream of chunks out."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

from puna.worker import protocol
from puna.worker.call_table import WorkerCall
from puna.worker.engines import engine
from puna.worker.engines.engine import Delta, Engine, EngineRefusal, LoadedAdapter, Score
from puna.worker.openai import chat, parameters
from puna.worker.openai.choices import Choice, Form
from puna.worker.openai.parameters import Refusal
from puna.worker.openai.tools import Tools

PATHS = ("chat", "completion")
COMPLETION_TOKENS = 16  # OpenAI's own default
MAX_PROMPTS = 1024
Emit = Callable[[WorkerCall, bytes], None]
Gain = Tuple[int, Delta]  # choice of the reply, and what it gains


def answer(call: WorkerCall, emit: Emit) -> bytes:
    """Run one call and return its last frame; `emit` sends the frames before it.

    Raises:
        Refusal: the request makes no sense, or there is no engine. What the engine raises goes through.
    """
    model = engine.current()
    if model is None:
        name = call.head.get("model_name") or "<name>"
        raise Refusal(
            "the app of %s holds no model that can be asked this way (one loaded by vLLM, or by transformers as a "
            "causal language model): POST /v2/models/%s/infer instead" % (name, name), "model", "no_engine", 404,
        )  # fmt: skip
    job = CompletionJob(call, model)
    call.body = b""
    try:
        return _stream(job, emit) if job.streams else _whole(job)
    except EngineRefusal as error:
        raise Refusal(str(error)) from error


class CompletionJob:
    """A request, read and checked: the prompts, how to go on from them, and how to answer."""

    def __init__(self, call: WorkerCall, model: Engine) -> None:
        self.call, self.model = call, model
        body = _parse(call.body)
        self.is_chat = call.head.get("path") == "chat"
        self.name = body["model"] if isinstance(body.get("model"), str) else str(call.head.get("model_name", ""))
        self.streams = parameters.flag(body, "stream")
        self.tells_usage = self.streams and _include_usage(body)
        self.params = parameters.read(body, call.head["path"], model.extras)
        asked = Tools(body, model.extras)
        constraint = asked.constraint()
        if constraint is not None:
            if "constraint" in self.params:
                raise Refusal("`tool_choice` and another parameter both hold the reply to a form", "tool_choice")
            self.params["constraint"] = constraint
        tokenizer = model.tokenizer()
        named = "" if asked.is_held else asked.named
        self.prompts = [chat.prompt_of(tokenizer, body, named)] if self.is_chat else prompts_of(tokenizer, body)
        self.form = Form(self.is_chat, tokenizer, self.params.get("top"), asked)
        self.echoes = _echoes(tokenizer, body, self.prompts) if self.params.get("echo") else []
        self.scores: Dict[int, List[Score]] = {}
        most = self._room(parameters.max_tokens(body))
        self.only_echoes = most == 0  # engines give one token at least
        self.params["max_tokens"] = max(1, most)
        self.adapter = _adapter(call, model)
        self.choices = len(self.prompts) * int(self.params.get("n", 1))
        self.id = ("chatcmpl-" if self.is_chat else "cmpl-") + os.urandom(12).hex()
        self.created = int(time.time())
        self.reply_tokens = 0

    def _room(self, asked: Optional[int]) -> int:
        """Tokens for each reply; what is left of the context when a chat does not say."""
        longest, limit = max(map(len, self.prompts)), self.model.max_model_len
        where = "messages" if self.is_chat else "prompt"
        if not longest:
            raise Refusal("the prompt is empty", where)
        if asked is None and not (self.is_chat and limit):
            asked = COMPLETION_TOKENS
        if limit and longest + (asked or 1) > limit:
            raise Refusal(
                "this model's maximum context length is %d tokens; the prompt has %d and the reply may have %s"
                % (limit, longest, asked or "1 at least"), where, "context_length_exceeded",
            )  # fmt: skip
        return limit - longest if asked is None else asked

    def gains(self) -> Iterator[Gain]:
        """Yield the choices' deltas as they come, and count the reply's tokens.

        Raises:
            RuntimeError: the engine left a reply without an end; what the engine raises goes through.
        """
        ended = 0
        for index, delta in self._of_prompt(0) if len(self.prompts) == 1 else self._of_all():
            if delta.prompt_scores is not None:
                self.scores[index * len(self.prompts) // self.choices] = delta.prompt_scores
            if self.only_echoes:
                delta = Delta(index, "", [], "length")
            self.reply_tokens += len(delta.token_ids)
            ended += delta.finish_reason is not None
            yield index, delta
        if ended < self.choices and not self.call.is_answered:
            raise RuntimeError("the engine ended %d of %d replies without a reason" % (self.choices - ended, ended))

    def _of_prompt(self, number: int) -> Iterator[Gain]:
        """Yield one prompt's deltas until its choices have ended, or nobody waits for more."""
        stream: Any = self.model.stream(self.prompts[number], self.params, self.adapter)
        try:
            for delta in stream:
                if self.call.is_answered:
                    return
                yield number * (self.choices // len(self.prompts)) + delta.index, delta
        finally:
            with contextlib.suppress(AttributeError):  # an iterator without `close` has nothing to end in the engine
                stream.close()

    def _of_all(self) -> Iterator[Gain]:
        """Run each prompt in a thread, as many at once as the engine likes: it is the engine that batches them."""
        gains: Any = queue.SimpleQueue()
        waiting = iter(range(len(self.prompts)))
        lock, stopped = threading.Lock(), threading.Event()

        def work() -> None:
            try:
                while not stopped.is_set():
                    with lock:
                        number = next(waiting, None)
                    if number is None:
                        break
                    for gain in self._of_prompt(number):
                        gains.put(gain)
                        if stopped.is_set():
                            break
            except BaseException as error:  # noqa: BLE001 - raised again where the gains are read
                gains.put(error)
            gains.put(None)

        left = max(1, min(len(self.prompts), self.model.concurrency))
        threads = [threading.Thread(target=work, daemon=True) for _ in range(left)]
        for thread in threads:
            thread.start()
        try:
            while left:
                gain = gains.get()
                if isinstance(gain, BaseException):
                    raise gain
                left -= gain is None
                if gain is not None:
                    yield gain
        finally:
            stopped.set()
            for thread in threads:
                thread.join()

    def echo(self, choice: Choice, index: int) -> None:
        """Put the prompt before its choice, where that was asked for."""
        if self.echoes:
            number = index * len(self.prompts) // self.choices
            choice.echo(self.echoes[number], self.prompts[number], self.scores.get(number))

    def usage(self) -> Dict[str, int]:
        """Tokens so far."""
        asked = sum(map(len, self.prompts))
        return {
            "prompt_tokens": asked, "completion_tokens": self.reply_tokens, "total_tokens": asked + self.reply_tokens
        }  # fmt: skip

    def document(self, kind: str, choices: List[Dict[str, Any]]) -> Dict[str, Any]:
        """A reply or a chunk."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name, "choices": choices}


def _adapter(call: WorkerCall, model: Engine) -> Optional[LoadedAdapter]:
    adapter = call.head.get("adapter")
    if not adapter:
        return None
    if not model.takes_adapters:
        raise Refusal(
            "the app holds a model of %s, which answers with the one adapter that the app names: ask for `%s`, or load "
            "it with vLLM" % (model.kind, call.head.get("model_name")), "model", "unsupported_parameter",
        )  # fmt: skip
    return LoadedAdapter(adapter["name"], adapter["path"])


def prompts_of(tokenizer: Any, body: Dict[str, Any]) -> List[List[int]]:
    """The prompts of a text completion: a text, token ids, or a list of either.

    Raises:
        Refusal: it is something else.
    """
    prompt = body.get("prompt")
    many = [prompt] if isinstance(prompt, str) or _are_ids(prompt) else prompt
    if not isinstance(many, list) or not many or not all(isinstance(p, str) or _are_ids(p) for p in many):
        raise Refusal(
            "`prompt` must be a text, a list of texts, token ids, or a list of those, not %s"
            % parameters.shown(prompt),
            "prompt",
        )
    if len(many) > MAX_PROMPTS:
        raise Refusal("`prompt` has %d prompts; %d at most" % (len(many), MAX_PROMPTS), "prompt")
    special, size = parameters.flag(body, "add_special_tokens", True), len(tokenizer)
    for ids in many:
        if not isinstance(ids, str) and max(ids) >= size:
            raise Refusal("`prompt` has the token id %d; the model has %d tokens" % (max(ids), size), "prompt")
    return [chat.encode(tokenizer, p, special) if isinstance(p, str) else p for p in many]


def _echoes(tokenizer: Any, body: Dict[str, Any], prompts: List[List[int]]) -> List[str]:
    prompt = body["prompt"]
    many = prompt if isinstance(prompt, list) and len(prompt) == len(prompts) and not _are_ids(prompt) else [prompt]
    return [p if isinstance(p, str) else tokenizer.decode(prompts[at]) for at, p in enumerate(many)]


def _are_ids(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value)


def _parse(body: bytes) -> Dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal("the body is not JSON: %s" % error) from None
    if not isinstance(document, dict):
        raise Refusal("the body must be a JSON object")
    return document


def _include_usage(body: Dict[str, Any]) -> bool:
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Refusal("`stream_options` must be an object", "stream_options")
    return parameters.flag(options, "include_usage")


def _whole(job: CompletionJob) -> bytes:
    choices = [Choice(job.form, index) for index in range(job.choices)]
    for index, delta in job.gains():
        choices[index].add(delta)
    for index, choice in enumerate(choices):
        job.echo(choice, index)
    ended = [choice.whole() for choice in choices] if not job.call.is_answered else []
    reply = job.document("chat.completion" if job.is_chat else "text_completion", ended)
    reply["usage"] = job.usage()
    return protocol.encode_reply(job.call.request_id, 200, protocol.dumps(reply))


def _stream(job: CompletionJob, emit: Emit) -> bytes:
    """Nothing is sent before the engine's first word: until then an error is a reply with a status of its own."""
    call = job.call
    gains = job.gains()
    first = next(gains, None)
    choices = [Choice(job.form, index) for index in range(job.choices)]

    def send(pieces: List[Dict[str, Any]], usage: Optional[Dict[str, int]] = None) -> None:
        chunk = job.document("chat.completion.chunk" if job.is_chat else "text_completion", pieces)
        if job.tells_usage:
            chunk["usage"] = usage
        emit(call, protocol.encode(protocol.CHUNK, call.request_id, chunk))

    call.stream_begun = True
    emit(call, protocol.encode(protocol.BEGIN, call.request_id, {}))
    if job.is_chat:
        for index in range(job.choices):
            delta = {"role": "assistant", "content": ""}
            send([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
    echoed: Set[int] = set()
    for index, gain in itertools.chain([first] if first else [], gains):
        if index not in echoed:
            echoed.add(index)
            job.echo(choices[index], index)
        choices[index].add(gain)
        for piece in choices[index].pieces():
            send([piece])
    if job.tells_usage:
        send([], job.usage())
    return protocol.encode(protocol.END, call.request_id, {"tokens": job.usage()["total_tokens"]})
