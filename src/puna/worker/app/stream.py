"""The handler that a streaming `infer` gets as its second argument."""

from __future__ import annotations

from typing import Any, Callable, Dict, Generator

from puna.worker.app.tensors import write_event


class Done:
    """An awaitable that is done: streaming apps call the handler with and without `await`."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


class StreamHandler:
    """Sends each output dict as one event; events after the end are dropped."""

    def __init__(self, send: Callable[[Dict[str, Any]], None]) -> None:
        self._send = send
        self.events = 0
        self.is_ended = False

    def send_streamed_output(self, output: Any) -> Done:
        """One event.

        Raises:
            BadOutput: the event is no dict, or one of its outputs cannot be sent.
        """
        event = write_event(output)
        if not self.is_ended:
            self.events += 1
            self._send(event)
        return Done()

    def finalise_streamed_output(self) -> Done:
        """No more events; an `infer` that forgets this ends the stream by returning."""
        self.is_ended = True
        return Done()

    finalize_streamed_output = finalise_streamed_output
