"""Knowledge of libraries: functions that keep nothing of their arguments, and the objects that are there."""

from __future__ import annotations

import functools
import os
import sys
import threading
import types
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from puna.worker.engines import engine as engines
from puna.worker.proof.source import Sources

# How a known function treats what it is given.
SCALAR = "scalar"  # reads it; the result is plain
FRESH = "fresh"  # reads it; the result is new and holds nothing of it but what was given
PURE = "pure"  # reads it; the result is new, and may hold or be what was given
CALLS = "calls"  # calls the functions that it is given with elements of the rest, and is pure besides
FIRST = "first"  # calls its first argument with the others
WRITES = "writes"  # changes the file of that name
UNIQUE = "unique"  # the result is no other call's
QUEUE, THREAD, STREAMER, BUFFER, LOOP, CONTEXT = "queue", "thread", "streamer", "buffer", "loop", "context"

_FUNCTIONS = """
builtins scalar: abs all any ascii bin bool bytes callable chr complex divmod float format hash hex id int isinstance
    issubclass len oct ord pow print range repr round str
builtins pure: bytearray dict enumerate frozenset iter list max min next object reversed set slice sorted sum tuple
    zip
builtins calls: filter map
builtins fresh: ArithmeticError AssertionError AttributeError BaseException ConnectionError EOFError Exception
    FileNotFoundError ImportError IndexError KeyError KeyboardInterrupt LookupError MemoryError NotImplementedError
    OSError PermissionError RuntimeError StopAsyncIteration StopIteration SystemExit TimeoutError TypeError
    UnicodeDecodeError UnicodeEncodeError UnicodeError ValueError ZeroDivisionError
json scalar: dumps
json fresh: loads
orjson scalar: dumps
orjson fresh: loads
math scalar: acos asin atan atan2 ceil comb copysign cos cosh degrees dist erf exp expm1 fabs factorial floor fmod
    fsum gcd hypot isclose isfinite isinf isnan isqrt ldexp log log10 log1p log2 pow prod radians sin sinh sqrt tan
    tanh trunc
re scalar: compile escape
re fresh: findall finditer fullmatch match search split
re calls: sub subn
time scalar: asctime ctime gmtime localtime mktime monotonic monotonic_ns perf_counter perf_counter_ns process_time
    sleep strftime strptime thread_time time time_ns
uuid unique: uuid1 uuid4
uuid scalar: uuid3 uuid5
uuid fresh: UUID
secrets unique: token_bytes token_hex token_urlsafe
secrets scalar: choice compare_digest randbelow
vllm.utils unique: random_uuid
vllm.utils.uuid_utils unique: random_uuid
base64 scalar: b16decode b16encode b32decode b32encode b64decode b64encode b85decode b85encode standard_b64decode
    standard_b64encode urlsafe_b64decode urlsafe_b64encode
hashlib fresh: blake2b blake2s md5 new sha1 sha224 sha256 sha384 sha3_256 sha512
binascii scalar: a2b_base64 b2a_base64 crc32 hexlify unhexlify
html scalar: escape unescape
string fresh: Template
textwrap scalar: dedent fill indent shorten
textwrap fresh: wrap
unicodedata scalar: category name normalize
urllib.parse scalar: quote quote_plus unquote unquote_plus urlencode urljoin
urllib.parse fresh: parse_qs urlparse urlsplit
datetime fresh: date datetime time timedelta timezone
decimal fresh: Decimal
fractions fresh: Fraction
dataclasses fresh: asdict astuple
copy pure: copy
copy deepcopy: deepcopy
ast fresh: literal_eval
random scalar: betavariate choice choices gauss getrandbits normalvariate randint random randrange sample triangular
    uniform
statistics scalar: fmean mean median mode pstdev stdev variance
operator pure: add contains eq ge getitem gt le lt mul ne sub
operator fresh: itemgetter
collections pure: Counter OrderedDict defaultdict deque
itertools pure: accumulate chain combinations islice permutations product repeat zip_longest
itertools calls: dropwhile filterfalse groupby starmap takewhile
functools calls: reduce
io buffer: BytesIO StringIO
os scalar: cpu_count getcwd getenv getpid
os writes: makedirs mkdir remove rmdir unlink
os.path scalar: abspath basename dirname exists expanduser getsize isabs isdir isfile join normpath relpath split
    splitext
posixpath scalar: abspath basename dirname exists expanduser getsize isabs isdir isfile join normpath relpath split
    splitext
shutil writes: rmtree
traceback scalar: format_exc print_exc
gc scalar: collect
logging logger: getLogger
logging scalar: critical debug error exception info log warning
warnings scalar: warn
contextlib context: nullcontext suppress
threading thread: Thread
threading queue: Condition Event Lock RLock Semaphore
threading scalar: get_ident
queue queue: LifoQueue PriorityQueue Queue SimpleQueue
concurrent.futures thread: ThreadPoolExecutor
concurrent.futures pure: as_completed wait
asyncio scalar: sleep
asyncio queue: Event Lock Queue Semaphore
asyncio loop: get_event_loop get_running_loop
asyncio pure: as_completed create_task ensure_future gather run shield wait wait_for
asyncio first: to_thread
torch fresh: abs add all allclose amax amin any arange argmax argmin argsort as_tensor bmm cat clamp concat cos
    cosine_similarity cumsum diff div dot einsum empty equal exp eye flatten flip floor from_numpy full full_like
    gather histc hstack is_tensor isclose isin isnan linspace log log_softmax logsumexp masked_select matmul max mean
    median min mm mul multinomial nonzero norm numel ones ones_like outer pow prod rand randint randn relu
    repeat_interleave reshape round sigmoid sign sin softmax sort split sqrt square squeeze stack std sub sum take
    tanh tensor tile topk transpose tril triu unbind unique unsqueeze var vstack where zeros zeros_like
torch context: autocast enable_grad inference_mode no_grad set_grad_enabled
torch scalar: device
torch.nn.functional fresh: cosine_similarity cross_entropy log_softmax normalize one_hot pad relu sigmoid softmax
torch.cuda scalar: current_device device_count empty_cache is_available max_memory_allocated memory_allocated
    synchronize
torch.cuda.amp context: autocast
torch.amp context: autocast
numpy fresh: abs all allclose amax amin any append arange argmax argmin argsort around array asarray ascontiguousarray
    atleast_1d atleast_2d average bincount bool_ ceil clip concatenate copy cos cumsum diff divide dot empty exp
    expand_dims flip float16 float32 float64 floor frombuffer full full_like hstack int16 int32 int64 int8 isfinite
    isin isnan linspace log log10 log2 matmul max maximum mean median min minimum multiply nan_to_num ndarray nonzero
    ones ones_like percentile power prod quantile ravel repeat reshape round sign sin sort split sqrt squeeze stack
    std subtract sum swapaxes tile transpose uint16 uint32 uint64 uint8 unique var vstack where zeros zeros_like
numpy.linalg fresh: norm
transformers.generation.streamers streamer: AsyncTextIteratorStreamer TextIteratorStreamer TextStreamer
transformers.generation.configuration_utils fresh: GenerationConfig
vllm.inputs.data fresh: TextPrompt TokensPrompt token_inputs
vllm.sampling_params fresh: BeamSearchParams GuidedDecodingParams SamplingParams StructuredOutputsParams
vllm.lora.request fresh: LoRARequest
vllm.inputs fresh: TextPrompt TokensPrompt token_inputs
"""


