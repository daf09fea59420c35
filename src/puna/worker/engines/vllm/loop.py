"""The one thread that steps a vLLM engine, the handles of its callers, and the engine as each caller sees it."""

from __future__ import annotations

import collections
import contextlib
import queue
import threading
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple, Union

from puna.worker.app import scope

Outputs = List[Tuple[str, Any]]  # request id, output or error
CANCELLED = ""  # in place of a request id: the client of a scope went


class EngineDied(RuntimeError):
    """A step of the engine failed; it is in no state to go on, and this replica is replaced."""


class RequestHandle:
    """The requests that one caller has in the engine. Used by one thread; the loop puts outputs into it."""

    def __init__(self, loop: EngineLoop, wants_all: bool = False) -> None:
        self._loop, self.wants_all = loop, wants_all
        self.inbox: Any = queue.SimpleQueue()
        self.pending: Set[str] = set()
        self.is_rendering = False

    def add(self, request_id: str, arguments: Tuple[Any, ...], options: Dict[str, Any]) -> str:
        """Hand a request in. What the engine says against it is raised by `receive`, so that nobody waits here."""
        self.pending.add(request_id)
        self._loop.submit(LoopJob(lambda: self._loop.enter(self, request_id, arguments, options)))
        return request_id

    def receive(self) -> Outputs:
        """Outputs of at least one pending request.

        Raises:
            Cancelled: the client went.
            Exception: the engine refused one, or died; the others are withdrawn.
        """
        self.rendered()
        request = scope.current()
        if request is not None:
            request.on_cancel(self._cancel)
        try:
            return self._receive(request)
        except BaseException:  # the caller sees it; what it has left in the engine ends
            self.withdraw()
            raise
        finally:
            if request is not None:
                request.forget(self._cancel)

    def _receive(self, request: Optional[scope.RequestScope]) -> Outputs:
        while self.pending:
            outputs: Outputs = []
            for request_id, item in self.inbox.get():
                if request_id == CANCELLED and request is not None and request.is_cancelled:
                    raise scope.Cancelled
                if request_id not in self.pending:
                    continue
                if isinstance(item, BaseException):
                    raise item
                if item.finished:
                    self.pending.discard(request_id)
                outputs.append((request_id, item))
            if outputs:
                return outputs
        return []

    def withdraw(self) -> None:
        """End whatever is pending, in the engine too."""
        if self.pending:
            withdrawn, self.pending = list(self.pending), set()
            self._loop.abort(withdrawn)

    def rendered(self) -> None:
        """The caller's prompts are tokens now: let the next one use the tokenizer."""
        if self.is_rendering:
            self.is_rendering = False
            self._loop.rendering.release()

    def _cancel(self) -> None:
        self.inbox.put([(CANCELLED, None)])


class LoopJob(NamedTuple):
    """Something for the loop to do between two steps, or when nothing runs."""

    run: Callable[[], Any]
    needs_idle: bool = False


