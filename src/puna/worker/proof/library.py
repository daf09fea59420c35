"""Functions and methods of libraries that keep nothing of what they are given, by what they do with it."""

from __future__ import annotations

from typing import Dict, List, Set, Tuple

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