def _read(text: str) -> Dict[str, List[Tuple[str, str]]]:
    """Module -> its functions, each with what it does."""
    found: Dict[str, List[Tuple[str, str]]] = {}
    for line in text.replace("\n    ", " ").strip().splitlines():
        head, _, names = line.partition(": ")
        module, effect = head.split()
        found.setdefault(module, []).extend((name, effect) for name in names.split())
    return found


def _words(text: str) -> Set[str]:
    return set(text.split())


FUNCTIONS = _read(_FUNCTIONS)
IMPORTABLE = {
    name for name in FUNCTIONS if name.split(".")[0] not in ("torch", "numpy", "transformers", "vllm", "orjson")
}
"""Modules that may be imported to look at them: the standard library's."""

# Methods of values that a call has made: of text, lists, dicts, sets, tensors, of what engines and tokenizers return.
OWN_METHODS = {
    name
    for kind in (str, bytes, bytearray, list, dict, set, frozenset, int, float)
    for name in dir(kind)
    if not name.startswith("_")
} | _words("""
    add_note all any appendleft argmax argmin as_integer_ratio astimezone astype bfloat16 bool cancelled
    char_to_token chunk clone combine contiguous cpu cuda cumsum date detach dict digest dim done double
    elements end eq exception exp expand flatten flip float fromisoformat fromtimestamp ge group groupdict
    groups gt half hexdigest int isoformat item json le log log_softmax long lt max mean min model_dump
    model_dump_json most_common move_to_end ne nonzero now numel numpy permute popleft quantize ravel repeat
    reshape result round safe_substitute sigmoid size softmax sort span split squeeze start std strftime
    substitute sum time timestamp to tobytes today tolist topk total_seconds transpose type type_as unbind
    unsqueeze utcnow view with_traceback word_ids
""")
PLAIN_RESULTS = _words("""
    capitalize casefold center count decode encode endswith find format hexdigest index isalnum isalpha isdigit
    isoformat isspace item join ljust lower lstrip removeprefix removesuffix replace rfind rjust rstrip
    startswith strftime strip swapcase timestamp title tobytes total_seconds translate upper zfill
""")
"""Those whose result is plain, whatever they are called on."""
PUTS = _words("append appendleft add insert extend update setdefault put put_nowait set_result")
"""Those after which the value holds what they were given."""
BY_KIND = {
    BUFFER: _words("read readline readlines write getvalue seek tell truncate close flush getbuffer"),
    QUEUE: _words(
        "put get put_nowait get_nowait empty full qsize task_done join set clear wait is_set acquire release notify "
        "notify_all locked"
    ),
    THREAD: _words("start join is_alive shutdown"),
    LOOP: _words("time is_running"),
    "file": _words("read readline readlines close seek tell"),
    "handler": _words("send_streamed_output finalise_streamed_output finalize_streamed_output"),
    STREAMER: _words("put end on_finalized_text"),
}
CLASS_METHODS = _words("""
    fromkeys fromhex maketrans from_bytes now utcnow today fromisoformat fromtimestamp utcfromtimestamp strptime combine
    join lower upper strip
""")
TABLE_READS = _words("""
    get items keys values copy index count union intersection difference issubset issuperset isdisjoint
    symmetric_difference
""")
LOGGER_METHODS = _words("debug info warning warn error exception critical log isEnabledFor getEffectiveLevel")
TOKENIZER_METHODS = _words("""
    apply_chat_template batch_decode batch_encode_plus build_inputs_with_special_tokens convert_ids_to_tokens
    convert_tokens_to_ids convert_tokens_to_string create_token_type_ids_from_sequences decode encode
    encode_plus get_added_vocab get_chat_template get_special_tokens_mask get_vocab num_special_tokens_to_add
    pad prepare_for_model tokenize truncate_sequences
""")
TOKENIZER_DATA = _words("""
    additional_special_tokens additional_special_tokens_ids all_special_ids all_special_tokens bos_token
    bos_token_id chat_template clean_up_tokenization_spaces cls_token cls_token_id eos_token eos_token_id
    is_fast mask_token mask_token_id model_max_length name_or_path pad_token pad_token_id padding_side sep_token
    sep_token_id special_tokens_map truncation_side unk_token unk_token_id vocab vocab_size
""")
ENGINE_METHODS = _words("reset_prefix_cache get_default_sampling_params")
"""Of vLLM's, besides those that answer prompts: between two steps of the engine."""
MODEL_DATA = _words("device dtype")


