"""The benchmark of a real engine: a blocking app on vLLM through Puna, by tier, and `vllm serve` beside it.

Everything over HTTP, on one machine, in one run: tokens a second of one caller and of many, the first token of an
endpoint that is awake, asleep, warm (a zygote waits) or cold, and the GPU's memory while asleep. Run it with an
interpreter that has vLLM; the model's weights are random (`--shape`) unless `--model` names another.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from servers import llama
from servers.contenders import Puna, puna

from puna.artifacts import write_json
from serve import BENCH, commit, machine

NAME = "llama"
TOKENS = 128
WAIT_S = 900.0
APP = """
from vllm import LLM, SamplingParams

class InferlessPythonModel:
    def initialize(self):
        self.sampling_params = SamplingParams(temperature=0.7, top_p=0.95, max_tokens={tokens}, ignore_eos=True)
        self.llm = LLM(model={model!r}, max_model_len={length}{options})

    def infer(self, inputs):
        result = self.llm.generate(inputs["prompt"], self.sampling_params)
        return {{"generated_text": result[0].outputs[0].text}}

    def finalize(self):
        self.llm = None
"""
SCHEMA = (
    'INPUT_SCHEMA = {"prompt": {"datatype": "STRING", "required": True, "shape": [1], "example": ["What is AI?"]}}\n'
)
# With both up at once: each one's share of the GPU, and room for its callers.
TOGETHER = {"gpu_memory_utilization": 0.65, "kv_cache_memory_bytes": 64 * 2**30}
TOGETHER_PEER = ["--gpu-memory-utilization", "0.22", "--kv-cache-memory-bytes", str(8 * 2**30)]
# What a machine without a GPU asks of vLLM.
CPU_ENV = {"VLLM_CPU_CI_ENV": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


class Bench:
    """The results so far, on disk after every step, so that a run that is cut off loses only what it had not begun."""

    def __init__(self, options: argparse.Namespace, model: Path) -> None:
        self.options, self.model = options, model
        self.is_gpu = shutil.which("nvidia-smi") is not None
        self.result: dict[str, Any] = {
            "machine": machine() | ({"gpu": gpu_name()} if self.is_gpu else {}),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "shape": options.shape,
            "tokens": TOKENS,
            "weights": "dummy" if options.dummy else "random",
            "together": options.together,
        }
        self.begun = time.monotonic()

    def note(self, key: str, value: Any, said: str) -> None:
        """Keep a figure and say it."""
        self.result[key] = value
        write_json(self.options.out, self.result)
        print(f"RESULT [{time.monotonic() - self.begun:4.0f} s] {said}", flush=True)

    def step(self, name: str, run: Callable[[], None]) -> None:
        """One part; when it fails the others still run, and the results say so."""
        try:
            run()
        except Exception as error:  # noqa: BLE001 - the results and whoever reads them see it
            self.result.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"
            self.note("failed", self.result["failed"], f"{name} FAILED: {type(error).__name__}: {str(error)[-1500:]}")


class Target:
    """Where completions are asked for, OpenAI's way, and the app's own way where there is an app."""

    def __init__(self, url: str, key: str, model: str, infer: str = "") -> None:
        self.url, self.model, self.infer = url, model, infer
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(timeout=WAIT_S, limits=httpx.Limits(max_connections=None))

    def reply(self, prompt: str) -> dict[str, str]:
        """One whole reply of `TOKENS` tokens; its headers."""
        if self.infer:
            body: Any = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": [prompt]}]}
            answer = self.client.post(self.infer, json=body, headers=self.headers)
        else:
            body = {"model": self.model, "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True}
            body |= {"temperature": 0.7, "top_p": 0.95}
            answer = self.client.post(f"{self.url}/v1/completions", json=body, headers=self.headers)
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {answer.text[:300]}")
        return dict(answer.headers)

    def first_token(self, prompt: str) -> tuple[float, dict[str, str]]:
        """Seconds from the request to the first piece of text, and the reply's headers."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": 1, "stream": True, "ignore_eos": True}
        began = time.perf_counter()
        with self.client.stream("POST", f"{self.url}/v1/completions", json=body, headers=self.headers) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code}: {answer.read()[:300]!r}")
            for line in answer.iter_lines():
                if line.startswith("data:") and '"text"' in line:
                    return time.perf_counter() - began, dict(answer.headers)
        raise RuntimeError("the stream ended without a token")


