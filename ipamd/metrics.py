"""The daemon's metrics, for Prometheus: names ``ipamd_*``, base units.

What happens is counted as it happens (requests); what is, is read from the ledger and the tasks when Prometheus asks
(a collector), so that nothing on the way to a reply updates a gauge. The only module that imports prometheus_client.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import compress
from operator import attrgetter
from time import time
from typing import Protocol

from prometheus_client import CollectorRegistry, Gauge, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from ipamd import __version__
from ipamd.core.ledger import Ledger
from ipamd.durations import BUCKETS, LABEL, Durations

_BOUNDS = (*map(floatToGoString, BUCKETS), "+Inf")
_OPENMETRICS = "application/openmetrics-text"
_TOGETHER = 256
"""Requests to count at once: in less than half a millisecond."""

_STAGES = ("queue", "decide", "journal", "wait")
_read = attrgetter("verb", "total", "container", *_STAGES)


class Timed(Protocol):
    """A request that is over: how long it and its stages took, in ns; 0 for stages that did not happen.

    ``container`` is the id that it came with, "" if none is known.
    """

    verb: str
    total: int
    container: str
    queue: int
    decide: int
    journal: int
    wait: int


class Metrics:
    """One registry. ``facts`` gives the numbers that are not the ledger's, by metric name without ``ipamd_``."""

    def __init__(self, ledger: Ledger, facts: Callable[[], Mapping[str, float]]) -> None:
        self.registry = CollectorRegistry()
        Info("ipamd_build", "The running version", registry=self.registry).info({"version": __version__})
        Gauge(
            "ipamd_start_time_seconds", "When the daemon started, Unix time", registry=self.registry
        ).set_to_current_time()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._by_verb: dict[str, Durations] = {}
        self._by_stage = {stage: Durations() for stage in _STAGES}
        self._over: list[tuple[Timed, int]] = []
        self.registry.register(_Collector(ledger, facts, self._count, self._requests, self._by_verb, self._by_stage))

    def request(self, timed: Timed, code: int) -> None:
        """Note a request that is over. It is counted with others: that costs less, and not on the way to a reply."""
        self._over.append((timed, code))
        if len(self._over) >= _TOGETHER:
            self._count()

    def _count(self) -> None:
        """Count the requests that are over."""
        over, self._over = self._over, []
        if not over:
            return
        # Without a loop over the requests: a step of the interpreter for each would show in the rate of ADDs.
        requests, codes = zip(*over, strict=True)
        told, totals, containers, *stages = zip(*map(_read, requests), strict=True)
        verbs = [verb if verb in _VERBS else "other" for verb in told]
        self._requests.update(zip(verbs, codes, strict=True))
        now = time()
        for verb in set(verbs):
            of_verb = list(map(verb.__eq__, verbs))
            spent, named = list(compress(totals, of_verb)), compress(containers, of_verb)
            self._by_verb.setdefault(verb, Durations()).add_named(spent, named, now)
        for name, column in zip(_STAGES, stages, strict=True):
            self._by_stage[name].add(column, column.count(0))

    def requests(self) -> dict[str, dict[str, int]]:
        """How many requests there were since the start, by verb and code (0: success)."""
        self._count()
        counts: dict[str, dict[str, int]] = {}
        for (verb, code), count in self._requests.items():
            counts.setdefault(verb, {})[str(code)] = count
        return counts

    def exposition(self, accept: str = "") -> tuple[str, bytes]:
        """Content type and body for Prometheus: OpenMetrics if ``accept`` names it, else the older text format.

        The library is not given what a client wrote: a version that is no number would be an exception in it.
        """
        asked = any(each.partition(";")[0].strip().lower() == _OPENMETRICS for each in accept.split(","))
        encode, content_type = choose_encoder(f"{_OPENMETRICS}; version=1.0.0" if asked else "")
        return content_type, encode(self.registry)


_VERBS = frozenset({"ADD", "DEL", "CHECK", "STATUS", "GC"})


def _buckets(durations: Durations) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    """A histogram's buckets, each with its example, which only the OpenMetrics format shows."""
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    for number, (bound, count) in enumerate(zip(_BOUNDS, durations.cumulative(), strict=True)):
        if example := durations.examples.get(number):
            labels, seconds = {LABEL: example.container}, example.duration / 1e9
            buckets.append((bound, count, Exemplar(labels, seconds, round(example.at, 3))))
        else:
            buckets.append((bound, count))
    return buckets


class _Collector(Collector):
    """Reads the ledger and the histograms when asked."""

    def __init__(
        self,
        ledger: Ledger,
        facts: Callable[[], Mapping[str, float]],
        count: Callable[[], None],
        requests: Mapping[tuple[str, int], int],
        by_verb: Mapping[str, Durations],
        by_stage: Mapping[str, Durations],
    ) -> None:
        self._ledger, self._facts, self._count = ledger, facts, count
        self._requests, self._by_verb, self._by_stage = requests, by_verb, by_stage

    def collect(self) -> Iterator[Metric]:
        """All metrics that change."""
        self._count()
        requests = CounterMetricFamily(
            "ipamd_requests", "CNI requests by verb and outcome (CNI error code, 0: success)", labels=("verb", "code")
        )
        for (verb, code), count in self._requests.items():
            requests.add_metric((verb, str(code)), count)
        yield requests
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
                family.add_metric((label,), _buckets(durations), durations.seconds)
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
    "draining": "Whether the node is being drained (1), and therefore not ready, or not (0)",
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
