"""The machine that trains: which device, how much memory, how fast, which number format."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from puna.errors import MachineError

# Dense bf16 FLOP/s and memory bytes/s from the vendors' data sheets; the first key found in the device's name counts.
DATA_SHEETS = {
    "B200": (2250e12, 8.0e12), "H200": (989e12, 4.8e12), "H100 PCIe": (756e12, 2.0e12), "H100": (989e12, 3.35e12),
    "H20": (148e12, 4.0e12), "A100": (312e12, 2.0e12), "L40S": (362e12, 0.86e12), "L4": (121e12, 0.3e12),
    "A10": (125e12, 0.6e12), "A6000": (155e12, 0.77e12), "RTX 6000 Ada": (364e12, 0.96e12),
    "5090": (210e12, 1.79e12), "4090": (165e12, 1.0e12), "3090": (71e12, 0.94e12), "V100": (125e12, 0.9e12),
    "T4": (65e12, 0.32e12),
}  # fmt: skip
UNKNOWN_GPU = (60e12, 0.5e12)
CONTEXT = 600 * 2**20
"""Bytes of CUDA's context and loaded kernels on a Hopper GPU."""
FP8_CAPABILITY = (8, 9)
"""The first compute capability with products in 8 bits: Ada's; Hopper's follow."""


@dataclass(frozen=True)
class TrainingMachine:
    """One device as the plan sees it."""

    device: str
    """`cpu`, `cuda` or `cuda:<n>`."""
    name: str
    memory_bytes: int
    """Free memory now: what a run may use."""
    flops: float
    """Peak FLOP/s of the format that training computes in."""
    native_bf16: bool
    threads: int
    """CPU threads that torch uses."""
    bandwidth: float = 0.0
    """Bytes/s of a GPU's memory."""
    fp8: bool = False
    """Has matrix products in 8 bits."""

    @property
    def is_gpu(self) -> bool:
        """True where kernels run on CUDA."""
        return self.device.startswith("cuda")


def look(device: str | None = None) -> TrainingMachine:
    """The machine behind `device`; the first GPU, or else the CPU, when None.

    Raises:
        MachineError: the device asked for is not there.
    """
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cpu":
        name = f"CPU, {len(os.sched_getaffinity(0))} cores"
        return TrainingMachine("cpu", name, _free_memory(), _cpu_flops(), _cpu_has_bf16(), torch.get_num_threads())
    if not wanted.startswith("cuda") or not torch.cuda.is_available():
        raise MachineError(f"there is no device {wanted!r} here", "use --device cpu, or leave it out")
    name = torch.cuda.get_device_name(wanted)
    free, _ = torch.cuda.mem_get_info(wanted)
    flops, bandwidth = next((sheet for key, sheet in DATA_SHEETS.items() if key in name), UNKNOWN_GPU)
    capability = torch.cuda.get_device_capability(wanted)
    threads, fp8 = torch.get_num_threads(), capability >= FP8_CAPABILITY
    return TrainingMachine(wanted, name, free, flops, capability >= (8, 0), threads, bandwidth, fp8)


def compute_dtype(machine: TrainingMachine, asked: str) -> tuple[str, str]:
    """The number format of activations and why: (`bfloat16` | `float16` | `float32`, reason)."""
    if asked == "float32":
        return "float32", "float32 as the recipe asks"
    if machine.native_bf16:
        why = "as the recipe asks" if asked == "bfloat16" else "not float16: it has its speed without its overflow"
        return "bfloat16", f"bfloat16, {why}"
    if machine.is_gpu:
        return "float16", f"float16: {machine.name} has no bfloat16 arithmetic"
    return "float32", f"float32, not {asked}: this CPU emulates 16-bit arithmetic, which is slower and less exact"


def hold_to(device: str, limit_bytes: int | None) -> None:
    """Let torch take no more of a GPU's memory than `limit_bytes`, CUDA's own included, and fragment little of it."""
    if not device.startswith("cuda"):
        return
    settings = getattr(torch.cuda.memory, "_set_allocator_settings", None)
    if settings is not None:  # steps differ in length: blocks of fixed size would fit few of them
        settings("expandable_segments:True")
    if limit_bytes is not None:
        free, total = torch.cuda.mem_get_info(device)
        taken = total - free if torch.cuda.memory_reserved(device) == 0 else 0  # CUDA's context, and others' memory
        index = torch.device(device).index
        fraction = min(1.0, (limit_bytes - min(taken, CONTEXT)) / total)
        torch.cuda.set_per_process_memory_fraction(fraction, torch.cuda.current_device() if index is None else index)


def memory_used(device: str) -> int:
    """Bytes: the peak that torch allocated on a GPU, the process's resident memory on a CPU."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _free_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _cpu_has_bf16() -> bool:
    # avx512_bf16 and amx_bf16 on x86, bf16 on Arm: without them torch converts to float32 and back.
    words = Path("/proc/cpuinfo").read_text().split()
    return any(flag in words for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def _cpu_flops() -> float:
    """Measured: the best of three float32 matrix products, a few milliseconds each."""
    x = torch.ones(768, 768)
    best = 1.0
    for _ in range(3):
        start = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - start)
    return 2 * 768**3 / best
