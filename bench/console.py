"""The console benchmark: 200 endpoints and 100,000 log lines in a real Chromium, and what open consoles cost."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from servers.contenders import ENDPOINT, Puna, puna
from servers.crowd import crowd

from puna.artifacts import write_json
from serve import BENCH, commit, machine

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
WATCH_S = 10.0
CONSOLES = 3
PAINT_LIMIT_MS = 300.0
# What the page itself has seen: first paint, when so many rows stood there, and every task over 50 ms.
WITNESS = """(rows) => {
  window.seen = { rows: null, long: [] };
  new PerformanceObserver((list) => { for (const one of list.getEntries()) window.seen.long.push(one.duration); })
    .observe({ type: "longtask", buffered: true });
  const look = () => {
    if (document.querySelectorAll("main tbody tr").length >= rows) window.seen.rows = performance.now();
    else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}"""
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
MOVED = "() => performance.getEntriesByType('resource').reduce((sum, one) => sum + one.encodedBodySize, 0)"


def main(words: Sequence[str] | None = None) -> int:
    """Measure pages, streams and processes; 1 when the first paint is late or a page has an error."""
    options = parse(words)
    if CHROMIUM is None:
        print("no Chromium: apt-get install chromium", file=sys.stderr)
        return 2
    from playwright.sync_api import sync_playwright

    result: dict[str, Any] = {
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "endpoints": options.endpoints,
        "lines": options.lines,
    }
    with puna(prepare=lambda home: crowd(home, options.endpoints, options.lines)) as running:
        result["api"] = replies(running, options.endpoints)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            look = Look(running, browser, options)
            result["home"] = look.home()
            result["endpoint"] = look.endpoint()
            result["log"] = look.log()
            result["open"] = look.several()
            if options.screenshots:
                look.pictures(options.screenshots)
            result["errors"] = look.errors
            browser.close()
    path = options.out or BENCH / f"console-{result['machine']['slug']}.json"
    write_json(path, result)
    print("\n".join(report(result)))
    print(f"{result['machine']['name']}; load average before {result['machine']['load']}; written: {path}")
    return int(bool(result["errors"]) or result["home"]["first_paint_ms"] > PAINT_LIMIT_MS)


class Look:
    """Pages in a browser, as an administrator sees them."""

    def __init__(self, running: Puna, browser: Any, options: argparse.Namespace) -> None:
        self.puna, self.browser, self.options = running, browser, options
        self.url = str(running.client.health()["url"])
        self.key = str(running.client.create_key(["admin"])["key"])
        self.errors: list[str] = []

    @contextlib.contextmanager
    def page(self, path: str, rows: int = 1, **kind: Any) -> Iterator[Any]:
        """A page in a browser without a cache."""
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **kind})
        context.add_init_script(f"sessionStorage.setItem('puna-key', {json.dumps(self.key)}); ({WITNESS})({rows})")
        page = context.new_page()
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(f"{self.url}/#{path}")
        yield page
        context.close()

    def home(self) -> dict[str, Any]:
        """The first page, several times without a cache."""
        runs, rows = [], self.options.endpoints + 1
        for _ in range(self.options.rounds):
            with self.page("/", rows) as page:
                until(page, "window.seen.rows !== null")
                page.wait_for_timeout(300)
                runs.append(
                    {
                        "first_paint_ms": page.evaluate(PAINT),
                        "rows_ms": page.evaluate("window.seen.rows"),
                        "longest_task_ms": page.evaluate("Math.max(0, ...window.seen.long)"),
                        "bytes": page.evaluate(MOVED),
                    }
                )
        with self.page("/", rows) as page:
            until(page, "window.seen.rows !== null")
            filtered = took(lambda: page.get_by_role("searchbox").fill("shop-1"))
            until(page, f"document.querySelectorAll('main tbody tr').length < {rows}")
        return medians(runs) | {"filter_ms": filtered, "runs": runs}

    def endpoint(self) -> dict[str, Any]:
        """An endpoint's first tab."""
        runs = []
        for _ in range(self.options.rounds):
            with self.page("/endpoints/shop-000") as page:
                page.get_by_role("heading", name="shop-000").wait_for()
                page.locator("dl.facts").first.wait_for()
                runs.append({"first_paint_ms": page.evaluate(PAINT), "shown_ms": page.evaluate("performance.now()")})
        return medians(runs) | {"runs": runs}

    def log(self) -> dict[str, Any]:
        """The log's tab: open it, go up, search, and follow while lines come."""
        last = f"request {self.options.lines - 1:06d}"
        found: dict[str, Any] = {}
        with self.page("/endpoints/shop-000/logs") as page:
            log = page.get_by_role("log")
            log.get_by_text(last).wait_for(timeout=60_000)
            found["shown_ms"] = page.evaluate("performance.now()")
            found["scroll_ms"] = took(lambda: log.evaluate("e => { e.scrollTop = 0; return e.scrollTop }"))
            page.wait_for_timeout(500)
            found["earlier_ms"] = took(lambda: self._earlier(page, log))
            page.evaluate("window.seen.long.length = 0")
            sought = "request 000007"
            box = page.get_by_label("Search")
            found["search_all_ms"] = took(lambda: self._search(page, log, box, sought))
            found["search_again_ms"] = took(lambda: self._search(page, log, box, "request 000042"))
            box.fill("")
            log.get_by_text(last).wait_for()
            found["longest_task_ms"] = page.evaluate("Math.max(0, ...window.seen.long)")
            with self._writing(200):
                page.wait_for_timeout(1000)
                page.evaluate("window.seen.long.length = 0")
                page.wait_for_timeout(3000)
                found["longest_task_while_following_ms"] = page.evaluate("Math.max(0, ...window.seen.long)")
                found["rows_in_page"] = log.evaluate("e => e.childElementCount")
            log.get_by_text("written last").wait_for(timeout=10_000)
            found["heap_mib"] = page.evaluate("performance.memory.usedJSHeapSize / 2 ** 20")
        return found

    @staticmethod
    def _earlier(page: Any, log: Any) -> None:
        before = log.evaluate("e => e.childElementCount")
        page.get_by_role("button", name="Show earlier lines").click()
        until(page, f"document.querySelector('[role=log]').childElementCount > {before}")

    @staticmethod
    def _search(page: Any, log: Any, box: Any, text: str) -> None:
        box.fill(text)
        log.locator("mark", has_text=text).first.wait_for(timeout=60_000)

    @contextlib.contextmanager
    def _writing(self, lines_per_s: int) -> Iterator[None]:
        """Lines come meanwhile."""
        path = next((self.puna.home.logs / "endpoints" / "shop-000").glob("*.log"))
        stop = threading.Event()

        def write() -> None:
            number = 0
            with path.open("a", buffering=1) as file:
                while not stop.wait(0.1):
                    for _ in range(lines_per_s // 10):
                        file.write(f"INFO request live-{number:06d} answered in 12 ms\n")
                        number += 1
                file.write("INFO written last\n")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            yield
        finally:
            stop.set()
            writer.join()

    def several(self) -> dict[str, Any]:
        """What the control plane and the gateway use with no console, with several idle, and with one endpoint busy."""
        found = {"none": self._used()}
        with contextlib.ExitStack() as stack:
            for _ in range(CONSOLES):
                page = stack.enter_context(self.page("/", self.options.endpoints + 1))
                until(page, "window.seen.rows !== null")
            time.sleep(2)
            found["idle"] = self._used()
            with calling(self.puna):
                found["one_busy"] = self._used()
        return found

    def _used(self) -> dict[str, Any]:
        pids = {name.partition(" ")[0]: pid for name, pid in self.puna.processes().items()}
        before = {role: cpu_s(pids[role]) for role in ("control", "gateway")}
        sent = stream_bytes(self.puna, self.key, WATCH_S)
        used = {role: (cpu_s(pids[role]) - before[role]) / WATCH_S for role in before}
        return {"cpu_share": used, "stream_bytes_per_s": sent / WATCH_S}

    def pictures(self, folder: Path) -> None:
        """What it looks like: light, dark, and on a phone."""
        folder.mkdir(parents=True, exist_ok=True)
        kinds = {
            "light": {"color_scheme": "light"},
            "dark": {"color_scheme": "dark"},
            "phone": {"viewport": {"width": 380, "height": 800}},
        }
        paths = {"home": "/", "log": "/endpoints/shop-000/logs", "endpoint": "/endpoints/shop-000"}
        for kind, values in kinds.items():
            for name, path in paths.items():
                with self.page(path, **values) as page:
                    page.wait_for_timeout(1500)
                    page.screenshot(path=folder / f"{name}-{kind}.png")
                    if name == "log":
                        page.get_by_label("Search").fill("request 0999")
                        page.wait_for_timeout(3000)
                        page.screenshot(path=folder / f"{name}-search-{kind}.png")


def replies(running: Puna, count: int) -> dict[str, Any]:
    """Size and time of what the console asks for."""
    found = {}
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(running.home.control_socket), verify=False)) as client:
        for path in ("/api/v1/endpoints", f"/api/v1/endpoints/shop-{count - 1:03d}", "/api/v1/builds"):
            times = []
            for _ in range(5):
                begun = time.perf_counter()
                reply = client.get(f"http://control{path}", timeout=60)
                times.append(1000 * (time.perf_counter() - begun))
                reply.raise_for_status()
            found[path] = {"bytes": len(reply.content), "ms": round(statistics.median(times), 1)}
        with client.stream("GET", "http://control/api/v1/events/stream") as stream:
            begun, first = time.perf_counter(), b""
            for chunk in stream.iter_bytes():
                first += chunk
                if b"\n\n" in first:
                    break
        found["first event of the stream"] = {
            "bytes": len(first),
            "ms": round(1000 * (time.perf_counter() - begun), 1),
        }
    return found