def speeds(bench: Bench, name: str, target: Target) -> None:
    """One caller after the other, then many at once, prompts all different."""
    for number in range(2):
        target.reply(f"warm {number}")
    alone = []
    for number in range(5):
        began = time.perf_counter()
        target.reply(f"{name}, alone, number {number}")
        alone.append(time.perf_counter() - began)
    one_s = statistics.median(alone)
    firsts = [target.first_token(f"{name}, first token, number {n}")[0] for n in range(5)]
    rates: dict[str, list[float]] = {}
    for callers in (bench.options.callers, bench.options.callers, bench.options.callers, 16, 5):
        rates.setdefault(str(callers), []).append(many(target, name, callers))
    figures = {
        "one_s": one_s,
        "one_tokens_per_s": TOKENS / one_s,
        "first_token_s": statistics.median(firsts),
        "many_tokens_per_s": dict(rates),
    }
    best = max(rates[str(bench.options.callers)])
    said = f"{name}: {TOKENS} tokens in {one_s:.3f} s ({TOKENS / one_s:.0f} tok/s), "
    said += f"first token {statistics.median(firsts):.4f} s"
    bench.note(f"speed_{name}", figures, f"{said}, {bench.options.callers} callers {best:,.0f} tok/s; all: {rates}")


def many(target: Target, name: str, callers: int) -> float:
    """Tokens a second of `callers` at once, two requests each."""
    errors: list[Exception] = []

    def call(number: int) -> None:
        try:
            for turn in range(2):
                target.reply(f"{name}, {callers} at once, {number}, turn {turn}, {time.time()}")
        except Exception as error:  # noqa: BLE001 - raised below, in the caller's thread
            errors.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return 2 * callers * TOKENS / (time.perf_counter() - began)


def deploy(bench: Bench, running: Puna, folder: Path) -> None:
    """The app on this interpreter's packages."""
    folder.mkdir()
    options = "" if bench.is_gpu else ", enforce_eager=True, dtype='float32', max_num_seqs=64"
    options += ", load_format='dummy'" * bench.options.dummy
    options += "".join(f", {name}={value}" for name, value in TOGETHER.items()) * (
        bench.options.together & bench.is_gpu
    )
    length = 8192 if bench.options.shape == "llama3-8b" else 2048
    app = APP.format(tokens=TOKENS, model=str(bench.model), length=length, options=options)
    (folder / "app.py").write_text(app)
    (folder / "input_schema.py").write_text(SCHEMA)
    (folder / "inferless-runtime-config.yaml").write_text("build:\n  python_packages: []\n")
    env = {"PYTHONPATH": os.pathsep.join(package_folders(bench.options.python))}
    env |= {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}
    env |= {} if bench.is_gpu else CPU_ENV
    settings: dict[str, Any] = {"env": env, "scale_down_delay_s": 600, "min_replica": 0, "max_replica": 1}
    settings |= {"evict_after_s": 3600, "inference_time_s": 600, "max_queue": 1000}
    settings |= {} if bench.is_gpu else {"gpu_type": "cpu"}
    began = time.perf_counter()
    deployed = running.client.deploy(folder, NAME, settings=settings)
    running.client.wait_for_build(deployed["build_id"], WAIT_S)
    built_s = time.perf_counter() - began
    running.client.wait_for_endpoint(NAME, deployed["revision"], WAIT_S)
    total_s = time.perf_counter() - began
    figures = {"build_and_bake_s": built_s, "ready_s": total_s}
    bench.note("deploy", figures, f"deployed: built and baked in {built_s:.1f} s, ready after {total_s:.1f} s")


def asleep(bench: Bench, running: Puna, target: Target) -> None:
    """From asleep to the first token, several times."""
    found = []
    running.client.patch(NAME, scale_down_delay_s=1)
    for number in range(bench.options.wakes):
        if number:  # what the last call woke is written down as awake a moment later
            wait(running, lambda e: any(r["state"] != "asleep" for r in e["replicas"]), "awake")
        began = time.perf_counter()
        wait(running, lambda e: e["replicas"] and all(r["state"] == "asleep" for r in e["replicas"]), "asleep")
        fell_s = time.perf_counter() - began
        used = gpu_used_bytes() if bench.is_gpu else 0
        time.sleep(0.5)
        first_s, headers = target.first_token(f"wake up, number {number}")
        again_s, _ = target.first_token(f"awake, number {number}")
        tier = headers.get("x-puna-tier")
        wake_ms = float(headers.get("x-puna-wake-ms") or 0)
        found.append({"first_token_s": first_s, "wake_ms": wake_ms, "tier": tier, "gpu_used_bytes": used})
        print(
            f"RESULT asleep after {fell_s:.2f} s, {used / 2**30:.2f} GiB of GPU in use; first token {first_s:.3f} s "
            f"({tier}, of it waking {wake_ms:.0f} ms), then {again_s:.3f}",
            flush=True,
        )
    running.client.patch(NAME, scale_down_delay_s=600)
    middle = statistics.median(f["first_token_s"] for f in found)
    bench.note("asleep", found, f"asleep to first token over HTTP: median {middle:.3f} s of {len(found)}")


