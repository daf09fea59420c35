"""Each request is counted once: as use, reported exactly once, and for `/metrics`, also where gateways die."""

import fcntl
import json
import os
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from puna.control.wire import GatewayMemory, Memories, make
from puna.serve.counts import RequestCounts
from puna.serve.dispatch.call import Call

GATEWAY = """
    import os, signal, sys, time
    from puna.serve.dispatch.call import Call
    from puna.control.wire import EndpointLoad, EndpointRoute, Memories, ReplicaRoute, RouteTable
    from puna.serve.counts import RequestCounts

    replicas = tuple(ReplicaRoute(f"r{n}", 1, "/s", 1, tier) for n, tier in enumerate(["awake", "awake", "asleep"]))
    metrics = RequestCounts(Memories(tuple(map(int, sys.argv[2].split(",")))), int(sys.argv[3]))
    metrics.replicas(RouteTable(1, (), {"e": EndpointRoute("e", 1, True, "ready", "", 5, 5, 3, 0, None, replicas)}))
    for _ in range(7):
        call = Call("e", "infer", b"", "t", tier="asleep", queued_s=0.0, wake_s=0.3, infer_s=20.0, sent=1.0)
        metrics.answered("e", 200, call, time.perf_counter() - 30)
    metrics.answered("e", 429, Call("e", "infer", b"", "t", tier="cold"), time.perf_counter())
    metrics.answered("", 404, Call("nope", "infer", b"", "t"), time.perf_counter())
    metrics.loads({"e": EndpointLoad(3, 2)})
    metrics.flush()
    if sys.argv[1] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdout.buffer.write(metrics.text())
"""


def gateway(memories: Memories, index: int, end: str) -> bytes:
    argv = [sys.executable, "-c", textwrap.dedent(GATEWAY), end, ",".join(map(str, memories)), str(index)]
    run = subprocess.run(argv, pass_fds=memories, capture_output=True, timeout=60, check=False)
    assert run.returncode == (-9 if end == "dies" else 0), run.stderr.decode()
    return run.stdout


@pytest.mark.process
def test_waits_are_summed_over_gateways_those_of_a_killed_one_too_and_replicas_are_not() -> None:
    memories = make(3)
    gateway(memories, 0, "dies")
    families = text_string_to_metric_families(gateway(memories, 2, "answers").decode())
    found = {
        (s.name, json.dumps({k: v for k, v in s.labels.items() if k != "endpoint"}, sort_keys=True)): s.value
        for family in families
        for s in family.samples
        if s.labels.get("endpoint") == "e"
    }

    def value(name: str, **labels: str) -> float:
        return found[name, json.dumps(labels, sort_keys=True)]

    for name in ("queue", "wake", "infer", "first_byte"):
        assert value(f"puna_{name}_seconds_count", tier="asleep") == 14
    assert value("puna_wake_seconds_sum", tier="asleep") == pytest.approx(14 * 0.3)
    assert value("puna_wake_seconds_bucket", tier="asleep", le="0.25") == 0
    assert value("puna_wake_seconds_bucket", tier="asleep", le="0.5") == 14
    assert value("puna_infer_seconds_bucket", tier="asleep", le="10.0") == 0
    assert value("puna_infer_seconds_bucket", tier="asleep", le="25.0") == 14
    assert value("puna_first_byte_seconds_bucket", tier="asleep", le="50.0") == 14
    assert value("puna_queue_seconds_count", tier="cold") == 2
    assert value("puna_request_seconds_count") == 16
    assert value("puna_replicas", tier="awake") == 2 and value("puna_replicas", tier="asleep") == 1
    assert value("puna_queue") == 4 and value("puna_in_flight") == 6


@pytest.mark.process
def test_a_successor_counts_on_and_has_nothing_in_flight_of_what_the_dead_one_had() -> None:
    memories = make(1)
    gateway(memories, 0, "dies")
    successor = RequestCounts(memories, 0)
    successor.flush()
    text = successor.text().decode()
    assert 'puna_requests_total{endpoint="e",status="200"} 7.0' in text
    assert 'puna_request_seconds_count{endpoint="e"} 8.0' in text
    assert 'puna_in_flight{endpoint="e"} 0.0' in text and 'puna_replicas{endpoint="e",tier="awake"} 0.0' in text
    assert 'puna_requests_total{endpoint="e",status="200"} 14.0' in gateway(memories, 0, "answers").decode()