LOCKS = {type(threading.Lock()), type(threading.RLock()), threading.Semaphore, threading.BoundedSemaphore}

MARK = engines.SAFE
MOST_WRAPPED = 20


class Known:
    """The objects that are there now, by what they are known for."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._by_id: Dict[int, Tuple[Any, str]] = {}
        self._classes: Dict[int, Tuple[Any, bool]] = {}
        for module in FUNCTIONS:
            self.learn(module)

    def learn(self, name: str) -> None:
        """Look up the functions of one module, if it is loaded and is no file of the app."""
        module = sys.modules.get(name)
        if module is None or self.is_apps_module(module):
            return
        for one, effect in FUNCTIONS[name]:
            found = attribute(module, one)
            if found is not None and not self.is_apps(found):
                self._by_id[id(found)] = found, effect

    def effect(self, it: Any) -> str:
        """A function's treatment of its arguments; empty when that is not known."""
        module = getattr(it, "__module__", None)
        if id(it) not in self._by_id and module in FUNCTIONS:
            self.learn(module)  # it was imported since
        found = self._by_id.get(id(it))
        return found[1] if found is not None and found[0] is it else ""

    def is_apps_module(self, module: Any) -> bool:
        """A file of the app's folder, whatever name it has."""
        return self.sources.is_inside(getattr(module, "__file__", None) or "")

    def is_apps_class(self, kind: Any) -> bool:
        """A class from a file of the app's, or into which the app has put a function."""
        if id(kind) not in self._classes:
            found = self.is_from_app(kind) or any(map(self._leads_to_app, list(vars(kind).values())))
            self._classes[id(kind)] = kind, found
        return self._classes[id(kind)][1]

    def is_from_app(self, kind: Any) -> bool:
        """A class whose module is a file of the app's."""
        module = sys.modules.get(str(getattr(kind, "__module__", "")))
        return module is not None and self.is_apps_module(module)

    def _leads_to_app(self, it: Any) -> bool:
        """A function, method or decorated one whose code is the app's."""
        for _ in range(MOST_WRAPPED):
            if isinstance(it, types.FunctionType) and self.sources.is_inside(it.__code__.co_filename):
                return True
            if isinstance(it, property):
                return any(self._leads_to_app(f) for f in (it.fget, it.fset) if f is not None)
            inner = it.func if isinstance(it, functools.partial) else None
            if isinstance(it, (staticmethod, classmethod, types.MethodType)):
                inner = it.__func__
            elif isinstance(it, types.FunctionType) or type(it).__name__ == "_lru_cache_wrapper":
                inner = getattr(it, "__wrapped__", None)
            if inner is None:
                return False
            it = inner
        return True

    def is_apps(self, it: Any) -> bool:
        """A function or object that leads to code of the app's."""
        if isinstance(it, type):
            return self.is_apps_class(it)
        return self._leads_to_app(it) or self.is_from_app(type(it))