def from_zero(bench: Bench, running: Puna, target: Target, tier: str, times: int) -> None:
    """From no replica to the first token, with a zygote (`warm`) or without (`cold`)."""
    found = []
    running.client.patch(NAME, evict_after_s=0, scale_down_delay_s=1, zygote=tier == "warm")
    state = "ready" if tier == "warm" else "off"
    for number in range(times):
        wait(
            running,
            lambda e: not e["replicas"] and (e["warm"] or {"state": "off"})["state"] in (state, "refused"),
            tier,
        )
        warm = running.client.endpoint(NAME)["warm"] or {}
        if warm.get("state") == "refused":
            raise RuntimeError(f"the zygote refuses: {warm['reason']}")
        time.sleep(1.0)
        first_s, headers = target.first_token(f"from zero, number {number}")
        found.append({"first_token_s": first_s, "tier": headers.get("x-puna-tier"), "zygote": warm})
        print(f"RESULT from zero to first token {first_s:.2f} s ({headers.get('x-puna-tier')})", flush=True)
    running.client.patch(NAME, scale_down_delay_s=600, evict_after_s=3600, zygote=True)
    middle = statistics.median(f["first_token_s"] for f in found)
    bench.note(tier, found, f"{tier} to first token over HTTP: median {middle:.2f} s of {len(found)}")


def wait(running: Puna, condition: Callable[[dict[str, Any]], bool], what: str) -> None:
    """Until the endpoint is so."""
    deadline = time.monotonic() + 180
    while not condition(endpoint := running.client.endpoint(NAME)):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not {what} within 180 s: {json.dumps(endpoint, default=str)[:1500]}")
        time.sleep(0.05)


@contextmanager
def vllm_serve(bench: Bench) -> Iterator[Target]:
    """vLLM's own server with its defaults."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    length = "8192" if bench.options.shape == "llama3-8b" else "2048"
    command = [bench.options.python, "-m", "vllm.entrypoints.cli.main", "serve", str(bench.model), "--port", str(port)]
    command += ["--max-model-len", length] + ([] if bench.is_gpu else ["--enforce-eager", "--dtype", "float32"])
    command += ["--load-format", "dummy"] * bench.options.dummy
    command += TOGETHER_PEER if bench.options.together and bench.is_gpu else []
    env = os.environ | ({} if bench.is_gpu else CPU_ENV)
    log_path = Path(tempfile.gettempdir()) / "vllm-serve.log"
    with log_path.open("wb") as log:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
        try:
            target = Target(f"http://127.0.0.1:{port}", "", str(bench.model))
            while True:
                if process.poll() is not None:
                    raise RuntimeError(f"vllm serve ended: {log_path.read_text(errors='replace')[-1500:]}")
                try:
                    if target.client.get(f"{target.url}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            first_s = time.perf_counter() - began
            target.first_token("the first token of all")
            said = f"vllm serve: healthy after {first_s:.1f} s, first token {time.perf_counter() - began:.1f} s"
            bench.note("vllm_serve_start_s", time.perf_counter() - began, said)
            yield target
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Peer:
    """`vllm serve`, which starts in a thread while other things go on."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._turn = bench, threading.Event()
        self._thread = threading.Thread(target=bench.step, args=("vllm serve", self._run), daemon=True)

    def start(self) -> None:
        """Begin to start it."""
        self._thread.start()

    def measure(self) -> None:
        """Its speeds, once it is up; it ends then."""
        self._turn.set()
        self._thread.join()

    def _run(self) -> None:
        with vllm_serve(self._bench) as target:
            self._turn.wait()
            speeds(self._bench, "vllm", target)


