"""What `/metrics` says when several gateways share figures through memories: real processes, one killed."""

import fcntl
import json
import os
import subprocess
import sys
import textwrap

import pytest
from prometheus_client.parser import text_string_to_metric_families

from puna.control.wire import GatewayMemory, Memories, make
from puna.serve.dispatch.call import Call
from puna.serve.metrics import GatewayMetrics

pytestmark = pytest.mark.process

GATEWAY = """
    import os, signal, sys, time
    from puna.serve.dispatch.call import Call
    from puna.control.wire import EndpointLoad, EndpointRoute, Memories, ReplicaRoute, RouteTable
    from puna.serve.metrics import GatewayMetrics

    replicas = tuple(ReplicaRoute(f"r{n}", 1, "/s", 1, tier) for n, tier in enumerate(["awake", "awake", "asleep"]))
    metrics = GatewayMetrics(Memories(tuple(map(int, sys.argv[2].split(",")))), int(sys.argv[3]))
    metrics.replicas(RouteTable(1, {}, {"e": EndpointRoute("e", 1, True, "ready", "", 5, 5, 3, 0, None, replicas)}))
    for _ in range(7):
        call = Call("e", "infer", b"", "t", tier="asleep", queued_s=0.0, wake_s=0.3, infer_s=20.0, sent=1.0)
        metrics.answered("e", 200, call, time.perf_counter() - 30)
    metrics.answered("e", 429, Call("e", "infer", b"", "t", tier="cold"), time.perf_counter())
    metrics.answered("", 404, Call("nope", "infer", b"", "t"), time.perf_counter())
    metrics.loads({"e": EndpointLoad(3, 2)})
    if sys.argv[1] == "dies":
        metrics.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdout.buffer.write(metrics.text())
"""


def gateway(memories: Memories, index: int, end: str) -> bytes:
    argv = [sys.executable, "-c", textwrap.dedent(GATEWAY), end, ",".join(map(str, memories)), str(index)]
    run = subprocess.run(argv, pass_fds=memories, capture_output=True, timeout=60, check=False)
    assert run.returncode == (-9 if end == "dies" else 0), run.stderr.decode()
    return run.stdout


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


def test_a_successor_counts_on_and_has_nothing_in_flight_of_what_the_dead_one_had() -> None:
    memories = make(1)
    gateway(memories, 0, "dies")
    text = GatewayMetrics(memories, 0).text().decode()
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
    metrics = GatewayMetrics(memories)
    for number in range(200):
        metrics.answered(f"e{number}", 200, Call("e", "infer", b"", "t", tier="cold"), 0.0)
        metrics.flush()
    assert len([r for r in caplog.records if "figures cannot be written down" in r.message]) == 1
    assert b'puna_requests_total{endpoint="e0",status="200"} 1.0' in metrics.text()


def test_half_a_record_and_one_of_another_version_are_passed_over() -> None:
    memories = make(1)
    count = GatewayMetrics(memories)
    count.answered("e", 200, Call("e", "infer", b"", "t"), 0.0)
    count.flush()
    GatewayMemory(memories[0]).write(
        [(("puna_requests", "e", "200"), [5.0]), (("of_another_version", "e"), [1.0, 2.0])]
    )
    size = os.fstat(memories[0]).st_size
    os.pwrite(memories[0], b"\xff" * 7, size)  # a writer was killed before it said that there is more
    assert b'puna_requests_total{endpoint="e",status="200"} 5.0' in GatewayMetrics(memories).text()