def stream_bytes(running: Puna, key: str, seconds: float) -> int:
    """What one more console's stream carries in that time, after its first event."""
    url = httpx.URL(str(running.client.health()["url"]))
    request = f"GET /api/v1/events/stream HTTP/1.1\r\nhost: {url.host}\r\nauthorization: Bearer {key}\r\n\r\n"
    total, first, until_s = 0, b"", 0.0
    with socket.create_connection((url.host, url.port or 80)) as client:
        client.settimeout(0.2)
        client.sendall(request.encode())
        while not until_s or time.monotonic() < until_s:
            with contextlib.suppress(TimeoutError):
                data = client.recv(1 << 20)
                if until_s:
                    total += len(data)
                elif b"event: state" in (first := first + data) and first.endswith(b"\n\n\r\n"):
                    until_s = time.monotonic() + seconds
    return total


@contextlib.contextmanager
def calling(running: Puna) -> Iterator[None]:
    """Somebody calls one endpoint all the time."""
    stop = threading.Event()
    headers = {"authorization": f"Bearer {running.target.key}"}
    body = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["hi"]}]}

    def call() -> None:
        with httpx.Client(headers=headers) as client:
            while not stop.wait(0.02):
                client.post(running.target.url, json=body, timeout=30).raise_for_status()

    caller = threading.Thread(target=call, name=ENDPOINT)
    caller.start()
    try:
        yield
    finally:
        stop.set()
        caller.join()


