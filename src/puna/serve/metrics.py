"""What `/metrics` tells Prometheus: requests, what they waited for by tier, queues and replicas, for all gateways."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from puna.control import wire
from puna.control.wire import ASLEEP, AWAKE, EndpointLoad, Family, GatewayMemory, Key, Kind, Memories, RouteTable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Waited(Protocol):
    """An answered request as the histograms see it: a call."""

    tier: str
    cold: bool
    queued_s: float
    wake_s: float
    infer_s: float
    sent: float
    first_byte: float
    split: int


class Series:
    """The numbers of one family and one set of labels; `is_new` until they have been written down."""

    __slots__ = ("bounds", "is_new", "values")

    def __init__(self, family: Family, values: Sequence[float] | None = None) -> None:
        self.bounds, self.values, self.is_new = family.bounds_s, list(values or [0.0] * family.width), True

    def add(self) -> None:
        """Count one more."""
        self.values[0] += 1
        self.is_new = True

    def put(self, value: float) -> None:
        """Take a gauge's value."""
        if self.values[0] != value:
            self.values[0], self.is_new = value, True

    def observe(self, seconds: float) -> None:
        """Put one more into a histogram."""
        self.values[bisect_left(self.bounds, seconds)] += 1
        self.values[-1] += seconds
        self.is_new = True


class GatewayMetrics:
    """One gateway's figures, and the text of all gateways'.

    With `memories` the gateways share figures through them (control/wire.py): each can answer for all,
    and counts outlive a gateway that was killed. `index` is this one's.
    """

    def __init__(self, memories: Memories = wire.NONE, index: int = 0) -> None:
        self._memories = memories
        self._memory = GatewayMemory(memories[index]) if memories else None
        self._series: dict[Key, Series] = {}
        if self._memory is not None:
            for key, values in self._memory.found.items():
                self._series[key] = Series(wire.FAMILIES[key[0]], values)
        # What a request needs, without a key to be made for it.
        self._requests_of: dict[tuple[str, int], Series] = {}
        self._latency_of: dict[str, Series] = {}
        self._waits_of: dict[tuple[str, str], list[Series]] = {}
        self._endpoints: set[str] = set()

    def _of(self, family: Family, *labels: str) -> Series:
        key = (family.name, *labels)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = Series(family)
        return found

    def answered(self, endpoint: str, status: int, call: Waited, began: float) -> None:
        """A request that came at `began`, on `time.perf_counter`'s clock, has had its reply; 499: its client left."""
        now = time.perf_counter()
        requests = self._requests_of.get((endpoint, status))
        if requests is None:
            requests = self._requests_of[endpoint, status] = self._of(wire.REQUESTS, endpoint, str(status))
            self._latency_of[endpoint] = self._of(wire.LATENCY, endpoint)
        requests.add()
        self._latency_of[endpoint].observe(now - began)
        if call.split:
            revision = str(call.split)
            self._of(wire.REVISION_REQUESTS, endpoint, revision, str(status)).add()
            self._of(wire.REVISION_LATENCY, endpoint, revision).observe(now - began)
        if call.tier:
            waits = self._waits_of.get((endpoint, call.tier)) or self._new_waits(endpoint, call.tier)
            queue, wake, infer, first_byte = waits
            queue.observe(call.queued_s)
            if call.cold:
                self._of(wire.COLD_WAITS, endpoint).observe(call.queued_s)
            if call.sent:  # a replica had it
                if call.wake_s:
                    wake.observe(call.wake_s)
                infer.observe(call.infer_s)
                first_byte.observe((call.first_byte or now) - began)

    def _new_waits(self, endpoint: str, tier: str) -> list[Series]:
        waits = self._waits_of[endpoint, tier] = [self._of(family, endpoint, tier) for family in wire.WAITS]
        return waits

    def flush(self) -> None:
        """Write down what is new since the last time."""
        if self._memory is None:
            return
        new = [(key, series) for key, series in self._series.items() if series.is_new]
        for _, series in new:
            series.is_new = False
        self._memory.write((key, series.values) for key, series in new)

    def replicas(self, table: RouteTable) -> None:
        """Take the figures of a new route table."""
        for name in self._endpoints | set(table.endpoints):
            route = table.endpoints.get(name)
            both = [one for one in (route, route.split) if one] if route else []
            tiers = [replica.tier for one in both for replica in one.replicas]
            for tier in (AWAKE, ASLEEP):
                self._of(wire.REPLICAS, name, tier).put(tiers.count(tier))
        self._endpoints = set(table.endpoints)

    def loads(self, loads: Mapping[str, EndpointLoad]) -> None:
        """Take the figures of a load report."""
        for endpoint, load in loads.items():
            self._of(wire.QUEUE, endpoint).put(load.queued)
            self._of(wire.IN_FLIGHT, endpoint).put(load.in_flight)

    def text(self) -> bytes:
        """Prometheus' text format."""
        self.flush()
        return self.written()

    def written(self) -> bytes:
        """The same of what has been flushed; from any thread: with many endpoints it takes a second."""
        if self._memory is not None:
            return generate_latest(_Families(wire.read(self._memories)))
        return generate_latest(_Families({key: tuple(series.values) for key, series in self._series.copy().items()}))


class _Families(Collector):
    """Series as prometheus_client writes them."""

    def __init__(self, series: Mapping[Key, tuple[float, ...]]) -> None:
        self._series = series

    def collect(self) -> Iterator[Metric]:
        """Every family, those without a series too."""
        by_name: dict[str, list[tuple[Key, tuple[float, ...]]]] = {name: [] for name in wire.FAMILIES}
        for key, values in self._series.items():
            by_name[key[0]].append((key[1:], values))
        for name, family in wire.FAMILIES.items():
            yield _metric(family, by_name[name])


def _metric(family: Family, series: Sequence[tuple[Key, tuple[float, ...]]]) -> Metric:
    if family.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(family.name, family.text, labels=family.labels)
        ends = [floatToGoString(bound) for bound in (*family.bounds_s, float("inf"))]  # type: ignore[no-untyped-call]
        for labels, values in series:
            histogram.add_metric(labels, list(zip(ends, accumulate(values[:-1]), strict=True)), values[-1])
        return histogram
    of_kind = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    metric = of_kind(family.name, family.text, labels=family.labels)
    for labels, values in series:
        metric.add_metric(labels, values[0])
    return metric
