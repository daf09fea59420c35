"""The app contract: InferlessPythonModel in app.py, its methods called as each is written; batches, streams."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
import threading
import time
from typing import Any, Callable, Dict, Generator, List, Optional, Tuple

from puna.worker.app import imports, schema, scope
from puna.worker.app.schema import KINDS, AppSchema
from puna.worker.app.schema import read as read_schema
from puna.worker.app.tensors import BadOutput, BadRequest, write_event
from puna.worker.engines import engine


class Done:
    """An awaitable that is done: streaming apps call the handler with and without `await`."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class StreamHandler:
    """Sends each output dict as one event; events after the end are dropped."""

    def __init__(self, send: Callable[[Dict[str, Any]], None]) -> None:
        self._send = send
        self.is_ended = False

    def send_streamed_output(self, output: Any) -> Done:
        """One event.

        Raises:
            BadOutput: the event is no dict, or one of its outputs cannot be sent.
        """
        event = write_event(output)
        if not self.is_ended:
            self._send(event)
        return Done()

    def finalise_streamed_output(self) -> Done:
        """No more events; an `infer` that forgets this ends the stream by returning."""
        self.is_ended = True
        return Done()

    finalize_streamed_output = finalise_streamed_output


class Member:
    """One request in a batch."""

    __slots__ = ("abandoned", "done", "error", "result", "value")

    def __init__(self, value: Any) -> None:
        self.value, self.done = value, threading.Event()
        self.abandoned = threading.Event()
        """The client went: what has not begun need not."""
        self.result: Any = None
        self.error: Optional[BaseException] = None


class Batches:
    """`infer` of many threads becomes `run` of a list, one list at a time. `run` returns as many results."""

    def __init__(self, run: Callable[[List[Any]], List[Any]], size: int, window_s: float) -> None:
        self._run, self.size, self.window_s = run, size, window_s
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        self._open: Optional[List[Member]] = None

    def infer(self, value: Any) -> Any:
        """This request's result. Raises what `run` raises, for all of its batch."""
        member = Member(value)
        request = scope.current()
        if request is not None:
            request.on_cancel(member.abandoned.set)
        with self._changed:
            batch = self._open
            is_first = batch is None
            if batch is None:
                batch = self._open = []
            batch.append(member)
            if len(batch) == self.size:
                self._open = None
                self._changed.notify_all()
        if is_first:
            self._lead(batch)
        else:
            member.done.wait()
        if member.error is not None:
            raise member.error
        return member.result

    def _lead(self, batch: List[Member]) -> None:
        """The first of a batch runs it: when it is full, or its window is over and no other batch runs."""
        end = time.monotonic() + self.window_s
        with self._changed:
            self._changed.wait_for(lambda: self._open is not batch, max(0.0, end - time.monotonic()))
        with self._turn:
            with self._changed:
                if self._open is batch:
                    self._open = None
            # Not the first member's scope: its client may go, and the others stay.
            with scope.entered(scope.RequestScope()):
                self._settle([m for m in batch if not m.abandoned.is_set()])
        for member in batch:
            member.done.set()

    def _settle(self, members: List[Member]) -> None:
        if not members:
            return
        try:
            results = self._run([m.value for m in members])
        except BaseException as error:  # noqa: BLE001 - raised in each member's thread
            for member in members:
                member.error = error
            return
        for number, member in enumerate(members):
            member.result = results[number]


CLASS = "InferlessPythonModel"


class AppFault(Exception):
    """The folder holds no app that can run; the text says what is missing."""


