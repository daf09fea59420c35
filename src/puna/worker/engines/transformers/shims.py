"""transformers, changed in place: fast tokenizers, `from_pretrained`, and `generate`, which becomes rows of a batch."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import math
import os
import threading
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from puna.worker.app import calllog, scope
from puna.worker.engines import engine as engines
from puna.worker.engines.engine import SAFE, LoadedAdapter
from puna.worker.engines.transformers.draw import Draw
from puna.worker.engines.transformers.engine import TransformersEngine
from puna.worker.engines.transformers.loop import BatchLoop
from puna.worker.engines.transformers.shared import GenerateRows, Part, SharedModel

CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
# These set the state and use it, or use it without holding the interpreter's lock; those that a version has.
METHODS = ("_encode_plus", "_batch_encode_plus", "_decode", "set_truncation_and_padding", "_add_tokens")
_locks: List[Any] = []


def shim_tokenizers(module: Any) -> None:
    """Change the class of fast tokenizers in `transformers.tokenization_utils_fast`, or what it became in version 5.

    Padding and truncation are state of the half in Rust, now set and used by one call at a time: of two threads with
    different arguments, one got the other's padding, or the error "Already borrowed".
    """
    for name in CLASSES:
        kind = getattr(module, name, None)
        if kind is None or getattr(vars(kind).get("_decode"), SAFE, False):
            continue
        for method in METHODS:
            if callable(vars(kind).get(method)):
                setattr(kind, method, _alone(vars(kind)[method]))


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        # By the half in Rust: copies of a tokenizer share it.
        with _locks[id(getattr(self, "_tokenizer", None)) // 64 % len(_locks)]:
            return method(self, *arguments, **options)

    setattr(call, SAFE, True)
    return call


def _renew() -> None:
    """Also in a forked child, where nobody is left to give back what another thread held."""
    _locks[:] = [threading.RLock() for _ in range(32)]


_renew()
os.register_at_fork(after_in_child=_renew)


MARK, ORIGINAL = "_puna_rows", "_puna_generate"
# Neither their values nor the padding beside it change what a row of a batch means.
PLAIN = {"max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "min_p", "pad_token_id", "eos_token_id",
         "bos_token_id", "use_cache", "num_return_sequences", "num_beams", "return_dict_in_generate"}  # fmt: skip
NEUTRAL = {"num_return_sequences": 1, "num_beams": 1, "return_dict_in_generate": False, "use_cache": True}
# What a configuration file may say without a bearing on a batch.
REMARKS = {"transformers_version", "_from_model_config", "max_length", "cache_implementation", "cache_config"}


def shim_generate(module: Any) -> None:
    """Change `GenerationMixin.generate` of `transformers.generation.utils`."""
    mixin = module.GenerationMixin
    if MARK in vars(mixin):
        return
    original = mixin.generate
    setattr(mixin, MARK, None)
    setattr(mixin, ORIGINAL, original)

    @functools.wraps(original)
    def generate(self: Any, *arguments: Any, **options: Any) -> Any:
        shared: Optional[SharedModel] = getattr(self, MARK)
        if shared is None:
            return original(self, *arguments, **options)
        part = None if scope.current() is None or shared.is_inside else _part(self, arguments, options)
        if part is None:
            return shared.alone(lambda: original(self, *arguments, **options))
        torch = importlib.import_module("torch")
        return torch.cat([part.ids, shared.generate(part)], dim=1)

    setattr(generate, engines.SAFE, True)
    mixin.generate = generate


def share_model(model: Any, name: str) -> None:
    """A model came from disk: share it when it is a causal language model and nothing else was loaded."""
    if not _is_causal(model):
        engines.only_one_at_a_time()
        return
    rows = GenerateRows(functools.partial(_run, model, getattr(type(model), ORIGINAL)))
    shared = SharedModel(BatchLoop(model) if _keeps_by_position(model) else None, rows)
    object.__setattr__(model, MARK, shared)
    engines.register(TransformersEngine(model, name, shared))


def _is_causal(model: Any) -> bool:
    if not type(model).__name__.endswith("ForCausalLM") or getattr(model.config, "is_encoder_decoder", False):
        return False
    if _rope_kind(model.config) in ("dynamic", "longrope"):
        return False  # the angles are of the longest row of the batch: a neighbour would change the words
    return "position_ids" in inspect.signature(model.forward).parameters and hasattr(type(model), MARK)


def _rope_kind(config: Any) -> str:
    said = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(said.get("rope_type") or said.get("type") or "") if isinstance(said, dict) else ""


def _keeps_by_position(model: Any) -> bool:
    """True when the model's cache is keys and values of every token: rows can be joined. Else calls are batched as they
    come."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    takes = {"attention_mask", "past_key_values", "use_cache"} <= set(inspect.signature(model.forward).parameters)
    can = getattr(model, "_supports_cache_class", True) and not getattr(model, "_is_stateful", False)
    has = all(hasattr(importlib.import_module("transformers"), n) for n in ("DynamicCache", "MinPLogitsWarper"))
    return bool(takes and can and has and not kinds and not window)


