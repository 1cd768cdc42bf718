"""What was measured, as values. Durations in nanoseconds unless their names say otherwise."""

from collections.abc import Sequence

from msgspec import Struct

STORES = ("embedded", "etcd")

AWAY = "etcd, away"
"""Beside the stores: etcd that does not answer."""

OWN, FLOOR, TRIO, REFERENCE, MODEL, CALICO = (
    "ipamd", "C echo server (floor)", "Trio echo server", "host-local", "model of Calico's plugin", "calico-ipam"
)  # fmt: skip
"""The contenders. The model makes Calico's ten calls; ``calico-ipam`` is the real one, if there is one."""


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
    p50, p90, p99 = (percentile(durations, percent) for percent in (50, 90, 99))
    return Spread(len(durations), min(durations), p50, p90, p99, max(durations))


def percentile(durations: Sequence[int], percent: float) -> int:
    """The smallest of the durations that so many of them do not exceed."""
    ordered = sorted(durations)
    return ordered[max(0, int(-(-len(ordered) * percent // 100)) - 1)]


class Processes(Struct, frozen=True):
    """A plugin's whole processes, from before the start until after the end, one at a time.

    ``curve`` has the ADDs' 0th to 100th percentile.
    """

    add: Spread
    delete: Spread
    curve: list[int]


def processes(adds: Sequence[int], deletes: Sequence[int]) -> Processes:
    """The figures of two series."""
    return Processes(spread(adds), spread(deletes), [percentile(adds, percent) for percent in range(101)])


class Burst(Struct, frozen=True):
    """ADDs that were all started at once: how long until the last of ``at_once`` had ended."""

    contender: str
    at_once: int
    took: Spread


class Comparison(Struct, frozen=True):
    """The contenders by turns in one run, the daemon on one store.

    ``alone``: nothing else is held. ``held``: beside ``HELD`` addresses, which the floor and Calico's do not know.
    """

    store: str
    alone: dict[str, Processes]
    held: dict[str, Processes]
    bursts: list[Burst]


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


class Cost(Struct, frozen=True):
    """What etcd is asked, by its own count.

    ``on_the_way``: calls between ``requests`` ADDs' arrival and their replies, with a reserve. ``transactions`` and
    ``received`` (bytes): in a burst of ``burst`` ADDs, until all of it is in etcd.
    """

    requests: int
    on_the_way: int
    burst: int
    transactions: int
    received: int


class Claim(Struct, frozen=True):
    """A node's first block and address in a cluster that has ``blocks`` already.

    ``transactions``: the most that one of the nodes needed. ``program``: ``OWN`` or ``MODEL``.
    """

    program: str
    blocks: int
    took: Spread
    transactions: int


class Start(Struct, frozen=True):
    """A daemon started with ``addresses`` in its state file: until ``/readyz`` says yes, and what it occupies then.

    ``store``: embedded, etcd, or etcd that is away. ``resident``: bytes, when it has nothing more to do; ``processor``
    is the share of a core that it takes from then on, measured only where it is not None.
    """

    store: str
    addresses: int
    ready: Spread
    resident: int
    processor: float | None


class Restart(Struct, frozen=True):
    """Plugins that run one after the other in several loops while the daemon behind a held socket is restarted.

    ``waits``: the longest ADD of each restart. ``refused``: ADDs and DELs that failed.
    """

    store: str
    calls: int
    refused: int
    waits: list[int]


class Figures(Struct, frozen=True):
    """One run of the benchmark; a part that was left out is empty."""

    machine: dict[str, str]
    processes: list[Comparison] = []
    loads: list[Load] = []
    costs: list[Cost] = []
    claims: list[Claim] = []
    starts: list[Start] = []
    restarts: list[Restart] = []
