"""The command line of the worker: `serve`, `validate` and `zygote`."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import signal
import socket
import threading
from typing import Any, Dict, List

from puna.process import tree
from puna.worker import hooks, process, share
from puna.worker.app import calllog, faults, imports
from puna.worker.app.runner import App
from puna.worker.app.validate import validate
from puna.worker.server import EXIT_FAILED, Server
from puna.worker.zygote.fork_server import ForkServer

USAGE = """
usage: python -I WORKER serve --socket PATH --app DIR [--concurrency N] [--parent-fd FD]
                            [--busy-fd FD] [--overrun-grace-s S] [--asked MONOTONIC_S]
                            [--log cri]
       python -I WORKER validate --app DIR --report FILE [--parent-fd FD]
       python -I WORKER zygote --socket PATH --app DIR --parent-fd FD [--log cri]"""

NEEDED = {"serve": {"socket", "app"}, "validate": {"app", "report"}, "zygote": {"socket", "app", "parent-fd"}}


def main(arguments: List[str]) -> int:
    """Run one command; the exit status of the process."""
    command, options = parse(arguments)
    calllog.install(options.get("log") == "cri")
    faults.warm_up()
    faulthandler.enable(2, all_threads=False)  # a crash in C leaves the lines that led to it in the log
    tree.become_subreaper()
    if command == "zygote":
        imports.leave_no_trace()
        imports.install_stub()
        hooks.install()
        ForkServer(os.path.abspath(options["socket"]), options["app"], int(options["parent-fd"]), _serve_fork).run()
    if "parent-fd" in options:
        _watch_parent(int(options["parent-fd"]))
    report = os.path.abspath(options.get("report", ""))
    imports.leave_no_trace()
    app = App(options["app"])
    if command == "validate":
        share.settle()
        hooks.install()
        app.enter()
        status = 0 if validate(app, report) else EXIT_FAILED
        process.kill_descendants()
        os._exit(status)  # threads that the app left behind must not hold the build
    serve(app, options)
    return 0


def serve(app: App, options: Dict[str, str]) -> None:
    """Serve until the end is asked for. Ends the process itself: threads of the app may never end."""
    share.settle()
    server = Server(app, os.path.abspath(options["socket"]), int(options.get("concurrency", "0")))
    server.born, server.asked = options.get("born", "spawn"), float(options.get("asked", "0"))
    server.calls.overrun_grace_s = float(options.get("overrun-grace-s", server.calls.overrun_grace_s))
    if "busy-fd" in options:
        server.say_busy_on(process.shared_page(int(options["busy-fd"])))
    _on_sigterm(server)
    server.listen()
    hooks.install(server.concurrency)
    app.enter()
    if not server.start_app():
        process.kill_descendants()
        os._exit(EXIT_FAILED)
    server.run()
    try:
        atexit._run_exitfuncs()
    except BaseException as error:  # noqa: BLE001 - the app's exit functions are best effort; the log has it
        calllog.note("an exit function raised:\n" + faults.whole(error))
    process.kill_descendants()
    os._exit(0)


def _serve_fork(arguments: List[str], parent_fd: int, busy_fd: int) -> None:
    """Serve in a zygote's fork: all that `main` sets up is there, but for the watch on the guard."""
    _, options = parse(arguments)
    _watch_parent(parent_fd)
    serve(App(options["app"]), {**options, "born": "zygote", "busy-fd": str(busy_fd)})


def parse(arguments: List[str]) -> Any:
    """`(command, options)`; ends the process with the usage when they make no sense."""
    command, pairs = (arguments or [""])[0], arguments[1:]
    options = {pairs[i][2:]: pairs[i + 1] for i in range(0, len(pairs) - 1, 2) if pairs[i].startswith("--")}
    needed = NEEDED.get(command)
    if needed is None or not needed <= set(options) or len(options) * 2 != len(pairs):
        raise SystemExit(USAGE)
    return command, options


def _watch_parent(fd: int) -> None:
    threading.Thread(target=_die_with_parent, args=(fd,), daemon=True).start()


def _die_with_parent(fd: int) -> None:
    """The guard holds the other end of a pipe: when that closes, the guard is dead, and everything here ends."""
    with contextlib.suppress(OSError):
        while os.read(fd, 1):
            pass
    process.kill_descendants()
    os._exit(128 + signal.SIGKILL)


def _on_sigterm(server: Server) -> None:
    """SIGTERM drains, also while the main thread is deep in C: the signal's byte wakes a thread of its own."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while signal.SIGTERM not in reader.recv(64):
            pass
        begin()

    def begin(*_: Any) -> None:
        if server.state == "starting":
            process.kill_descendants()
            os._exit(128 + signal.SIGTERM)
        server.shut_down()

    def handle(*_: Any) -> None:
        # The app may take the wake-up descriptor for an event loop of its own; then the handler itself has to do.
        threading.Thread(target=begin, daemon=True).start()

    def leave() -> None:
        # A forked child that is terminated must die of it, and not by the shared descriptor shut its parent down.
        with contextlib.suppress(ValueError):
            before = signal.set_wakeup_fd(-1)
            if before != writer.fileno():
                signal.set_wakeup_fd(before)
            if signal.getsignal(signal.SIGTERM) is handle:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, handle)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=leave)
    threading.Thread(target=listen, daemon=True).start()
    _kept.extend((reader, writer))


_kept: List[socket.socket] = []  # a socket that is collected closes
