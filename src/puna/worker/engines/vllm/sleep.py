"""vLLM's sleep with one pinned copy of the weights in host memory, made once and kept from sleep to sleep.

vLLM's own level 1 allocates pinned memory at each sleep (7 to 12 s for 16 GB) and drops it at each waking. Here the
copy is made while the engine still serves, by many threads (4 s), and stays; weights are copied into it at each sleep
all the same (0.3 s), since adapters may have been loaded into them. Waking copies back at the bus's rate.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import mmap
from typing import Any, Dict, List, Optional, Tuple

WEIGHTS = "weights"
TO_HOST, TO_DEVICE = 2, 1  # cudaMemcpyKind
MADV_HUGEPAGE, MADV_POPULATE_WRITE = 14, 23
TOUCHING_THREADS = 12
SPARE_SHARE = 1.1  # host memory that must be free, in sizes of the copy
Layout = List[Tuple[int, int]]  # pointer, bytes


class SleepFault(Exception):
    """The engine cannot be put to sleep; it goes on awake."""


class Cuda:
    """The calls of CUDA's runtime and of vLLM's allocator that sleeping takes."""

    def __init__(self, cumem: Any) -> None:
        self._cumem = cumem
        # A handle of our own on the same library: argument types set here are not set for vLLM.
        self._runtime = ctypes.CDLL(cumem.libcudart.lib._name)
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._runtime.cudaMemcpyAsync.argtypes = [pointer, pointer, size, ctypes.c_int, pointer]
        self._runtime.cudaHostRegister.argtypes = [pointer, size, ctypes.c_uint]
        self._runtime.cudaHostUnregister.argtypes = [pointer]

    def pin(self, address: int, size: int) -> None:
        """Lock host memory, so that the device reads it at full rate."""
        self._check("cudaHostRegister", self._runtime.cudaHostRegister(address, size, 0))

    def unpin(self, address: int) -> None:
        """Undo `pin`."""
        self._check("cudaHostUnregister", self._runtime.cudaHostUnregister(address))

    def copy(self, target: int, source: int, size: int, kind: int) -> None:
        """Begin a copy; `wait` ends it."""
        self._check("cudaMemcpyAsync", self._runtime.cudaMemcpyAsync(target, source, size, kind, None))

    def wait(self) -> None:
        """Until all copies are done."""
        self._check("cudaDeviceSynchronize", self._runtime.cudaDeviceSynchronize())

    def map(self, handle: Any) -> None:
        """Put device memory behind an allocation's addresses."""
        self._cumem.create_and_map(handle)

    def unmap(self, handle: Any) -> None:
        """Give an allocation's device memory back; its addresses stay reserved."""
        self._cumem.unmap_and_release(handle)

    @staticmethod
    def _check(call: str, code: int) -> None:
        if code != 0:
            raise SleepFault("%s failed with code %d" % (call, code))