class App:
    """One app: `enter`, then `load`, `initialize`, any number of `infer`, `finalize`."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(folder)
        self.schema = AppSchema([], {}, None)
        self.numpy: Any = None
        self.model: Any = None
        self.passes_handler = False
        self.typed: Optional[schema.Typed] = None
        self.outputs: Tuple[str, ...] = ()
        """Outputs that every reply must have: output.json's, else those that validation saw (PUNA_OUTPUTS)."""
        self.batches: Optional[Batches] = None
        """There when `infer` takes lists of requests."""
        self._loop: Optional[EventLoop] = None
        self._library_path = list(sys.path)

    def enter(self) -> None:
        """Make the folder the working directory and the first place to import from."""
        os.chdir(self.folder)
        extra = os.environ.get("PYTHONPATH", "")  # -I ignores it for the worker; the app may want it
        sys.path[:0] = [self.folder] + [p for p in extra.split(os.pathsep) if p]
        sys.argv[:] = [os.path.join(self.folder, "app.py")]
        imports.install_stub()

    def read_schema(self) -> AppSchema:
        """Run input_schema.py. Raises what it raises, or SchemaFault."""
        self.schema = read_schema(self.folder)
        return self.schema

    def load(self) -> None:
        """Import app.py and make the model object. Raises what the app raises, or AppFault."""
        path = os.path.join(self.folder, "app.py")
        if not os.path.exists(path):
            raise AppFault("app.py is missing: the app's folder must hold an app.py with a class %s" % CLASS)
        # By path, because a folder `app/` beside app.py would win a plain `import app`.
        spec = importlib.util.spec_from_file_location("app", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["app"] = module
        spec.loader.exec_module(module)
        self._read_types(path, module)
        self.outputs = _declared_outputs(self.schema)
        self.model = self._class_of(module)()
        if not callable(getattr(self.model, "infer", None)):
            raise AppFault("class %s in app.py has no method infer" % CLASS)
        self.passes_handler = self.schema.streaming or required_parameters(self.model.infer) > 1
        if self.schema.batch_size and not self.passes_handler:
            self.batches = Batches(self.infer_batch, self.schema.batch_size, self.schema.batch_window_ms / 1000)
        if self.is_async or is_async(getattr(self.model, "initialize", None)):
            self._loop = self._start_loop()
        # After app.py: some apps set OMP_NUM_THREADS and the like before they import numpy.
        if self.typed is None and any(KINDS[i.datatype] != "text" for i in self.schema.inputs):
            self.numpy = self._library("numpy")

    def initialize(self) -> None:
        """Call initialize once, without arguments unless it insists on some."""
        self._call_once("initialize")

    def infer(self, values: Any, handler: Optional[StreamHandler] = None, started: Any = None) -> Any:
        """Call `infer`; `started` takes a function that cancels an async call."""
        if self.schema.openai:
            values = decoded(values)
        if self.batches is not None:
            return self.batches.infer(values)
        given = self.typed.to_request(values) if self.typed else values
        arguments = (given, handler) if self.passes_handler else (given,)
        result = self._settle(self.model.infer(*arguments), started)
        return self.typed.from_response(result) if self.typed else result

    def infer_batch(self, many: List[Any]) -> List[Any]:
        """Call `infer` with a list of requests.

        Raises:
            BadOutput: it is no list of as many outputs.
        """
        result = self._settle(self.model.infer([self.typed.to_request(v) for v in many] if self.typed else many))
        if not isinstance(result, (list, tuple)) or len(result) != len(many):
            what = "%d" % len(result) if isinstance(result, (list, tuple)) else "a %s" % type(result).__name__
            raise BadOutput(
                "infer was given a list of %d inputs (BATCH_SIZE = %d) and returned %s; it must return a list of as "
                "many dicts" % (len(many), self.schema.batch_size, what)
            )
        return [self.typed.from_response(r) for r in result] if self.typed else list(result)

    @property
    def is_async(self) -> bool:
        """`infer` is `async def`: many may run at once on its loop."""
        return is_async(self.model.infer)

    @property
    def can_sleep(self) -> bool:
        """An engine can give its memory back, or the app itself can: it has methods `sleep` and `wake`."""
        own = [callable(getattr(self.model, name, None)) for name in ("sleep", "wake")]
        return all(own) or bool(self._sleepers())

    @staticmethod
    def _sleepers() -> List[engine.Engine]:
        return [one for one in engine.all_engines() if one.can_sleep]

    def prepare_sleep(self) -> None:
        """Do the part of sleeping that can be done while calls run. Raises what says that it cannot sleep."""
        for one in self._sleepers():
            one.prepare_sleep()

    def sleep(self) -> None:
        """Give back what can be given back: the engines' memory, then what the app's own `sleep` frees.

        Raises what either raises; of an engine that did, nothing is known, so it counts as dead.
        """
        for one in self._sleepers():
            self._or_dies(one.sleep)
        try:
            if callable(getattr(self.model, "wake", None)):
                self._call_once("sleep")
        except BaseException:  # raised again: the log and the owner have it
            for one in self._sleepers():
                self._or_dies(one.wake)
            raise

    @staticmethod
    def _or_dies(change: Callable[[], None]) -> None:
        try:
            change()
        except BaseException as error:  # raised again, after all who wait for the engine have their error
            engine.died("its engine could not change between asleep and awake: %r" % error)
            raise

    def wake(self) -> None:
        """Undo `sleep`."""
        for one in self._sleepers():
            one.wake()
        if callable(getattr(self.model, "sleep", None)):
            self._call_once("wake")

    def finalize(self) -> None:
        """Call finalize if there is one."""
        self._call_once("finalize")

    def _read_types(self, path: str, module: Any) -> None:
        """Let request and response classes of app.py, where there are any, be the schema instead of the files."""
        with open(path, "rb") as file:
            self.typed, flags = schema.find_typed(file.read(), module)
        if self.typed is not None:
            self.schema = schema.typed_schema(self.typed.request, flags)
        elif flags:  # `@inferless.config` beside an input_schema.py
            self.schema = AppSchema(self.schema.inputs, dict(self.schema.flags, **flags), self.schema.outputs)

    def _class_of(self, module: Any) -> Any:
        found = getattr(module, CLASS, None)
        if isinstance(found, type):
            return found
        own = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == "app"]
        rest = "; it defines " + ", ".join(own) if own else ""
        raise AppFault("app.py has no class %s%s" % (CLASS, rest))

    def _call_once(self, name: str) -> None:
        method = getattr(self.model, name, None)
        if method is not None:
            self._settle(method(*[None] * required_parameters(method)))

    def _settle(self, result: Any, started: Any = None) -> Any:
        if not inspect.isawaitable(result):
            return result
        self._loop = self._loop or self._start_loop()
        return self._loop.run(result, started)

    def _start_loop(self) -> EventLoop:
        return EventLoop(self._library("asyncio"))

    def _library(self, name: str) -> Any:
        """Import a library module past the user's folder; None when the environment has none."""
        before = list(sys.path)
        sys.path[:] = self._library_path
        try:
            return importlib.import_module(name)
        except ImportError:
            return None
        finally:
            sys.path[:] = before


