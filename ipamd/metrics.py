"""The daemon's metrics, for Prometheus: names ``ipamd_*``, base units.

What happens is counted as it happens (requests); what is, is read from the ledger and the tasks when Prometheus asks
(a collector), so that nothing on the way to a reply updates a gauge. The only module that imports prometheus_client.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ipamd import __version__
from ipamd.core.ledger import Ledger

BUCKETS = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0,
)  # fmt: skip
"""Seconds: from a request answered from memory (tens of microseconds) to one that waited for a block."""

_BOUNDS = tuple(round(seconds * 1e9) for seconds in BUCKETS)


class Metrics:
    """One registry. ``facts`` gives the numbers that are not the ledger's, by metric name without ``ipamd_``."""

    def __init__(self, ledger: Ledger, facts: Callable[[], Mapping[str, float]]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "ipamd_requests", "CNI requests by verb and outcome (CNI error code, 0: success)", ("verb", "code"),
            registry=self.registry,
        )  # fmt: skip
        Info("ipamd_build", "The running version", registry=self.registry).info({"version": __version__})
        Gauge(
            "ipamd_start_time_seconds", "When the daemon started, Unix time", registry=self.registry
        ).set_to_current_time()
        self._counters: dict[tuple[str, int], Callable[[], None]] = {}
        self._by_verb: dict[str, _Durations] = {}
        self._by_stage = {stage: _Durations() for stage in ("queue", "decide", "journal", "wait")}
        self.registry.register(_Collector(ledger, facts, self._by_verb, self._by_stage))

    def request(self, verb: str, code: int, nanoseconds: int, stages: Mapping[str, int]) -> None:
        """Count one request; ``stages`` are ns by stage, 0 for those that did not happen."""
        known = verb if verb in _VERBS else "other"
        count = self._counters.get((known, code))
        if count is None:
            count = self._counters[known, code] = self._requests.labels(known, str(code)).inc
            self._by_verb.setdefault(known, _Durations())
        count()
        self._by_verb[known].observe(nanoseconds)
        for stage, spent in stages.items():
            if spent:
                self._by_stage[stage].observe(spent)

    def requests(self) -> dict[str, dict[str, int]]:
        """How many requests there were since the start, by verb and code (0: success)."""
        counts: dict[str, dict[str, int]] = {}
        for sample in (sample for metric in self._requests.collect() for sample in metric.samples):
            if sample.name == "ipamd_requests_total":
                counts.setdefault(sample.labels["verb"], {})[sample.labels["code"]] = int(sample.value)
        return counts

    def exposition(self, accept: str = "") -> tuple[str, bytes]:
        """Content type and body for Prometheus, in the format that ``accept`` prefers."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self.registry)


_VERBS = frozenset({"ADD", "DEL", "CHECK", "STATUS", "GC"})


class _Durations:
    """A histogram of durations. prometheus_client's own is for threads: five of them would be a tenth of an ADD."""

    __slots__ = ("_counts", "_total")

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS) + 1)
        self._total = 0

    def observe(self, nanoseconds: int) -> None:
        """Count one duration."""
        self._counts[bisect_left(_BOUNDS, nanoseconds)] += 1
        self._total += nanoseconds

    def add_to(self, family: HistogramMetricFamily, label: str) -> None:
        """Show it as one series of a metric."""
        bounds = (*map(floatToGoString, BUCKETS), "+Inf")
        family.add_metric((label,), list(zip(bounds, accumulate(self._counts), strict=True)), self._total / 1e9)


