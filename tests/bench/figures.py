"""What was measured, as values. Durations in nanoseconds."""

from collections.abc import Sequence

from msgspec import Struct


class Spread(Struct, frozen=True):
    """How a series of durations is spread (ns)."""

    count: int
    p50: int
    p90: int
    p99: int
    max: int


def spread(durations: Sequence[int]) -> Spread:
    """The spread of a series that is not empty; a percentile is a measured value (nearest rank)."""
    ordered = sorted(durations)
    count = len(ordered)
    p50, p90, p99 = (ordered[max(0, -(-count * percent // 100) - 1)] for percent in (50, 90, 99))
    return Spread(count, p50, p90, p99, ordered[-1])


class Processes(Struct, frozen=True):
    """One lane of the whole-process measure: the plugin from before its start until after its end.

    ``bursts`` are the times that ``AT_ONCE`` ADDs took that were started together.
    """

    lane: str
    add: Spread
    delete: Spread
    bursts: Spread


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


class Figures(Struct, frozen=True):
    """One run of the benchmark."""

    machine: dict[str, str]
    processes: list[Processes]
    loads: list[Load]
