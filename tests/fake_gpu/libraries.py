"""Packages `torch` and `vllm` to lie beside an app: they take memory of a fake GPU as the real ones do of a real."""

from pathlib import Path
from textwrap import dedent

GIB = 2**30
TORCH = """
    from torch import cuda

    def set_num_threads(count):
        set_num_threads.count = count
"""
CUDA = """
    import json, os, sys
    from torch.cuda import memory
    from torch.cuda.memory import set_per_process_memory_fraction

    TOTAL = %d
    DEVICE = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    state = {"queued": [], "begun": False, "own": 0, "fraction": 1.0}

    class OutOfMemoryError(RuntimeError):
        pass

    def device_count():
        return 1 if DEVICE else 0

    def is_initialized():
        return state["begun"]

    def _lazy_call(function):
        function() if state["begun"] else state["queued"].append(function)

    def _lazy_init():
        if not state["begun"]:
            for function in state["queued"]:
                function()
            state["begun"] = True

    def take(size):
        '''As torch.empty does: through the allocator, which knows the limit.'''
        _lazy_init()
        if state["own"] + size > state["fraction"] * TOTAL:
            allowed = state["fraction"] * TOTAL / 2**30
            raise OutOfMemoryError("CUDA out of memory. %%.2f GiB allowed." %% allowed)
        malloc(size)

    def malloc(size, device=DEVICE):
        '''As cudaMalloc does: around the allocator.'''
        state["own"] += size
        path = os.path.join(os.environ["FAKE_GPUS"], "%%d.pid" %% os.getpid())
        with open(path + ".part", "w") as file:
            json.dump({device: state["own"]}, file)
        os.replace(path + ".part", path)
"""
MEMORY = """
    def set_per_process_memory_fraction(fraction, device=None):
        from torch import cuda
        cuda.state["fraction"] = fraction
"""
ARGUMENTS = """
    class EngineArgs:
        def __init__(self, gpu_memory_utilization=0.9):
            self.gpu_memory_utilization = gpu_memory_utilization

        def create_engine_config(self):
            return self.gpu_memory_utilization
"""


def write(folder: Path, total_bytes: int = 16 * GIB) -> None:
    """Lay the packages into an app's folder, where its imports find them first."""
    files = {"torch/__init__": TORCH, "torch/cuda/__init__": CUDA % total_bytes, "torch/cuda/memory": MEMORY}
    files |= {"vllm/__init__": "", "vllm/engine/__init__": "", "vllm/engine/arg_utils": ARGUMENTS}
    for name, text in files.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