def compare(bench: Bench) -> None:
    """Puna's speeds over vllm serve's."""
    own, peer = bench.result.get("speed_puna"), bench.result.get("speed_vllm")
    if own and peer:
        callers = str(bench.options.callers)
        one = own["one_tokens_per_s"] / peer["one_tokens_per_s"]
        most = max(own["many_tokens_per_s"][callers]) / max(peer["many_tokens_per_s"][callers])
        bench.note("ratio", {"one": one, "many": most}, f"Puna over vllm serve: one {one:.3f}, {callers} {most:.3f}")


def package_folders(python: str) -> list[str]:
    """Where that interpreter finds packages."""
    script = "import sys; print('\\n'.join(p for p in sys.path if 'site' in p.rsplit('/', 1)[-1] or 'packages' in p))"
    return subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.split()


def gpu_name() -> str:
    """The first GPU."""
    return smi("name").splitlines()[0]


def gpu_used_bytes() -> int:
    """Memory in use on the first GPU, by whomever."""
    return int(smi("memory.used").splitlines()[0].split()[0]) * 2**20


def smi(field: str) -> str:
    """One field of every GPU."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main(words: Sequence[str] | None = None) -> int:
    """Measure, part by part; 1 when one failed."""
    options = parse(words)
    model = options.model or options.work / f"{options.shape}{'-dummy' * options.dummy}"
    if options.model is None:
        llama.make(model, options.shape, has_weights=not options.dummy)
    bench = Bench(options, model.resolve())
    peer = Peer(bench)
    if options.together:
        peer.start()
    if "puna" in options.only:
        with puna() as running, tempfile.TemporaryDirectory() as folder:
            try:
                measure(bench, running, Path(folder), peer)
            finally:
                keep_logs(running, options.logs)
    if "vllm" in options.only and not options.together:
        peer.start()
        peer.measure()
    if not options.together:
        compare(bench)
    print(f"written: {options.out}")
    return int("failed" in bench.result)


def measure(bench: Bench, running: Puna, folder: Path, peer: Peer) -> None:
    """Every part of Puna's, and the peer's turn when it is up beside it."""
    deploy(bench, running, folder / "app")
    url = str(running.client.health()["url"])
    key = str(running.client.create_key(["infer"])["key"])
    target = Target(url, key, NAME, f"{url}/v2/models/{NAME}/infer")
    time.sleep(1)  # the gateways hear of a new key
    bench.step("speed", lambda: speeds(bench, "puna", target))
    if bench.options.together:
        peer.measure()
        compare(bench)
    if bench.is_gpu:
        bench.step("asleep", lambda: asleep(bench, running, target))
    if bench.options.starts:
        bench.step("warm", lambda: from_zero(bench, running, target, "warm", bench.options.starts))
    if bench.options.cold:
        bench.step("cold", lambda: from_zero(bench, running, target, "cold", bench.options.cold))
    running.client.deactivate(NAME)
    wait(running, lambda e: not e["replicas"], "gone")


def keep_logs(running: Puna, folder: Path | None) -> None:
    """Copy what the app and the control plane wrote."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(sorted(running.home.logs.rglob("*.log"))):
            text = path.read_text(errors="replace")
            (folder / f"{number}-{path.parent.name}-{path.name}").write_text(text[-400_000:])


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--python", default=sys.executable, help="an interpreter that has vLLM")
    add("--model", type=Path, metavar="DIR", help="a model on disk")
    add("--shape", choices=sorted(llama.SHAPES), default="llama3-8b", help="of the random weights without --model")
    add("--work", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR", help="where random weights are kept")
    add("--only", nargs="+", choices=["puna", "vllm"], default=["puna", "vllm"])
    add("--dummy", action="store_true", help="vLLM makes weights up, none are written")
    add("--together", action="store_true", help="both are up at once, each on a share of the GPU: shorter")
    add("--callers", type=int, default=64, help="at once")
    add("--wakes", type=int, default=5, help="from asleep")
    add("--starts", type=int, default=3, help="from a zygote")
    add("--cold", type=int, default=0, help="from nothing")
    add("--logs", type=Path, metavar="DIR", help="keep the logs here")
    add("--out", type=Path, metavar="FILE", help="bench/engine-GPU.json")
    options = parser.parse_args(words)
    gpu = gpu_name().lower().replace(" ", "-") if shutil.which("nvidia-smi") else "cpu"
    options.out = options.out or BENCH / f"engine-{gpu}.json"
    return options


if __name__ == "__main__":
    sys.exit(main())
