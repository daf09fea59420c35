"""The kept copy of vLLM's weights, over memory that stands for the GPU's."""

import ctypes
import types
from dataclasses import dataclass

import pytest

from puna.worker.engines.vllm import sleep as vllm_sleep
from puna.worker.engines.vllm.sleep import KeptCopy, SleepFault

PAGE = 4096


@dataclass
class Allocation:
    """As vLLM's AllocationData."""

    handle: tuple[int, int, int, int]
    tag: str
    is_asleep: bool = False


class HostCuda:
    """Copies are real, between host memory and host memory; mapping and unmapping fill with noise."""

    def __init__(self) -> None:
        self.pinned: dict[int, int] = {}
        self.calls: list[str] = []
        self.refuses = False

    def pin(self, address: int, size: int) -> None:
        if self.refuses:
            raise SleepFault("cudaHostRegister failed with code 2")
        self.pinned[address] = size

    def unpin(self, address: int) -> None:
        del self.pinned[address]

    def copy(self, target: int, source: int, size: int, kind: int) -> None:
        self.calls.append("copy")
        ctypes.memmove(target, source, size)

    def wait(self) -> None:
        self.calls.append("wait")

    def map(self, handle: tuple[int, int, int, int]) -> None:
        self.calls.append("map")
        ctypes.memset(handle[2], 0xA5, handle[1])

    def unmap(self, handle: tuple[int, int, int, int]) -> None:
        self.calls.append("unmap")
        ctypes.memset(handle[2], 0x5A, handle[1])


class Allocator:
    """As vLLM's CuMemAllocator: allocations by pointer."""

    def __init__(self, *tags: str) -> None:
        self.buffers = [ctypes.create_string_buffer(PAGE * (n + 1)) for n in range(len(tags))]
        self.pointer_to_data = {}
        for number, (buffer, tag) in enumerate(zip(self.buffers, tags, strict=True)):
            address = ctypes.addressof(buffer)
            ctypes.memset(address, number + 1, len(buffer))
            self.pointer_to_data[address] = Allocation((0, len(buffer), address, 0), tag)
        self.originals: list[str] = []

    def sleep(self, offload_tags: object = None) -> None:
        self.originals.append(f"sleep {offload_tags}")

    def wake_up(self, tags: object = None) -> None:
        self.originals.append(f"wake_up {tags}")


@pytest.fixture(autouse=True)
def a_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emptying torch's cache needs a GPU."""
    cuda = types.SimpleNamespace(empty_cache=lambda: None)
    torch = types.SimpleNamespace(cuda=cuda)
    monkeypatch.setattr(vllm_sleep.importlib, "import_module", lambda name: torch)


def contents(allocator: Allocator) -> list[bytes]:
    return [bytes(buffer) for buffer in allocator.buffers]


def test_weights_come_back_as_they_were_and_the_copy_is_made_once() -> None:
    allocator, cuda = Allocator("weights", "kv_cache", "weights"), HostCuda()
    copy = KeptCopy(allocator, cuda)
    before = contents(allocator)
    copy.prepare()
    (address,) = cuda.pinned
    for _ in range(3):
        copy.sleep(("weights",))
        assert all(data.is_asleep for data in allocator.pointer_to_data.values())
        assert contents(allocator)[0] != before[0]
        copy.wake_up()
        after = contents(allocator)
        assert (after[0], after[2]) == (before[0], before[2])
        assert list(cuda.pinned) == [address]
    assert cuda.pinned[address] == PAGE * 4
    assert cuda.calls[-5:] == ["copy", "map", "copy", "map", "wait"]  # weights first, then the rest
    assert allocator.originals == []


def test_weights_that_changed_while_awake_are_the_ones_that_come_back() -> None:
    allocator = Allocator("weights")
    copy = KeptCopy(allocator, HostCuda())
    copy.sleep("weights")
    copy.wake_up()
    ctypes.memset(ctypes.addressof(allocator.buffers[0]), 0x77, PAGE)  # an adapter was loaded
    copy.sleep(("weights",))
    copy.wake_up()
    assert contents(allocator)[0] == b"\x77" * PAGE


def test_waking_by_tags_leaves_the_rest_asleep() -> None:
    allocator = Allocator("weights", "kv_cache")
    copy = KeptCopy(allocator, HostCuda())
    copy.sleep(("weights",))
    copy.wake_up(["weights"])
    weights, cache = allocator.pointer_to_data.values()
    assert (weights.is_asleep, cache.is_asleep) == (False, True)
    copy.wake_up(["kv_cache"])
    assert not cache.is_asleep


def test_other_levels_of_sleep_are_vllms_own() -> None:
    allocator = Allocator("weights")
    copy = KeptCopy(allocator, HostCuda())
    copy.sleep(())
    copy.wake_up(["weights"])
    assert allocator.originals == ["sleep ()", "wake_up ['weights']"]


def test_new_allocations_make_a_new_copy_and_the_old_one_goes() -> None:
    allocator, cuda = Allocator("weights"), HostCuda()
    copy = KeptCopy(allocator, cuda)
    copy.prepare()
    more = ctypes.create_string_buffer(PAGE)
    allocator.pointer_to_data[ctypes.addressof(more)] = Allocation((0, PAGE, ctypes.addressof(more), 0), "weights")
    copy.prepare()
    assert list(cuda.pinned.values()) == [2 * PAGE]


def test_too_little_host_memory_is_said_in_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_sleep, "free_host_bytes", lambda: 0)
    copy = KeptCopy(Allocator("weights"), HostCuda())
    with pytest.raises(SleepFault, match=r"need 0\.0 GiB of host memory while asleep, and 0\.0 GiB are free"):
        copy.prepare()


def test_memory_that_cannot_be_pinned_leaves_nothing_behind() -> None:
    allocator, cuda = Allocator("weights"), HostCuda()
    copy = KeptCopy(allocator, cuda)
    cuda.refuses = True
    with pytest.raises(SleepFault, match="cudaHostRegister"):
        copy.prepare()
    cuda.refuses = False
    copy.prepare()
    assert len(cuda.pinned) == 1


def test_the_machine_says_how_much_memory_is_free() -> None:
    assert vllm_sleep.free_host_bytes() > 2**20