class _Collector(Collector):
    """Reads the ledger and the histograms when asked."""

    def __init__(
        self,
        ledger: Ledger,
        facts: Callable[[], Mapping[str, float]],
        by_verb: Mapping[str, _Durations],
        by_stage: Mapping[str, _Durations],
    ) -> None:
        self._ledger, self._facts, self._by_verb, self._by_stage = ledger, facts, by_verb, by_stage

    def collect(self) -> Iterator[Metric]:
        """All histograms and gauges, and the counters that others keep."""
        yield from self._durations()
        yield from self._addresses()
        yield from self._reserves()
        for name, value in self._facts().items():
            text = _TEXTS[name]
            if name.endswith("_total"):
                yield CounterMetricFamily(f"ipamd_{name.removesuffix('_total')}", text, value=value)
            else:
                yield GaugeMetricFamily(f"ipamd_{name}", text, value=value)

    def _durations(self) -> Iterator[Metric]:
        whole = HistogramMetricFamily(
            "ipamd_request_duration_seconds", "Time from a CNI request's arrival to its reply", labels=("verb",)
        )
        stages = HistogramMetricFamily(
            "ipamd_request_stage_duration_seconds", "Time a CNI request spent in a stage", labels=("stage",)
        )
        for family, series in ((whole, self._by_verb), (stages, self._by_stage)):
            for label, durations in series.items():
                durations.add_to(family, label)
            yield family

    def _addresses(self) -> Iterator[Metric]:
        ledger = self._ledger
        blocks = GaugeMetricFamily("ipamd_blocks", "Blocks of this node", labels=("pool",))
        addresses = GaugeMetricFamily(
            "ipamd_addresses", "Addresses of this node's blocks, and borrowed ones", labels=("pool", "state")
        )
        sizes = GaugeMetricFamily("ipamd_pool_addresses", "Addresses of the whole pool, on all nodes", labels=("pool",))
        for name, pool in sorted(ledger.settings.pools.items()):
            sizes.add_metric((name,), pool.cidr.size)
            of_pool = ledger.blocks_of(name)
            own = [block for block in of_pool if block.owned]
            blocks.add_metric((name,), len(own))
            states = {
                "in_use": sum(b.held for b in own),
                "reserve": sum(b.available for b in own),
                "free": sum(b.unreserved_bits.bit_count() for b in own),
                "lent": sum(b.lent for b in own),
                "borrowed": sum(b.held + b.available for b in of_pool if not b.owned),
                "cooling": sum(len(b.cooling) for b in own),
                "releasing": sum(len(b.releasing) for b in of_pool),
                "quarantined": sum(len(b.stranded) for b in of_pool),
                "contested": sum(len(b.contested) for b in of_pool),
            }
            for state, count in states.items():
                addresses.add_metric((name, state), count)
        yield sizes
        yield blocks
        yield addresses
        ranges = GaugeMetricFamily(
            "ipamd_range_addresses", "Addresses of host-local ranges in use", labels=("network",)
        )
        for name, network in sorted(ledger.ranges.networks.items()):
            ranges.add_metric((name,), len(network.holders))
        yield ranges

    def _reserves(self) -> Iterator[Metric]:
        size = GaugeMetricFamily(
            "ipamd_reserve_addresses", "Addresses that can be handed out at once", labels=("pool",)
        )
        target = GaugeMetricFamily("ipamd_reserve_target_addresses", "Addresses wanted in reserve", labels=("pool",))
        waiting = GaugeMetricFamily("ipamd_waiting_requests", "ADDs that wait for an address", labels=("pool",))
        in_use = {pool.name for pool in self._ledger.pools_in_use()}
        for name, reserve in sorted(self._ledger.reserves.items()):
            size.add_metric((name,), self._ledger.available(name))
            target.add_metric((name,), reserve.target if name in in_use else 0)
            waiting.add_metric((name,), reserve.waiting)
        yield from (size, target, waiting)


_TEXTS = {
    "ready": "Whether an ADD can be served (1) or not (0)",
    "store_connected": "Whether the store could be reached last (1) or not (0)",
    "store_locked": "Whether the datastore is locked (1) or not (0)",
    "unflushed_facts": "Assignments and releases that the store does not have yet",
    "unflushed_age_seconds": "Upper bound of the age of the oldest of them",
    "flush_transactions_total": "Transactions sent to the store",
    "flush_operations_total": "Operations in these transactions",
    "flush_conflicts_total": "Transactions refused because a record had changed",
    "flush_failures_total": "Transactions that failed: the store away, or refusing",
    "claims_total": "Blocks claimed",
    "cleaner": "Whether this daemon is the one that clears away what nobody owns (1) or not (0)",
    "leaked_handles_total": "Handle records removed because no block knew them",
    "cleaned_addresses_total": "Addresses released that nodes which are gone had in reserve",
    "journal_size_bytes": "Size of the state file",
    "state_files_set_aside": "State files that could not be used and are kept beside the one in use",
    "leaked_addresses_total": "Addresses released because their container is gone and no DEL ever came",
    "runtime_attachments": "Attachments that the container runtime's cache knows; NaN where there is none",
    "store_reads_total": "Times that everything of this node was read from the store",
    "watch_events_total": "Changes of records that the watch brought",
    "connections": "Open connections on the daemon's sockets",
    "connections_refused_total": "Connections refused because too many were open",
    "damaged_records": "Records of the store that cannot be understood",
    "kubernetes_connected": "Whether pods and namespaces are being watched (1) or not (0, also where it is off)",
    "kubernetes_lists_total": "Times that all pods of this node, or all namespaces, were read from the Kubernetes API",
    "kubernetes_fetches_total": "Pods that an ADD had to ask the Kubernetes API for",
}
