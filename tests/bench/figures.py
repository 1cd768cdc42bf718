"""What was measured, as values. Durations in nanoseconds."""

from collections.abc import Sequence

from msgspec import Struct


class Spread(Struct, frozen=True):
    """How a series of durations is spread (ns)."""

    count: int
    min: int
    p50: int
    p90: int
    p99: int
    max: int


def spread(durations: Sequence[int]) -> Spread:
    """The spread of a series that is not empty; a percentile is a measured value (nearest rank)."""
    ordered = sorted(durations)
    count = len(ordered)
    p50, p90, p99 = (ordered[max(0, -(-count * percent // 100) - 1)] for percent in (50, 90, 99))
    return Spread(count, ordered[0], p50, p90, p99, ordered[-1])


class Processes(Struct, frozen=True):
    """One lane of the whole-process measure: a plugin from before its start until after its end.

    ``burst`` is how long ``AT_ONCE`` ADDs took that were started together.
    """

    add: Spread
    delete: Spread
    burst: Spread


class Comparison(Struct, frozen=True):
    """The plugin against a daemon on one store, and the two it is compared with, measured by turns in one run."""

    store: str
    ipamd: Processes
    echo: Processes
    host_local: Processes


class Load(Struct, frozen=True):
    """The daemon on one core, asked over ``connections`` open connections; rates in requests a second.

    ``adds`` and ``deletes``: in bursts of ``BURST`` ADDs, then as many DELs, each started with a full reserve.
    ``mixed``: ADDs and DELs in turn on each connection for as long as it takes; both count.
    """

    store: str
    connections: int
    adds: float
    deletes: float
    mixed: float
    add: Spread
    delete: Spread


STORES = ("embedded", "etcd")


class Figures(Struct, frozen=True):
    """One run of the benchmark."""

    machine: dict[str, str]
    comparisons: list[Comparison]
    loads: list[Load]