class EventLoop:
    """One asyncio loop in a thread of its own: engines bind to a loop, and their tasks go on between calls."""

    def __init__(self, asyncio: Any) -> None:
        self._asyncio = asyncio
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="puna-asyncio", daemon=True).start()

    def run(self, awaitable: Any, started: Any = None) -> Any:
        """Wait for `awaitable` on the loop, with this thread's context, so that its lines carry the request's id."""
        future = self._asyncio.run_coroutine_threadsafe(self._wrap(awaitable), self._loop)
        if started is not None:
            started(future.cancel)
        return future.result()

    @staticmethod
    async def _wrap(awaitable: Any) -> Any:
        return await awaitable


def decoded(values: Any) -> Any:
    """The inputs of an app with OPENAI_CLIENT_COMPATIBLITY: `message` is sent as JSON and used as what it says."""
    message = values.get("message")
    if not isinstance(message, str):
        return values
    try:
        return dict(values, message=json.loads(message))
    except ValueError as error:
        raise BadRequest("input 'message' is not JSON: %s" % error) from None


def _declared_outputs(schema: AppSchema) -> Tuple[str, ...]:
    seen = os.environ.get("PUNA_OUTPUTS")
    if schema.outputs is None:
        return tuple(json.loads(seen)) if seen else ()
    return tuple(str(output["name"]) for output in schema.outputs)


def required_parameters(function: Callable[..., Any]) -> int:
    """The number of positional arguments that a bound method must be given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(1 for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty)


def is_async(function: Any) -> bool:
    """True for `async def`."""
    return inspect.iscoroutinefunction(function)
