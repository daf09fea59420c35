"""The requests that a gateway has answered, counted once; `/metrics` for Prometheus, and use by key and hour."""

from __future__ import annotations

import time
import uuid
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from puna.control import wire
from puna.control.wire import (
    ASLEEP,
    AWAKE,
    EndpointLoad,
    Family,
    GatewayMemory,
    Key,
    Kind,
    Memories,
    RouteTable,
    UsageCount,
    UsageReport,
)
from puna.serve.dispatch.call import Call

HOUR_S = 3600
USAGE_EVERY_S = 1.0
"""Use is reported so often; a gateway that is killed takes at most so much with it."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Series:
    """The numbers of one family and one set of labels; `is_new` until they have been written down."""

    __slots__ = ("bounds", "is_new", "values")

    def __init__(self, family: Family, values: Sequence[float] | None = None) -> None:
        self.bounds, self.values, self.is_new = family.bounds_s, list(values or [0.0] * family.width), True

    def add(self, count: float = 1) -> None:
        """Count so many more."""
        self.values[0] += count
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


@dataclass(eq=False, slots=True)
class Row:
    """Requests since the last look that have endpoint, key, status and tier in common."""

    latency: Series
    waits: Sequence[Series]
    """Of those that found out what serves them: queue, wake, infer, first byte."""
    requests: int = 0
    broke_off: int = 0
    infer_s: float = 0.0


class RequestCounts:
    """The requests that one gateway has answered, each counted once: use, and `/metrics`, are views of these counts.

    With `memories` the gateways share series through them (control/wire.py): each can answer for all, and counts
    outlive a gateway that was killed. `index` is this one's. Use goes to the control plane in reports with numbers that
    rise. A report is kept, and given again with its number, until its arrival is known: the control plane passes over
    one that it has had.
    """

    def __init__(self, memories: Memories = wire.NONE, index: int = 0) -> None:
        self._memories = memories
        self._memory = GatewayMemory(memories[index]) if memories else None
        self._series: dict[Key, Series] = {}
        if self._memory is not None:
            for key, values in self._memory.found.items():
                self._series[key] = Series(wire.FAMILIES[key[0]], values)
        self._rows: dict[tuple[str, str, int, str], Row] = {}
        self._endpoints: set[str] = set()
        self._process = uuid.uuid4().hex  # a successor reports from number 1, under another name
        self._hours: dict[tuple[int, str, str], tuple[int, int, float]] = {}
        self._report: UsageReport | None = None
        self._reported_at, self._number = 0.0, 0

    def _of(self, family: Family, *labels: str) -> Series:
        key = (family.name, *labels)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = Series(family)
        return found

    def answered(self, endpoint: str, status: int, call: Call, began: float) -> None:
        """Count a request that came at `began`, on `time.perf_counter`'s clock; 499: its client left before the reply.

        This runs for every request. `endpoint` is empty where there is none of the name that was asked for.
        """
        now = time.perf_counter()
        kind = endpoint, call.key, status, call.tier
        row = self._rows.get(kind)
        if row is None:
            row = self._rows[kind] = self._row(endpoint, call.tier)
        row.requests += 1
        row.broke_off += call.broke_off
        row.infer_s += call.infer_s
        row.latency.observe(now - began)
        if call.split:
            revision = str(call.split)
            self._of(wire.REVISION_REQUESTS, endpoint, revision, str(status)).add()
            self._of(wire.REVISION_LATENCY, endpoint, revision).observe(now - began)
        if row.waits:
            queue, wake, infer, first_byte = row.waits
            queue.observe(call.queued_s)
            if call.cold:
                self._of(wire.COLD_WAITS, endpoint).observe(call.queued_s)
            if call.sent:  # a replica had it
                if call.wake_s:
                    wake.observe(call.wake_s)
                infer.observe(call.infer_s)
                first_byte.observe((call.first_byte or now) - began)

    def _row(self, endpoint: str, tier: str) -> Row:
        waits = [self._of(family, endpoint, tier) for family in wire.WAITS] if tier else ()
        return Row(self._of(wire.LATENCY, endpoint), waits)

    def _settle(self, now: float) -> None:
        """Add what was counted since the last time to the series and to the hour of `now`."""
        rows, self._rows = self._rows, {}
        hour = int(now) // HOUR_S * HOUR_S
        for (endpoint, key, status, _), row in rows.items():
            self._of(wire.REQUESTS, endpoint, str(status)).add(row.requests)
            if endpoint and key:
                requests, failed, infer_s = self._hours.get((hour, endpoint, key), (0, 0, 0.0))
                failed += row.requests if status >= 400 else row.broke_off
                self._hours[hour, endpoint, key] = requests + row.requests, failed, infer_s + row.infer_s

    # -- use ---------------------------------------------------------------------------------------------------------

    def usage(self, now: float, *, at_once: bool = False) -> UsageReport | None:
        """The report that is due at `now` (Unix seconds); None: nothing is new, or one was due just now."""
        self._settle(now)
        if self._report is None:
            if not self._hours or (not at_once and 0 <= now - self._reported_at < USAGE_EVERY_S):
                return None
            self._number, self._reported_at = self._number + 1, now
            rows = (UsageCount(*of, n, failed, round(s, 6)) for of, (n, failed, s) in self._hours.items())
            self._report, self._hours = UsageReport(self._process, self._number, tuple(rows)), {}
        return self._report

    def usage_arrived(self) -> None:
        """The last report is in the books."""
        self._report = None

    # -- /metrics ----------------------------------------------------------------------------------------------------

    def replicas(self, table: RouteTable) -> None:
        """Take the gauges of a new route table."""
        for name in self._endpoints | set(table.endpoints):
            route = table.endpoints.get(name)
            both = [one for one in (route, route.split) if one] if route else []
            tiers = [replica.tier for one in both for replica in one.replicas]
            for tier in (AWAKE, ASLEEP):
                self._of(wire.REPLICAS, name, tier).put(tiers.count(tier))
        self._endpoints = set(table.endpoints)

    def loads(self, loads: Mapping[str, EndpointLoad]) -> None:
        """Take the gauges of a load report."""
        for endpoint, load in loads.items():
            self._of(wire.QUEUE, endpoint).put(load.queued)
            self._of(wire.IN_FLIGHT, endpoint).put(load.in_flight)

    def flush(self) -> None:
        """Write down what is new since the last time."""
        self._settle(time.time())
        if self._memory is None:
            return
        new = [(key, series) for key, series in self._series.items() if series.is_new]
        for _, series in new:
            series.is_new = False
        self._memory.write((key, series.values) for key, series in new)

    def text(self) -> bytes:
        """Prometheus' text format of what has been flushed; from any thread: with many endpoints it takes a second."""
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
