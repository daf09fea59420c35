"""The interface of a shimmed engine: requests in, deltas out, sleep; and the engines that the app holds."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

Score = Tuple[float, List[Tuple[int, float]]]
"""The log-probability of a token, and the likeliest tokens at its place with theirs, the likeliest first."""


class Delta:
    """The addition of one step of the engine to one choice of a reply."""

    __slots__ = ("finish_reason", "index", "prompt_scores", "scores", "text", "token_ids")

    def __init__(self, index: int, text: str, token_ids: List[int], finish_reason: Optional[str]) -> None:
        self.index, self.text, self.token_ids = index, text, token_ids
        self.finish_reason = finish_reason
        """`stop`, `length`, another word of the engine's (`abort`), or None while it goes on."""
        self.scores: List[Score] = []
        """One for each of `token_ids`, where `top` asked for them."""
        self.prompt_scores: Optional[List[Score]] = None
        """Of the prompt's second token and those after it; once, where `echo` asked for them."""


class LoadedAdapter(NamedTuple):
    """A LoRA adapter in PEFT's file format, by the name that requests use."""

    name: str
    path: str


def adapter_of(model: str) -> Optional[LoadedAdapter]:
    """The adapter that a model's name means; None when it means a whole model."""
    found = adapter_entry(model)
    return found and LoadedAdapter(model, os.path.join(os.path.dirname(os.environ["PUNA_ADAPTERS"]), found["path"]))


def adapter_entry(model: Any) -> Any:
    """The entry of a model's name in the bundle's adapters.json, which PUNA_ADAPTERS names; None when it has none.

    An app loads `owner/name`, and gets the base below it, whose files stand under the same name in the bundle's Hugging
    Face cache, and the adapter on every request.
    """
    return adapter_table().get("adapters", {}).get(model) if isinstance(model, str) else None


def adapter_table() -> Dict[str, Any]:
    """The bundle's adapters.json; empty when it has none."""
    if not os.environ.get("PUNA_ADAPTERS"):
        return {}
    with open(os.environ["PUNA_ADAPTERS"], encoding="utf-8") as file:
        found: Dict[str, Any] = json.load(file)
    return found


class EngineRefusal(Exception):
    """The engine cannot do what was asked (a prompt too long, an unknown parameter): the caller's fault, HTTP 400."""


class Engine:
    """One model that batches the requests of many threads. Subclasses live beside this file, one per library."""

    kind = ""
    """`vllm` or `transformers`."""
    model = ""
    """The name that the app loaded it by."""
    concurrency = 1
    """Requests worth running at once: `infer` runs in so many threads when nothing else was asked for."""
    max_model_len = 0
    """Tokens of prompt and reply together."""
    can_sleep = False
    """`sleep` gives the GPU's memory back."""
    takes_adapters = False
    """`stream` answers with adapters that requests bring."""
    extras: Tuple[str, ...] = ()
    """The parameters that `stream` takes of those that `parameters.TABLE` leaves to engines."""

    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer of the model."""
        raise NotImplementedError

    def stream(
        self, prompt: List[int], params: Dict[str, Any], adapter: Optional[LoadedAdapter] = None
    ) -> Iterator[Delta]:
        """Run one prompt of token ids; closing the iterator ends it in the engine too.

        `params` has OpenAI's names and plain values: `max_tokens`, `temperature`, `top_p`, `top_k`, `min_p`, `n`,
        `stop` (list of text), `seed`, `repetition_penalty`, `ignore_eos`; of `extras` by the same names, but that what
        holds the reply to a form is one `constraint` (`sampling.read`), and `logprobs` are `top`: how many of the
        likeliest tokens to tell beside each; with `echo` for the prompt too.

        Raises:
            EngineRefusal: the prompt is too long, or a parameter makes no sense.
        """
        raise NotImplementedError

    def first_token(self) -> None:
        """One token that nobody reads: what is made on first use is there afterwards. Raises what `stream` raises."""
        # Several tokens of prompt: what torch compiles for a first input of length 1 is compiled for that length only.
        for _ in self.stream([0] * 8, {"max_tokens": 1, "temperature": 0.0}):
            pass

    def prepare_sleep(self) -> None:
        """Do the part of sleeping during which requests can still run; raises what says that it cannot sleep."""

    def sleep(self) -> None:
        """Give the GPU's memory back; the weights stay in host memory. Nothing runs while this is called."""
        raise NotImplementedError

    def wake(self) -> None:
        """Be ready for requests again."""
        raise NotImplementedError

    def bake(self) -> None:
        """Have everything compiled that is compiled at first use, into caches on disk."""


SAFE = "_puna_meets_nobody"
"""On methods that the worker has made safe for many threads."""

_engines: List[Engine] = []
_alone: List[bool] = []
_death_listeners: List[Callable[[str], Any]] = []


def register(engine: Engine) -> None:
    """A shim has made an engine."""
    _engines.append(engine)


def current() -> Optional[Engine]:
    """The app's engine; the first, when it has several."""
    return _engines[0] if _engines else None


def all_engines() -> List[Engine]:
    """Every engine that the app holds."""
    return list(_engines)


def only_one_at_a_time() -> None:
    """The app holds models that no engine batches: `infer` in many threads would run them over each other."""
    _alone.append(True)


def concurrency() -> int:
    """The number of threads that `infer` is worth, by the app's engine; 0 without one."""
    engine = current()
    if engine is None:
        return 0
    return 1 if _alone and engine.kind == "transformers" else engine.concurrency


def described() -> Optional[Dict[str, Any]]:
    """The app's engine, for HELLO; None when it has none."""
    engine = current()
    return {"kind": engine.kind, "model": engine.model, "can_sleep": engine.can_sleep} if engine else None


def on_death(function: Callable[[str], Any]) -> None:
    """Call `function` with the reason when an engine is in no state to go on."""
    _death_listeners.append(function)


def died(why: str) -> None:
    """Report that an engine is in no state to go on; its callers have their errors."""
    for function in _death_listeners:
        function(why)


def like_this_thread() -> Callable[[], None]:
    """A function that makes another thread compute as this one: GPU and CPU threads are each thread's own in torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return lambda: None
    threads = torch.get_num_threads()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def prepare() -> None:
        # Below torch.set_num_threads, which vLLM on CPUs replaces: its kernels' buffers count on the number.
        torch._C.set_num_threads(threads)
        if device is not None:
            torch.cuda.set_device(device)

    return prepare


def bake() -> None:
    """Run once what later starts should find in their caches: every kernel, at every size of batch.

    Raises:
        EngineRefusal: and whatever the engine raises.
    """
    for engine in _engines:
        engine.bake()


def warm_up() -> None:
    """One token from each engine, so that the first request does not pay for what is made on first use.

    Raises:
        EngineRefusal: and whatever the engine raises; such a replica would answer nobody.
    """
    for engine in _engines:
        engine.first_token()
