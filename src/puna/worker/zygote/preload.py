"""The imports of a zygote ahead of its forks, and the reasons why it may not fork afterwards.

It imports what app.py imports at top level, in the same order and with the same environment variables set, and stops
where a statement comes that may change what a later import does: the rest is imported by the fork, as always.
The app's own modules are never imported here: they are the user's code and may have effects.
"""

from __future__ import annotations

import _thread
import ast
import ctypes
import importlib
import importlib.machinery
import os
import signal
import sys
import threading
import time
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from puna.process import tree
from puna.worker.app import calllog

# What vLLM imports while an engine is made: 3 of its 13 s of imports. Not every version has each.
VLLM_LATER = (
    "vllm.v1.engine.core",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.core.sched.async_scheduler",
    "vllm.v1.attention.backends.flash_attn",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.model_loader.default_loader",
)
VLLM_LATER_CPU = ("vllm.v1.worker.cpu_worker", "vllm.v1.worker.cpu_model_runner", "vllm.v1.attention.backends.cpu_attn")
# Calls at top level that change nothing for imports after them.
HARMLESS_CALLS = frozenset(
    "logging.getLogger logging.basicConfig warnings.filterwarnings warnings.simplefilter os.getenv os.environ.get "
    "os.path.join os.path.dirname os.path.abspath os.path.exists time.time time.monotonic time.perf_counter "
    "print".split()
)
# Threads of libraries that do not live through a fork; others (OpenBLAS, OpenMP) start theirs again.
UNSAFE_THREADS = ("grpc", "tokio", "ray")
THREAD_BEGINS_S = 0.05  # Python counts a thread once it runs
# Signs that somebody has touched the GPU. Not all touches do harm: torch and vLLM leave a thread `cuda0000...` on an
# H200, and their forks use CUDA all the same; after cuInit no fork can. A fork that tries tells which it is.
CUDA_FILES = ("/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
CUDA_THREADS = ("cuda",)
CUDA_TRIAL_S = 30.0


Step = Tuple[str, str, Tuple[str, ...]]


class PreloadPlan:
    """The imports at the top of an app.py: steps in order, and the line that ends what may be done ahead."""

    def __init__(self) -> None:
        self.variables = dict(os.environ)
        """The environment as the steps so far have left it."""
        self.steps: List[Step] = []
        """`("import", module, names of a from-import)` or `("env", name, (value,))`."""
        self.stopped_at = 0
        """The line of the first statement that an import may depend on; 0: none."""
        self.is_async = False
        self.sets_vllm = False
        """The app sets a variable of vLLM's: vLLM's own modules must not be imported before it does."""


def read(source: bytes) -> PreloadPlan:
    """The plan of an app.py; one that cannot be parsed has no steps."""
    plan = PreloadPlan()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return plan
    nodes = list(ast.walk(tree))
    plan.is_async = any(isinstance(node, ast.AsyncFunctionDef) for node in nodes)
    for node in tree.body:
        steps = _steps(node, plan.variables)
        if steps is None:
            plan.stopped_at = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            break
        plan.steps += steps
    done = {name for kind, name, _ in plan.steps if kind == "env"}
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    plan.sets_vllm = any(text.startswith("VLLM_") for text in texts - done)
    return plan


def _steps(node: ast.stmt, variables: Dict[str, str]) -> Optional[List[Step]]:
    """The steps of one statement; None when nothing is known of what it does."""
    if isinstance(node, ast.Import):
        return [("import", alias.name, ()) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        names = tuple(alias.name for alias in node.names if alias.name != "*")
        return [("import", node.module, names)] if node.module and not node.level else []
    if isinstance(node, ast.Try):
        found = [_steps(inner, variables) for inner in (*node.body, *node.orelse)]
        return None if None in found else [step for steps in found for step in steps or []]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.decorator_list:
        return None
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return []
    if isinstance(node, ast.ClassDef):
        quiet = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Pass, ast.Assign, ast.AnnAssign, ast.Expr)
        return [] if all(isinstance(n, quiet) for n in node.body) and _is_quiet(node) else None
    if isinstance(node, ast.If) and _dotted(node.test).split(".")[-1] == "TYPE_CHECKING":
        return []
    variable = _variable(node, variables)
    if variable is not None:
        variables[variable[0]] = variable[1]
        return [("env", variable[0], (variable[1],))]
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [] if all(isinstance(target, ast.Name) for target in targets) and _is_quiet(node) else None
    return [] if isinstance(node, (ast.Pass, ast.Expr)) and _is_quiet(node) else None


def _is_quiet(node: ast.AST) -> bool:
    """Nothing in it is called but what is known to be harmless; what functions do when called later does not count."""
    todo: List[ast.AST] = [node]
    while todo:
        one = todo.pop()
        if isinstance(one, ast.Call) and _dotted(one.func) not in HARMLESS_CALLS:
            return False
        if isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        todo += ast.iter_child_nodes(one)
    return True


def _variable(node: ast.stmt, variables: Dict[str, str]) -> Optional[Tuple[str, str]]:
    """`(name, value)` of `os.environ["NAME"] = "value"` where both are known."""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return None
    target = node.targets[0]
    if not isinstance(target, ast.Subscript) or _dotted(target.value) not in ("os.environ", "environ"):
        return None
    # Python 3.8 wraps the index.
    name, value = getattr(target.slice, "value", None), _text(node.value, variables)
    name = name.value if isinstance(name, ast.Constant) else name
    return (name, value) if isinstance(name, str) and value is not None else None


def _text(node: ast.expr, variables: Dict[str, str]) -> Optional[str]:
    """The text that an expression gives: a constant, or a variable of the environment that is there."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Call) and _dotted(node.func) in ("os.getenv", "os.environ.get") and not node.keywords:
        values = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if values and len(values) == len(node.args):
            return variables.get(values[0], values[1] if len(values) > 1 else None)
    return None


def _dotted(node: ast.AST) -> str:
    parts: List[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([*parts, node.id][::-1]) if isinstance(node, ast.Name) else ""


class Preload:
    """Imports ahead for one app's folder; `run` once, then ask `why_not`."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.abspath(folder)
        self.before: Set[str] = {name.split(".")[0] for name in sys.modules}
        self.seconds: Dict[str, float] = {}

    def run(self) -> None:
        """Import; what fails is noted in the log and left to the fork, which fails in the same way or does not."""
        try:
            with open(os.path.join(self.folder, "app.py"), "rb") as file:
                plan = read(file.read())
        except OSError:
            return
        variables, path = dict(os.environ), list(sys.path)
        # Else a library that asks torch whether there is a GPU begins CUDA, and nothing may be forked.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        extra = os.environ.get("PYTHONPATH", "")
        sys.path[:0] = [p for p in extra.split(os.pathsep) if p and os.path.abspath(p) != self.folder]
        try:
            for kind, name, more in plan.steps:
                if kind == "env":
                    os.environ[name] = more[0]
                else:
                    self._import(name, more)
            if plan.stopped_at:
                calllog.note("zygote: imports from line %d of app.py on are left to each start" % plan.stopped_at)
            if plan.is_async:
                self._import("asyncio", ())
            if "vllm" in sys.modules and not plan.sets_vllm:
                cpu = "+cpu" in str(getattr(sys.modules.get("torch"), "__version__", ""))
                for name in (*VLLM_LATER, *(VLLM_LATER_CPU if cpu else ())):
                    self._import(name, ())
        finally:
            sys.path[:] = path
            for name in set(os.environ) - set(variables):
                del os.environ[name]
            os.environ.update(variables)

    def _import(self, name: str, names: Tuple[str, ...]) -> None:
        """Import one module and fetch what is taken from it."""
        if is_of_app(name, self.folder):
            return
        begun = time.monotonic()
        try:
            module = importlib.import_module(name)
            for attribute in names:  # a lazy package imports on access
                if not hasattr(module, attribute):
                    importlib.import_module("%s.%s" % (name, attribute))
        except BaseException as error:  # noqa: BLE001 - the log has it; the app meets it too, or has a way around it
            calllog.note("zygote: `import %s` failed, left to each start: %s: %s" % (name, type(error).__name__, error))
        self.seconds[name] = round(time.monotonic() - begun, 3)

    def why_not(self) -> str:
        """The reason why this process must not be forked for an app; empty when it may."""
        mine = {name.split(".")[0] for name in sys.modules} - self.before
        hidden = sorted(name for name in mine if is_of_app(name, self.folder))
        if hidden:
            return "the app's own `%s` stands before a library's module of that name" % hidden[0]
        return why_threads() or why_cuda() or why_children()


def is_of_app(name: str, folder: str) -> bool:
    """True when the app's folder has a module of that name, which then wins over a library's."""
    path = os.path.join(folder, name.split(".")[0])
    # A folder without __init__.py is data: it would make a namespace package, which a library's module beats.
    return any(os.path.isfile(path + end) for end in (os.sep + "__init__.py", *_ENDINGS))


def why_threads() -> str:
    """A thread that an import has started: it would be missing in every fork."""
    time.sleep(THREAD_BEGINS_S)
    named = [t.name for t in threading.enumerate() if t is not threading.current_thread()]
    if named or _thread._count():
        return "an import started a thread (%s), which a fork would lack" % (named[0] if named else "without a name")
    unsafe = native_threads(UNSAFE_THREADS)
    return next(("an import started a thread of %s, which a fork would lack" % name for name in unsafe), "")


def native_threads(prefixes: Tuple[str, ...]) -> Iterator[str]:
    """Names of this process's threads, as the kernel has them, that begin so."""
    for thread in os.listdir("/proc/self/task"):
        try:
            with open("/proc/self/task/%s/comm" % thread, encoding="utf-8", errors="replace") as file:
                name = file.read().strip()
        except OSError:  # it has just ended
            continue
        if name.startswith(prefixes):
            yield name


def why_cuda() -> str:
    """CUDA begun in this process cannot be used in its children."""
    torch: Any = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_initialized():
        return "an import initialised CUDA, which a fork cannot use"
    touched = next(native_threads(CUDA_THREADS), "") or cuda_file()
    if touched and not fork_can_use_cuda():
        return "an import opened the GPU (%s), and its forks cannot use CUDA" % touched
    return ""


def cuda_file() -> str:
    """An open file of the GPU's driver, or nothing."""
    for fd in os.listdir("/proc/self/fd"):
        try:
            opened = os.readlink("/proc/self/fd/" + fd)
        except OSError:  # the listing's own
            continue
        if opened in CUDA_FILES:
            return opened
    return ""


def fork_can_use_cuda() -> bool:
    """Fork once and begin CUDA there."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(ctypes.CDLL("libcuda.so.1").cuInit(0))
        finally:
            os._exit(255)  # there is no CUDA
    end = time.monotonic() + CUDA_TRIAL_S
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def why_children() -> str:
    """A process that an import has left running belongs to this one, not to the forks."""
    children = tree.by_parent().get(os.getpid())
    return "an import started a process (%d), which a fork could not reach" % children[0].pid if children else ""


_ENDINGS = (".py", ".pyc", ".so", *importlib.machinery.EXTENSION_SUFFIXES)