def until(page: Any, expression: str, within_s: float = 60.0) -> None:
    """Until that holds in the page; asked from here, for its policy lets nobody wait inside by evaluating text."""
    deadline = time.monotonic() + within_s
    while not page.evaluate(expression):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{page.url}: not within {within_s:g} s: {expression}")
        time.sleep(0.02)


def cpu_s(pid: int) -> float:
    """Seconds of a core that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def took(work: Callable[[], Any]) -> float:
    """Milliseconds of it."""
    begun = time.perf_counter()
    work()
    return round(1000 * (time.perf_counter() - begun), 1)


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figure by figure."""
    return {key: round(statistics.median(run[key] for run in runs), 1) for key in runs[0]}


def report(result: dict[str, Any]) -> list[str]:
    """The lines that scripts look for."""
    home, log, stream = result["home"], result["log"], result["open"]
    lines = [
        f"RESULT home: first paint {home['first_paint_ms']:.0f} ms, {result['endpoints']} endpoints after "
        f"{home['rows_ms']:.0f} ms, longest task {home['longest_task_ms']:.0f} ms, filter {home['filter_ms']:.0f} ms",
        f"RESULT endpoint: first paint {result['endpoint']['first_paint_ms']:.0f} ms, shown after "
        f"{result['endpoint']['shown_ms']:.0f} ms",
        f"RESULT log of {result['lines']:,} lines: shown after {log['shown_ms']:.0f} ms, earlier lines "
        f"{log['earlier_ms']:.0f} ms, search in all {log['search_all_ms']:.0f} ms, again "
        f"{log['search_again_ms']:.0f} ms; longest task {log['longest_task_ms']:.0f} ms, while following "
        f"{log['longest_task_while_following_ms']:.0f} ms",
    ]
    for name, used in stream.items():
        cpu = ", ".join(f"{role} {share:.1%} of a core" for role, share in used["cpu_share"].items())
        lines.append(f"RESULT {CONSOLES} consoles, {name}: {cpu}; a stream {used['stream_bytes_per_s']:,.0f} bytes/s")
    for path, reply in result["api"].items():
        lines.append(f"RESULT {path}: {reply['bytes']:,} bytes in {reply['ms']:.1f} ms")
    return [*lines, *(f"TROUBLE {error}" for error in result["errors"])]


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoints", type=int, default=200)
    parser.add_argument("--lines", type=int, default=100_000, help="lines in the log of one of them")
    parser.add_argument("--rounds", type=int, default=5, help="looks at a page, each without a cache")
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="pictures of the pages as well")
    parser.add_argument("--out", type=Path, metavar="FILE", help="bench/console-<machine>.json when left out")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