def attribute(module: Any, name: str) -> Any:
    try:
        return getattr(module, name, None)
    except Exception:  # noqa: BLE001 - a lazy module whose import fails: then the app cannot use it either
        return None


def engine_of(it: Any) -> str:
    """`vllm` or `transformers` for an engine that the worker has made safe for many threads; else empty."""
    for one in engines.all_engines():
        if it is getattr(one, "_llm", None) or it is getattr(one, "_model", None):
            return one.kind
    return ""


def is_marked(it: Any, name: str) -> bool:
    """A method, as the class has it, that a shim has made safe."""
    if name in getattr(it, "__dict__", {}):
        return False
    return bool(getattr(static(type(it), name), MARK, False))


def static(kind: Any, name: str) -> Any:
    """A class's attribute of that name, looked up without running anything."""
    for one in kind.__mro__:
        if name in vars(one):
            return vars(one)[name]
    return None


def has_base(it: Any, name: str, package: str) -> bool:
    """Among an object's classes is one of that name, which comes from that package."""
    return any(one.__name__ == name and one.__module__.split(".")[0] == package for one in type(it).__mro__)


def is_tokenizer(it: Any, is_apps: Callable[[Any], bool]) -> bool:
    """A tokenizer of transformers whose calls cannot meet: in Python, or with the worker's lock around Rust."""
    if not has_base(it, "PreTrainedTokenizerBase", "transformers") or any(map(is_apps, type(it).__mro__)):
        return False
    if vars(it).keys() & {"_encode_plus", "_batch_encode_plus", "_decode", "_call_one", "encode", "decode", "__call__"}:
        return False
    if not hasattr(it, "_tokenizer"):
        return True
    try:
        for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            part = getattr(it._tokenizer, name, None)
            if part is not None:
                part.__getstate__()
    except Exception:  # noqa: BLE001 - a part written in Python cannot be written down: not known to keep nothing
        return False
    return bool(getattr(static(type(it), "_decode"), MARK, False))


def is_pipeline(it: Any) -> bool:
    """transformers' pipeline for text over a model that the worker batches."""
    kind = type(it)
    if kind.__name__ != "TextGenerationPipeline" or not kind.__module__.startswith("transformers."):
        return False
    return engine_of(getattr(it, "model", None)) == "transformers"


def is_async_engine(it: Any) -> bool:
    """vLLM's own engine for asyncio; each request is known by its id."""
    return any(has_base(it, name, "vllm") for name in ("AsyncLLM", "AsyncLLMEngine"))


def is_lock(it: Any) -> bool:
    """A lock, which keeps nothing but who holds it."""
    kind = type(it)
    asyncio = sys.modules.get("asyncio")
    return kind in LOCKS or (asyncio is not None and kind in (asyncio.Lock, asyncio.Semaphore))


def torch_decorated(it: Any) -> Optional[types.FunctionType]:
    """The function under `@torch.no_grad()` and its like."""
    if not isinstance(it, types.FunctionType) or it.__code__.co_name != "decorate_context":
        return None
    if not it.__code__.co_filename.endswith(os.path.join("torch", "utils", "_contextlib.py")):
        return None
    cells: Dict[str, Any] = dict(zip(it.__code__.co_freevars, it.__closure__ or ()))
    inner = cells["func"].cell_contents if "func" in cells else None
    return inner if isinstance(inner, types.FunctionType) else None