class EngineLoop:
    """Owns the engine: `add_request`, `step` and `abort_request` are called in its thread only."""

    def __init__(self, engine: Any, prepare: Callable[[], Any], on_death: Callable[[str], Any]) -> None:
        self.engine, self._prepare, self._on_death = engine, prepare, on_death
        self.defaults: Dict[str, Any] = {}
        """Options of every request that does not set them: the adapter, where the model's name means one."""
        # Fast tokenizers cannot be used while another thread changes their truncation, and vLLM does so each call.
        self.rendering = threading.Lock()
        self._jobs: Any = queue.SimpleQueue()
        self._kept: Optional[LoopJob] = None
        """It waits until nothing is in the engine, and all jobs behind it wait with it."""
        self._aborting: Deque[List[str]] = collections.deque()
        self._owners: Dict[str, RequestHandle] = {}
        self._local = threading.local()
        self._is_paused = False
        self._death = ""
        self._thread = threading.Thread(target=self._run, name="puna-engine", daemon=True)
        self._thread.start()

    # -- for the callers

    @property
    def handle(self) -> RequestHandle:
        """This thread's handle."""
        found: Optional[RequestHandle] = getattr(self._local, "handle", None)
        if found is None:
            found = self._local.handle = RequestHandle(self)
        return found

    @contextlib.contextmanager
    def own_handle(self) -> Iterator[None]:
        """A handle for one call of `generate` and the like; calls that it makes itself share it."""
        before = getattr(self._local, "handle", None)
        if before is not None and getattr(self._local, "is_in_call", False):
            yield
            return
        handle = self._local.handle = RequestHandle(self)
        self._local.is_in_call = True
        self.rendering.acquire()
        handle.is_rendering = True
        try:
            yield
        finally:
            handle.rendered()
            handle.withdraw()
            self._local.handle, self._local.is_in_call = before, False

    def submit(self, job: LoopJob) -> None:
        """Let the loop do it, without waiting."""
        self._jobs.put(job)

    def call(self, function: Callable[[], Any], needs_idle: bool = False) -> Any:
        """Have the loop run `function`, and return its result; with `needs_idle`, once nothing is in the engine."""
        if threading.current_thread() is self._thread:
            return function()
        done: Any = queue.SimpleQueue()

        def run() -> None:
            try:
                done.put((function(), None))
            except BaseException as error:  # noqa: BLE001 - raised in the thread that called
                done.put((None, error))

        self.submit(LoopJob(run, needs_idle))
        result, error = done.get()
        if error is not None:
            raise error
        return result

    def abort(self, request_ids: List[str]) -> None:
        """End those requests, without waiting; they are pending no more."""
        self._aborting.append(request_ids)
        self.submit(LoopJob(lambda: self._end(self._aborting.popleft())))

    # -- in the loop's thread

    def enter(
        self, handle: RequestHandle, request_id: str, arguments: Tuple[Any, ...], options: Dict[str, Any]
    ) -> None:
        """Give a handle's request to the engine; the handle gets its error when the engine refuses."""
        if request_id not in handle.pending:
            return  # withdrawn before its turn
        if self._death:
            handle.inbox.put([(request_id, EngineDied(self._death))])
            return
        self._owners[request_id] = handle
        options = dict(options, **{n: value for n, value in self.defaults.items() if options.get(n) is None})
        try:
            self.engine.add_request(request_id, *arguments, **options)
        except Exception as error:  # noqa: BLE001 - the caller sees it
            del self._owners[request_id]
            handle.inbox.put([(request_id, error)])

    def _end(self, request_ids: List[str]) -> None:
        known = [i for i in request_ids if self._owners.pop(i, None) is not None]
        if known and not self._death:
            self.engine.abort_request(known)

    def pause(self, is_paused: bool) -> None:
        """A sleeping engine is not stepped; its requests wait."""
        self._is_paused = is_paused

    def _run(self) -> None:
        self._prepare()
        while True:
            is_busy = self._is_busy()
            job = self._take(block=not is_busy)
            while job is not None:
                if job.needs_idle and self._is_busy():
                    self._kept = job
                    for request_ids in list(self._aborting):
                        self._end(request_ids)  # else it would wait for those to their ends
                    break
                job.run()
                job = self._take(block=False)
            if self._is_busy():
                self._step()

    def _take(self, block: bool) -> Optional[LoopJob]:
        kept, self._kept = self._kept, None
        if kept is not None:
            return kept
        try:
            job: LoopJob = self._jobs.get(block)
            return job
        except queue.Empty:
            return None

    def _is_busy(self) -> bool:
        return not self._is_paused and not self._death and bool(self.engine.has_unfinished_requests())

    def _step(self) -> None:
        try:
            outputs = self.engine.step()
        except BaseException as error:  # noqa: BLE001 - all who wait see it, and the replica ends
            self._die(error)
            return
        received: Dict[RequestHandle, Outputs] = {}
        for output in outputs:
            request_id = output.request_id
            handle = self._owners.get(request_id)
            if handle is None or not (output.finished or handle.wants_all):
                continue
            if output.finished:
                del self._owners[request_id]
            received.setdefault(handle, []).append((request_id, output))
        for handle, found in received.items():
            handle.inbox.put(found)

    def _die(self, error: BaseException) -> None:
        self._death = "the engine failed in a step: %s: %s" % (type(error).__name__, error)
        owners, self._owners = self._owners, {}
        for request_id, handle in owners.items():
            died = EngineDied(self._death)
            died.__cause__ = error
            handle.inbox.put([(request_id, died)])
        self._on_death(self._death)


# Asked of data that never changes; all else is run by the loop.
READS = {"get_tokenizer", "get_supported_tasks", "get_vllm_config", "get_model_config", "get_parallel_config",
         "get_decoding_config", "get_scheduler_config", "get_lora_config", "get_metrics"}  # fmt: skip
# May run between two steps; all else waits until nothing is in the engine.
BETWEEN_STEPS = {"wake_up", "is_sleeping", "add_lora", "remove_lora", "list_loras", "pin_lora", "do_log_stats"}


class SharedEngine:
    """Stands where LLM keeps its `llm_engine`: LLM's own methods run unchanged in many threads over it."""

    __class__ = property(lambda self: type(self._engine))  # for isinstance

    def __init__(self, engine: Any, loop: EngineLoop) -> None:
        object.__setattr__(self, "_engine", engine)
        object.__setattr__(self, "_loop", loop)

    def add_request(self, request_id: str, *arguments: Any, **options: Any) -> str:
        """Hand a request in; the engine's errors come with the first `step`."""
        return str(self._loop.handle.add(request_id, arguments, options))

    def has_unfinished_requests(self) -> bool:
        """This caller's."""
        return self.get_num_unfinished_requests() > 0

    def get_num_unfinished_requests(self) -> int:
        """This caller's."""
        handle = self._loop.handle
        handle.rendered()
        return len(handle.pending)

    def step(self) -> List[Any]:
        """Wait for outputs of this caller's requests."""
        return [output for _, output in self._loop.handle.receive()]

    def abort_request(self, request_ids: Union[str, Iterable[str]], internal: bool = False) -> None:
        """End requests by the ids that `add_request` returned."""
        ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        self._loop.handle.pending.difference_update(ids)
        self._loop.abort(ids)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._engine, name)
        if name in READS or not callable(value) or not hasattr(value, "__self__"):
            return value

        def through_the_loop(*arguments: Any, **options: Any) -> Any:
            def run() -> Any:
                try:
                    return value(*arguments, **options)
                finally:
                    if name in ("sleep", "wake_up"):
                        self._loop.pause(bool(self._engine.is_sleeping()))

            return self._loop.call(run, needs_idle=name not in BETWEEN_STEPS)

        return through_the_loop

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._engine, name, value)