def test_a_memory_that_takes_no_more_is_told_of_once_and_requests_are_counted_as_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memories = Memories((os.memfd_create("figures", os.MFD_ALLOW_SEALING),))
    os.ftruncate(memories[0], 4096)
    fcntl.fcntl(memories[0], fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    metrics = RequestCounts(memories)
    for number in range(200):
        metrics.answered(f"e{number}", 200, Call("e", "infer", b"", "t", tier="cold"), 0.0)
        metrics.flush()
    assert len([r for r in caplog.records if "figures cannot be written down" in r.message]) == 1
    assert b'puna_requests_total{endpoint="e0",status="200"} 1.0' in metrics.text()


def test_half_a_record_and_one_of_another_version_are_passed_over() -> None:
    memories = make(1)
    count = RequestCounts(memories)
    count.answered("e", 200, Call("e", "infer", b"", "t"), 0.0)
    count.flush()
    GatewayMemory(memories[0]).write(
        [(("puna_requests", "e", "200"), [5.0]), (("of_another_version", "e"), [1.0, 2.0])]
    )
    size = os.fstat(memories[0]).st_size
    os.pwrite(memories[0], b"\xff" * 7, size)  # a writer was killed before it said that there is more
    assert b'puna_requests_total{endpoint="e",status="200"} 5.0' in RequestCounts(memories).text()


def answer(counts: RequestCounts, status: int = 200, key: str = "k", **seen: Any) -> None:
    counts.answered("e", status, Call("e", "infer", b"", "t", key=key, tier="awake", **seen), time.perf_counter())


def test_one_count_is_seen_as_use_and_as_a_metric() -> None:
    counts = RequestCounts()
    answer(counts, infer_s=0.25)
    answer(counts, infer_s=0.5, broke_off=True)  # a stream: its status had been sent
    answer(counts, 500)
    answer(counts, 499, "other")
    answer(counts, key="")  # nobody's: no use
    counts.answered("", 404, Call("nope", "infer", b"", "t", key="k"), 0.0)  # nothing that there is
    report = counts.usage(7200.5)
    assert report is not None and report.number == 1
    assert sorted(report.rows) == [(7200, "e", "k", 3, 2, 0.75), (7200, "e", "other", 1, 1, 0.0)]
    counts.flush()
    text = counts.text().decode()
    for labels, count in (
        ('"e",status="200"', 3),
        ('"e",status="500"', 1),
        ('"e",status="499"', 1),
        ('"",status="404"', 1),
    ):
        assert f"puna_requests_total{{endpoint={labels}}} {count}.0" in text
    assert 'puna_request_seconds_count{endpoint="e"} 5.0' in text
    assert 'puna_infer_seconds_count{endpoint="e",tier="awake"} 0.0' in text, "no replica ever had one"


def test_a_report_is_given_again_until_it_has_arrived_and_what_comes_meanwhile_is_in_the_next() -> None:
    counts = RequestCounts()
    answer(counts)
    first = counts.usage(3600.0)
    answer(counts)
    counts.flush()
    assert counts.usage(3605.0) is first is not None and first.rows[0].requests == 1
    counts.usage_arrived()
    answer(counts)
    second = counts.usage(3605.5)
    assert second is not None and second.number == 2 and second.process == first.process
    assert sum(row.requests for row in second.rows) == 2
    counts.usage_arrived()
    assert counts.usage(3606.0) is None, "nothing is new"
    answer(counts)
    assert counts.usage(3606.0) is None, "one was due just now"
    assert counts.usage(3606.0, at_once=True) is not None, "the last word"
    assert RequestCounts().usage(0.0) is None and RequestCounts()._process != first.process


def test_use_belongs_to_the_hour_in_which_it_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = RequestCounts()
    answer(counts)
    assert counts.usage(3599.9) is not None
    answer(counts)
    monkeypatch.setattr(time, "time", lambda: 3599.95)
    counts.flush()  # also when the control plane is away
    answer(counts)
    counts.usage_arrived()
    report = counts.usage(3601.0)
    assert report is not None and [(row.hour, row.requests) for row in report.rows] == [(0, 1), (3600, 1)]
