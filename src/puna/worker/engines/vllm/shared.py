"""The engine as each caller of a shared LLM sees it: its own requests, and nobody else's."""

from __future__ import annotations

from typing import Any, Iterable, List, Union

from puna.worker.engines.vllm.loop import EngineLoop

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
        return str(self._loop.desk.add(request_id, arguments, options))

    def has_unfinished_requests(self) -> bool:
        """This caller's."""
        return self.get_num_unfinished_requests() > 0

    def get_num_unfinished_requests(self) -> int:
        """This caller's."""
        desk = self._loop.desk
        desk.rendered()
        return len(desk.pending)

    def step(self) -> List[Any]:
        """Wait for outputs of this caller's requests."""
        return [output for _, output in self._loop.desk.receive()]

    def abort_request(self, request_ids: Union[str, Iterable[str]], internal: bool = False) -> None:
        """End requests by the ids that `add_request` returned."""
        ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        self._loop.desk.pending.difference_update(ids)
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
