"""What a start of vLLM finds for its KV cache, and when the next one may rely on it."""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import pytest

from puna.worker.engines.vllm import options
from puna.worker.engines.vllm.options import KvCacheSize, kv_cache_of

GIB = 2**30


class Gpu:
    """torch.cuda, as far as it is asked."""

    def __init__(self) -> None:
        self.free, self.name = 130 * GIB, "NVIDIA H200"

    def mem_get_info(self) -> tuple[int, int]:
        return self.free, 140 * GIB

    def get_device_properties(self, _: int) -> Any:
        return types.SimpleNamespace(name=self.name, total_memory=140 * GIB)


class Engine:
    """Tells its one worker's figure."""

    def __init__(self, available: Any) -> None:
        self.worker = types.SimpleNamespace(
            available_kv_cache_memory_bytes=available,
            vllm_config=None,
            model_runner=types.SimpleNamespace(kv_cache_config=None),
        )

    def collective_rpc(self, function: Any) -> list[Any]:
        return [function(self.worker)]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    found = Gpu()
    modules = {"torch": types.SimpleNamespace(cuda=found, __version__="2.11.0")}
    monkeypatch.setattr(options, "sys", types.SimpleNamespace(modules=modules))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "vllm"))
    return found


def first_start(options: dict[str, Any]) -> None:
    found = KvCacheSize(options)
    assert found.option() == {}
    found.keep(Engine(100 * GIB))


def test_the_second_start_is_told_what_the_first_one_found(gpu: Gpu) -> None:
    first_start({"model": "acme/chat"})
    assert KvCacheSize({"model": "acme/chat"}).option() == {"kv_cache_memory_bytes": 100 * GIB}


def test_less_free_memory_is_measured_anew(gpu: Gpu) -> None:
    first_start({"model": "acme/chat"})
    gpu.free -= options.SLACK_BYTES
    assert KvCacheSize({"model": "acme/chat"}).option()
    gpu.free -= GIB
    assert KvCacheSize({"model": "acme/chat"}).option() == {}


def test_the_cache_holds_as_many_full_length_requests_as_are_wanted_and_not_more(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = types.SimpleNamespace(get_max_concurrency_for_kv_cache_config=lambda vllm_config, kv_cache_config: 128.0)
    monkeypatch.setattr(options.importlib, "import_module", {"vllm.v1.core.kv_cache_utils": sizes}.__getitem__)
    first_start({"model": "acme/chat"})
    assert KvCacheSize({"model": "acme/chat"}, 64).option() == {"kv_cache_memory_bytes": 50 * GIB}
    assert KvCacheSize({"model": "acme/chat"}, 1000).option() == {"kv_cache_memory_bytes": 100 * GIB}
    assert KvCacheSize({"model": "acme/chat"}).option() == {"kv_cache_memory_bytes": 100 * GIB}


def test_an_app_that_says_how_much_of_the_gpu_it_wants_gets_it(gpu: Gpu) -> None:
    given = kv_cache_of({"model": "m"}, {"model": "m", "gpu_memory_utilization": 0.5})
    silent = kv_cache_of({"model": "m"}, {"model": "m"})
    assert given is not None and given.full_length_requests == 0
    assert silent is not None and silent.full_length_requests == options.FULL_LENGTH_REQUESTS


def test_the_size_of_the_cache_is_no_part_of_a_compiled_graphs_name() -> None:
    @dataclasses.dataclass(frozen=True)
    class CacheConfig:
        block_size: int = 16
        kv_cache_memory_bytes: int | None = None

        def compute_hash(self) -> str:
            return repr(self)

    options.hash_without_size(types.SimpleNamespace(CacheConfig=CacheConfig))
    told = CacheConfig(kv_cache_memory_bytes=GIB)
    assert told.compute_hash() == CacheConfig().compute_hash() != CacheConfig(block_size=32).compute_hash()
    assert told.kv_cache_memory_bytes == GIB


def test_other_options_shares_and_gpus_are_others(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    first_start({"model": "acme/chat"})
    assert KvCacheSize({"model": "acme/chat", "max_model_len": 4096}).option() == {}
    monkeypatch.setenv("PUNA_GPU_FRACTION", "0.5")
    assert KvCacheSize({"model": "acme/chat"}).option() == {}
    monkeypatch.delenv("PUNA_GPU_FRACTION")
    gpu.name = "NVIDIA L4"
    assert KvCacheSize({"model": "acme/chat"}).option() == {}


def test_an_engine_that_does_not_tell_and_a_broken_file_are_no_harm(gpu: Gpu, tmp_path: Path) -> None:
    found = KvCacheSize({"model": "acme/chat"})
    found.option()
    found.keep(object())
    found.keep(Engine(None))
    assert not (tmp_path / "vllm").exists()
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / options.FILE).write_text("{")
    first_start({"model": "acme/chat"})
    entries = json.loads((tmp_path / "vllm" / options.FILE).read_text())
    assert [entry["kv_cache_bytes"] for entry in entries.values()] == [100 * GIB]


def test_an_app_that_settles_it_is_not_asked(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kv_cache_of({"kv_cache_memory_bytes": GIB}, {"kv_cache_memory_bytes": GIB}) is None
    assert kv_cache_of({}, {}) is not None
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    assert kv_cache_of({}, {}) is None
