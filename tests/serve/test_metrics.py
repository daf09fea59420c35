"""What `/metrics` says when several gateways share figures through a folder: real processes, one killed."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.process

GATEWAY = """
    import os, signal, sys, time
    from puna.serve.call import Call
    from puna.serve.metrics import Metrics
    from puna.serve.routes_table import EndpointRoute, ReplicaRoute, Table

    replicas = tuple(ReplicaRoute(f"r{n}", 1, "/s", 1, tier) for n, tier in enumerate(["awake", "awake", "asleep"]))
    metrics = Metrics()
    metrics.replicas(Table(1, {}, {"e": EndpointRoute("e", 1, True, "ready", "", 5, 5, 3, 0, None, replicas)}))
    for _ in range(7):
        call = Call("e", "infer", b"", "t", tier="asleep", queued_s=0.0, wake_s=0.3, infer_s=20.0, sent=1.0)
        metrics.answered("e", 200, call, time.perf_counter() - 30)
    metrics.answered("e", 429, Call("e", "infer", b"", "t", tier="cold"), time.perf_counter())
    metrics.answered("", 404, Call("nope", "infer", b"", "t"), time.perf_counter())
    if sys.argv[1] == "dies":
        metrics.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdout.buffer.write(metrics.text())
"""


def gateway(folder: Path, end: str) -> bytes:
    env = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(GATEWAY), end], env=env, capture_output=True, timeout=60, check=False
    )
    assert run.returncode == (-9 if end == "dies" else 0), run.stderr.decode()
    return run.stdout


def test_waits_are_summed_over_gateways_those_of_a_killed_one_too_and_replicas_are_not(tmp_path: Path) -> None:
    gateway(tmp_path, "dies")
    families = text_string_to_metric_families(gateway(tmp_path, "answers").decode())
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
