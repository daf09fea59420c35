"""Arguments of engines."""

from dataclasses import dataclass


@dataclass
class EngineArgs:
    """Those that the apps here give."""

    model: str = ""
    gpu_memory_utilization: float = 0.9
    max_model_len: int = 4096
    dtype: str = "auto"
    trust_remote_code: bool = False


@dataclass
class AsyncEngineArgs(EngineArgs):
    """The same for the asynchronous engine."""
