"""The benchmark's report: a Markdown text with tables, ratios and a verdict for each goal. Pure."""

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from tests.bench.figures import Comparison, Figures, Load, Processes

FASTER = 6.0
"""Times that the plugin's ADD is to be faster than host-local's (p50 of whole processes)."""

ABOVE_FLOOR = 1.8
"""Times the C echo server that the plugin's ADD may take (p50 of whole processes)."""

ADDS = 10_000
"""ADDs a second that the daemon is to serve on one core."""


class Goal(Struct, frozen=True):
    """One goal and what was measured for it."""

    text: str
    measured: str
    met: bool


def faster(comparison: Comparison) -> float:
    """How many times as long host-local's ADD takes (p50)."""
    return comparison.host_local.add.p50 / comparison.ipamd.add.p50


def above_floor(comparison: Comparison) -> float:
    """How many times the floor the plugin's ADD takes (p50)."""
    return comparison.ipamd.add.p50 / comparison.echo.add.p50


def goals(figures: Figures) -> list[Goal]:
    """The verdict: of each store the best number of connections, of both stores the worse."""
    verdict = []
    for each in figures.comparisons:
        factor, distance = faster(each), above_floor(each)
        on = f"({each.store}, p50)"
        verdict += [
            Goal(f"ADD at least {FASTER:g} times as fast as host-local {on}", f"{factor:.1f}", factor >= FASTER),
            Goal(f"ADD at most {ABOVE_FLOOR:g} times the floor {on}", f"{distance:.2f}", distance <= ABOVE_FLOOR),
        ]
    for store in dict.fromkeys(load.store for load in figures.loads):
        best = max((load for load in figures.loads if load.store == store), key=lambda load: load.adds)
        text = f"at least {ADDS:,} ADD/s on one core ({store}, {best.connections} connections)"
        verdict.append(Goal(text, f"{best.adds:,.0f}", best.adds >= ADDS))
    return verdict


def markdown(figures: Figures) -> str:
    """The whole report."""
    parts = ["# Benchmark", _table(("machine", ""), figures.machine.items())]
    for comparison in figures.comparisons:
        parts += [f"## Whole plugin processes, {comparison.store} store", _processes(comparison)]
    parts += ["## Requests at the socket, daemon on one core", _loads(figures.loads)]
    verdict = ((goal.text, goal.measured, "met" if goal.met else "MISSED") for goal in goals(figures))
    parts += ["## Goals", _table(("goal", "measured", ""), verdict)]
    return "\n\n".join(parts) + "\n"


def _processes(comparison: Comparison) -> str:
    own, floor, reference = comparison.ipamd, comparison.echo, comparison.host_local
    lanes = {"ipamd": own, "C echo server (floor)": floor, "host-local": reference}
    times = _table(
        ("ms", *(f"{verb} {column}" for verb in ("ADD", "DEL") for column in ("p50", "p90", "p99", "max")), "100 ADD"),
        ((name, *_milliseconds(lane)) for name, lane in lanes.items()),
    )
    ratios = _table(
        ("ratio of p50", "ADD", "DEL", "100 ADD at once"),
        (
            (name, *(f"{part:.2f}" for part in parts))
            for name, parts in (("host-local / ipamd", _ratios(reference, own)), ("ipamd / floor", _ratios(own, floor)))
        ),
    )
    return f"{times}\n\n{ratios}"


def _milliseconds(lane: Processes) -> Iterator[str]:
    for spread in (lane.add, lane.delete):
        yield from (f"{value / 1e6:.3f}" for value in (spread.p50, spread.p90, spread.p99, spread.max))
    yield f"{lane.burst.p50 / 1e6:.1f}"


def _ratios(over: Processes, under: Processes) -> tuple[float, float, float]:
    return (
        over.add.p50 / under.add.p50,
        over.delete.p50 / under.delete.p50,
        over.burst.p50 / under.burst.p50,
    )


def _loads(loads: Sequence[Load]) -> str:
    return _table(
        ("store", "connections", "ADD/s", "DEL/s", "ADD and DEL mixed/s", "ADD p50 us", "ADD p99 us"),
        (
            (
                load.store, str(load.connections), f"{load.adds:,.0f}", f"{load.deletes:,.0f}", f"{load.mixed:,.0f}",
                f"{load.add.p50 / 1e3:.0f}", f"{load.add.p99 / 1e3:.0f}",
            )
            for load in loads
        ),
    )  # fmt: skip


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