class KeptCopy:
    """Takes the place of `sleep` and `wake_up` of vLLM's allocator."""

    def __init__(self, allocator: Any, cuda: Any) -> None:
        self._allocator, self._cuda = allocator, cuda
        self._original_sleep, self._original_wake_up = allocator.sleep, allocator.wake_up
        self._memory: Optional[mmap.mmap] = None
        self._address = 0
        self._offsets: Dict[int, int] = {}
        self._layout: Layout = []
        self._holds = False
        """The copy is what wakes next: this class put the engine to sleep, not vLLM's own code."""

    def prepare(self) -> None:
        """Make the copy's memory, unless it is there; the engine may serve meanwhile.

        Raises:
            SleepFault: there is too little host memory.
        """
        layout = self._weights()
        if self._memory is not None and layout == self._layout:
            return
        self._release()
        total = sum(size for _, size in layout)
        if not total:
            raise SleepFault("vLLM's allocator holds no weights")
        free = free_host_bytes()
        if free < total * SPARE_SHARE:
            raise SleepFault(
                "the weights need %.1f GiB of host memory while asleep, and %.1f GiB are free"
                % (total / 2**30, free / 2**30)
            )
        self._memory = mmap.mmap(-1, total)
        with contextlib.suppress(OSError, AttributeError):  # no huge pages here: slower to make, no slower to copy
            self._memory.madvise(MADV_HUGEPAGE)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        touch(self._address, total)
        try:
            self._cuda.pin(self._address, total)
        except SleepFault:
            self._memory, self._address = None, 0
            raise
        offset, self._offsets = 0, {}
        for pointer, size in layout:
            self._offsets[pointer] = offset
            offset += size
        self._layout = layout

    def sleep(self, offload_tags: Any = None) -> None:
        """As vLLM's: level 1 comes here; other levels are left to vLLM."""
        tags = (offload_tags,) if isinstance(offload_tags, str) else tuple(offload_tags or ())
        if tags != (WEIGHTS,):
            self._original_sleep(offload_tags)
            return
        self.prepare()
        for pointer, size in self._layout:
            self._cuda.copy(self._address + self._offsets[pointer], pointer, size, TO_HOST)
        self._cuda.wait()
        for data in self._allocator.pointer_to_data.values():
            self._cuda.unmap(data.handle)
            data.is_asleep = True
        self._holds = True
        gc.collect()
        torch: Any = importlib.import_module("torch")
        torch.cuda.empty_cache()

    def wake_up(self, tags: Any = None) -> None:
        """As vLLM's, of all memory or of that with `tags`."""
        if not self._holds:
            self._original_wake_up(tags)
            return
        asleep = [
            (pointer, data)
            for pointer, data in self._allocator.pointer_to_data.items()
            if data.is_asleep and (tags is None or data.tag in tags)
        ]
        asleep.sort(key=lambda item: item[0] not in self._offsets)  # copies run while the rest is mapped
        for pointer, data in asleep:
            self._cuda.map(data.handle)
            data.is_asleep = False
            if pointer in self._offsets:
                self._cuda.copy(pointer, self._address + self._offsets[pointer], data.handle[1], TO_DEVICE)
        self._cuda.wait()
        self._holds = any(data.is_asleep for data in self._allocator.pointer_to_data.values())

    def _weights(self) -> Layout:
        held = self._allocator.pointer_to_data.items()
        return [(pointer, data.handle[1]) for pointer, data in held if data.tag == WEIGHTS]

    def _release(self) -> None:
        if self._memory is not None:
            self._cuda.unpin(self._address)
        self._memory, self._address, self._layout, self._offsets = None, 0, [], {}


def install() -> Optional[KeptCopy]:
    """Give vLLM's allocator the kept copy; None where this vLLM has another allocator."""
    try:
        cumem: Any = importlib.import_module("vllm.device_allocator.cumem")
        allocator = cumem.CuMemAllocator.get_instance()
        copy = KeptCopy(allocator, Cuda(cumem))
    except (ImportError, AttributeError, AssertionError, OSError):
        return None
    allocator.sleep, allocator.wake_up = copy.sleep, copy.wake_up
    return copy


def touch(address: int, size: int) -> None:
    """Have the kernel put pages behind `size` bytes at `address`, by many threads: one alone takes twice as long."""
    from concurrent.futures import ThreadPoolExecutor  # it brings logging: only who sleeps waits for that

    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    page = mmap.PAGESIZE
    part = -(-size // TOUCHING_THREADS // page) * page

    def fill(start: int) -> None:
        length = min(part, size - start)
        if libc.madvise(address + start, length, MADV_POPULATE_WRITE) != 0:  # Linux before 5.14
            libc.memset(address + start, 0, length)

    with ThreadPoolExecutor(TOUCHING_THREADS) as pool:
        list(pool.map(fill, range(0, size, part)))


def free_host_bytes() -> int:
    """Host memory that can be taken without swapping, by /proc/meminfo."""
    with open("/proc/meminfo", encoding="ascii") as file:
        available = next(line for line in file if line.startswith("MemAvailable:"))
    return int(available.split()[1]) * 1024
