"""This process's share of a machine: its cores, and the part of a GPU that torch and vLLM may take.

The launcher says how much in the environment (backends/shares.py). This is polite: a library gets its limit, and says
in its own words when an app wants more. An app that goes around it is ended from outside (backends/shares.py).
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from puna.worker.app import calllog

FRACTION = "PUNA_GPU_FRACTION"
"""The share of the GPU; absent: all of it."""
TORCH_FRACTION = "PUNA_GPU_TORCH_FRACTION"
"""The part that torch's allocator may have: the share without what CUDA takes for itself."""
CORES = "PUNA_CORES"
THREADS = "OMP_NUM_THREADS"
CHILDREN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "children")
MARK = "_puna_share"

Hook = Callable[[Any], None]


def settle() -> None:
    """Keep to the cores that are this process's, and let Python processes that the app starts know of the GPU's share.

    Once, before the app is imported; in a zygote's fork after its libraries are.
    """
    cores = [int(core) for core in os.environ.get(CORES, "").split(",") if core.strip().isdigit()]
    if cores:
        try:
            os.sched_setaffinity(0, cores)
        except OSError as error:  # they were taken from this machine meanwhile
            calllog.note("not held to the cores %s: %s" % (os.environ[CORES], error))
    torch = sys.modules.get("torch")
    threads = os.environ.get(THREADS, "")
    if torch is not None and threads.isdigit() and int(threads):
        torch.set_num_threads(int(threads))  # a zygote imported it with all cores before it
    if limit() is not None:
        path = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join([CHILDREN, *([path] if path else [])])
        _let_children_see_it()


def _let_children_see_it() -> None:
    """multiprocessing starts children with the worker's own flags, and `-I` would hide PYTHONPATH from them."""
    import subprocess  # 20 ms that a start on a whole GPU need not spend

    original = getattr(subprocess, "_args_from_interpreter_flags", None)
    if original is None or hasattr(original, MARK):
        return

    def flags() -> List[str]:
        seen: List[str] = original()
        own = ["-s", "-P"] if sys.version_info >= (3, 11) else ["-s"]  # the folder it begins in stays off its path
        return [word for flag in seen for word in (own if flag == "-I" else [flag])]

    setattr(flags, MARK, True)
    for module in (subprocess, sys.modules.get("multiprocessing.util")):
        if module is not None:
            setattr(module, "_args_from_interpreter_flags", flags)  # noqa: B010


def limit() -> Optional[Tuple[float, float]]:
    """`(share of the GPU, the part of the GPU that torch may have)`; None when all of it is this process's."""
    try:
        share = float(os.environ.get(FRACTION, "1"))
        part = float(os.environ.get(TORCH_FRACTION) or share)
    except ValueError:
        return None
    return (share, part) if 0 < part <= share < 1 else None


def torch_cuda(module: Any) -> None:
    """Hold torch's allocator to its part, from the moment that CUDA begins; `module` is torch.cuda.

    CUDA is not begun for it: a process that has begun it cannot fork.
    """
    found = limit()
    setter = getattr(module, "set_per_process_memory_fraction", None)
    if found is None or setter is None or hasattr(setter, MARK):
        return
    share, part = found

    @functools.wraps(setter)
    def set_per_process_memory_fraction(fraction: float, device: Any = None) -> Any:
        if fraction > part:
            what = "torch may have %.3g of the GPU, not %.3g: this replica has %.3g of it"
            calllog.note(what % (part, fraction, share))
        return setter(min(fraction, part), device)

    def begin() -> None:
        try:
            for device in range(module.device_count()):
                setter(part, device)
        except Exception as error:  # noqa: BLE001 - raised here it would end the app's first use of CUDA; the log has it
            calllog.note("torch could not be held to its part of the GPU: %s" % error)

    setattr(set_per_process_memory_fraction, MARK, True)
    for place in (module, getattr(module, "memory", None)):
        if hasattr(place, "set_per_process_memory_fraction"):
            setattr(place, "set_per_process_memory_fraction", set_per_process_memory_fraction)  # noqa: B010
    module._lazy_call(begin)


def vllm_arguments(module: Any) -> None:
    """Let `gpu_memory_utilization` be of this replica's share; `module` is vllm.engine.arg_utils.

    Here and not in LLM, because the asynchronous engine and vLLM's own server come this way too.
    """
    arguments = getattr(module, "EngineArgs", None)
    for name in ("create_engine_config", "create_engine_configs"):  # the second in versions before 0.4
        method = getattr(arguments, name, None)
        if callable(method) and not hasattr(method, MARK):
            setattr(arguments, name, _of_share(method))


def _of_share(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def create(self: Any, *arguments: Any, **options: Any) -> Any:
        found, asked = limit(), getattr(self, "gpu_memory_utilization", None)
        if found is None or not isinstance(asked, (int, float)):
            return method(self, *arguments, **options)
        share, part = found
        given = min(asked * share, part)
        calllog.note(
            "gpu_memory_utilization %.3g is lowered to %.3g: this replica has %.3g of the GPU" % (asked, given, share)
        )
        self.gpu_memory_utilization = given
        try:
            return method(self, *arguments, **options)
        finally:
            self.gpu_memory_utilization = asked  # asked again, it would be lowered twice

    setattr(create, MARK, True)
    return create


HOOKS: Dict[str, Hook] = {"torch.cuda": torch_cuda, "vllm.engine.arg_utils": vllm_arguments}


class ShareFinder:
    """Finds what the others find, and has a hook run when the module's own code has. One on sys.meta_path is enough."""

    def __init__(self, hooks: Dict[str, Hook]) -> None:
        self.hooks = hooks

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        hook = self.hooks.get(name)
        if hook is None:
            return None
        spec: Any = next(self._specs(name, path, target), None)
        execute = getattr(getattr(spec, "loader", None), "exec_module", None)
        if execute is not None:
            spec.loader.exec_module = functools.partial(_execute, execute, hook)
        return spec

    def _specs(self, name: str, path: Any, target: Any) -> Iterator[Any]:
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    yield spec


def _execute(execute: Callable[[Any], None], hook: Hook, module: Any) -> None:
    execute(module)
    hook(module)


def join() -> None:
    """In a Python process that the app has started: see to its imports as the worker sees to its own."""
    if limit() is not None:
        sys.meta_path.insert(0, ShareFinder(HOOKS))