def _part(model: Any, arguments: Tuple[Any, ...], options: Dict[str, Any]) -> Optional[Part]:
    """The call as part of a batch; None when it has to run by itself."""
    given = {name: value for name, value in options.items() if value is not None or name in PLAIN}
    if arguments:
        given.setdefault("inputs", arguments[0])
    ids: Any = given.pop("input_ids", given.pop("inputs", None)) if len(arguments) < 2 else None
    mask, config = given.pop("attention_mask", None), given.pop("generation_config", None)
    if "inputs" in given or getattr(ids, "dim", int)() != 2 or not set(given) <= PLAIN:
        return None
    said = _said(model.generation_config if config is None else config)
    settings = dict(said, **given)
    if not set(settings) <= PLAIN or not isinstance(settings.get("max_new_tokens"), int):
        return None
    if any(settings.get(name) not in (None, neutral) for name, neutral in NEUTRAL.items()):
        return None
    if config is not None and config.eos_token_id is None and "eos_token_id" not in given:
        return None  # some versions take the model's own then, and some take none
    if importlib.import_module("torch").is_autocast_enabled():
        return None  # that is a thread's own
    whole = _effective(model, config, given)
    if mask is None:
        pad = settings.get("pad_token_id")
        if pad is not None and bool((ids == pad).any()):
            return None  # transformers guesses a mask here
        mask = ids.new_ones(ids.shape)
    if mask.shape != ids.shape or not bool(mask[:, -1].all()):
        return None  # padded on the right
    if not bool((mask[:, 1:] >= mask[:, :-1]).all()):
        return None  # holes
    options = dict(given) if config is None else dict(given, generation_config=config)
    part = Part(ids, mask, json.dumps([settings, str(ids.device)], sort_keys=True, default=repr), options)
    if whole is not None:
        part.most, part.ends = int(whole.max_new_tokens), _ids(whole.eos_token_id)
        part.pad = whole.pad_token_id if whole.pad_token_id is not None else (part.ends or [0])[0]
        warps = {name: getattr(whole, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        said_warps = {name: value for name, value in warps.items() if value is not None}
        part.draw = (lambda: Draw(**dict({"temperature": 1.0}, **said_warps))) if whole.do_sample else Draw
    return part


def _effective(model: Any, config: Any, given: Dict[str, Any]) -> Any:
    """The generation configuration that transformers makes of it all; None where rows cannot each have their own."""
    try:
        whole = model._prepare_generation_config(config, **given)[0]
        usual: Dict[str, Any] = getattr(type(whole)(), "_get_default_generation_params", dict)()
        strange = {n for n, v in _said(whole).items() if n not in PLAIN and usual.get(n) != v}
        lives_on = getattr(whole, "cache_implementation", None) in (None, "dynamic")
        return whole if lives_on and not strange and whole.max_new_tokens > 0 else None
    except Exception:  # noqa: BLE001 - another version's; the call runs as a batch of its own settings, and raises there
        return None


def _said(config: Any) -> Dict[str, Any]:
    """The settings of a generation configuration beyond its defaults."""
    said = config.to_diff_dict()
    # False switches off what a part of a batch cannot have: scores, attentions and the like.
    return {n: v for n, v in said.items() if v is not None and n not in REMARKS and (v is not False or n in PLAIN)}


def _run(model: Any, generate: Callable[..., Any], batch: List[Part]) -> None:
    torch = importlib.import_module("torch")
    parts = [part for part in batch if not part.abandoned.is_set()]
    if not parts:
        return
    width = max(int(part.ids.shape[1]) for part in parts)
    ids, mask = _padded(torch, [p.ids for p in parts], width), _padded(torch, [p.mask for p in parts], width)
    owners = [part for part in parts for _ in range(int(part.ids.shape[0]))]
    options = dict(parts[0].options)
    listens = any(part.on_tokens is not None for part in parts)

    transformers = importlib.import_module("transformers")
    by_row = tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 39)

    def abandoned(input_ids: Any, _scores: Any, **_: Any) -> Any:
        left = [owner.abandoned.is_set() for owner in owners]
        return torch.tensor(left, device=input_ids.device) if by_row else all(left)

    criteria = transformers.StoppingCriteriaList([abandoned])
    streamer = {"streamer": StreamListener(parts)} if listens else {}
    with _drawn_from(torch, parts[0].seed, ids.device):
        result = generate(model, input_ids=ids, attention_mask=mask, stopping_criteria=criteria, **streamer, **options)
    new, ends, first = result[:, width:], _ends(model, options), 0
    for part in parts:
        mine = new[first : first + int(part.ids.shape[0])]
        first += int(part.ids.shape[0])
        part.tokens = mine[:, : max(_length(row, ends) for row in mine.tolist())]


@contextlib.contextmanager
def _drawn_from(torch: Any, seed: Optional[int], device: Any) -> Iterator[None]:
    """torch's generators start at `seed`, and afterwards go on where they were."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _padded(torch: Any, tensors: List[Any], width: int) -> Any:
    pad = torch.nn.functional.pad
    return torch.cat([pad(t, (width - int(t.shape[1]), 0)) for t in tensors])


def _ends(model: Any, options: Dict[str, Any]) -> List[int]:
    config = options.get("generation_config", model.generation_config)
    return _ids(options.get("eos_token_id", config.eos_token_id))


def _ids(ends: Any) -> List[int]:
    return [] if ends is None else [int(e) for e in (ends if isinstance(ends, (list, tuple)) else [ends])]


def _length(tokens: List[int], ends: List[int]) -> int:
    return next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))


class StreamListener:
    """transformers' streamer for many rows: each part gets its own."""

    def __init__(self, parts: List[Part]) -> None:
        self._parts, self._has_prompt = parts, False

    def put(self, value: Any) -> None:
        """The prompts first, then one token a row and step."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        tokens, first = value.reshape(-1).tolist(), 0
        for part in self._parts:
            if part.on_tokens is not None and not part.abandoned.is_set():
                part.on_tokens(tokens[first])
            first += int(part.ids.shape[0])

    def end(self) -> None:
        """The parts notice it by the end of their call."""


PREFIX = "base_model.model."
LOADING_MARK = "_puna_adapters"


def shim_loading(module: Any) -> None:
    """Change `PreTrainedModel.from_pretrained` of `transformers.modeling_utils`."""
    kind = module.PreTrainedModel
    if LOADING_MARK in vars(kind):
        return
    original = kind.from_pretrained.__func__

    @functools.wraps(original)
    def from_pretrained(cls: Any, name: Any, *arguments: Any, **options: Any) -> Any:
        loaded = original(cls, name, *arguments, **options)
        adapter = engines.adapter_of(name)
        if adapter is not None:
            add_adapter(loaded[0] if isinstance(loaded, tuple) else loaded, adapter)
        share_model(loaded[0] if isinstance(loaded, tuple) else loaded, str(name))
        return loaded

    kind.from_pretrained = classmethod(from_pretrained)
    setattr(kind, LOADING_MARK, True)


def add_adapter(model: Any, adapter: LoadedAdapter) -> None:
    """Add W + scale * B @ A, for every pair of the adapter, computed in float32 and in memory, without PEFT.

    One adapter a model: transformers has no kernels for a batch of several, so requests cannot bring others.

    Raises:
        RuntimeError: a pair has no matrix in this model, or one that cannot be added to.
    """
    torch = importlib.import_module("torch")
    with open(os.path.join(adapter.path, "adapter_config.json"), encoding="utf-8") as file:
        config: Dict[str, Any] = json.load(file)
    load = importlib.import_module("safetensors.torch").load_file
    halves = load(os.path.join(adapter.path, "adapter_model.safetensors"))
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    places = sorted(name[len(PREFIX) : -len(".lora_A.weight")] for name in halves if name.endswith(".lora_A.weight"))
    modules = dict(model.named_modules())
    with torch.no_grad():
        for place in places:
            weight = getattr(modules.get(place), "weight", None)
            if weight is None or not weight.is_floating_point() or weight.is_meta:
                raise RuntimeError(
                    "the adapter %s cannot be added to %s of this model (missing, quantised or not in memory): load "
                    "it whole and as it is, or publish the merged model: puna merge RUN" % (adapter.name, place)
                )
            a, b = (halves["%s%s.lora_%s.weight" % (PREFIX, place, half)].to(weight.device) for half in "AB")
            weight.copy_(weight.float() + scale * (b.float() @ a.float()))
    calllog.note("the adapter %s was added to %d matrices" % (adapter.name, len(places)))
