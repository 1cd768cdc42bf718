"""The benchmark's report: a Markdown text with a table for each part, and the verdict for each goal. Pure."""

from collections.abc import Iterable, Iterator, Sequence

from tests.bench.figures import FLOOR, OWN, TRIO, Burst, Comparison, Figures, Processes, Spread
from tests.bench.goals import goals

Rows = Iterable[Sequence[str]]

BELOW = {FLOOR: "ipamd / floor", TRIO: f"ipamd / {TRIO}"}
"""The rows of ratios to those who do less than ipamd; the others do as much, and have theirs the other way round."""


def markdown(figures: Figures) -> str:
    """The whole report; a part that was left out has no section."""
    verdict = [(goal.text, goal.measured, "met" if goal.met else "MISSED") for goal in goals(figures)]
    met = sum(word == "met" for *_, word in verdict)
    parts = ["# Benchmark", _table(("machine", ""), figures.machine.items())]
    parts += [f"## Goals: {met} of {len(verdict)} met", _table(("goal", "measured", ""), verdict)]
    for each in figures.processes:
        parts += [f"## Whole plugin processes, {each.store} store", *_comparison(each)]
    if figures.loads:
        parts += ["## Requests at the socket while flushing, daemon on one core", _loads(figures)]
    if figures.costs:
        parts += ["## What etcd is asked", _costs(figures)]
    if figures.claims:
        parts += ["## A node's first block and address", _claims(figures)]
    if figures.starts:
        parts += ["## Starts, memory, rest", _starts(figures)]
    if figures.restarts:
        parts += ["## Restarts under load, the socket held", _restarts(figures)]
    return "\n\n".join(parts) + "\n"


def _comparison(each: Comparison) -> Iterator[str]:
    columns = [f"{verb} {column}" for verb in ("ADD", "DEL") for column in ("p50", "p90", "p99", "max")]
    rows = [(name, "nothing", lane) for name, lane in each.alone.items()]
    rows += [(name, "1,000", lane) for name, lane in each.held.items()]
    yield _table(("ms", "held", *columns), ((name, held, *_milliseconds(lane)) for name, held, lane in rows))
    yield _table(
        ("ratio", "held", *columns),
        (
            (BELOW.get(name, f"{name} / ipamd"), held, *_ratios(lane, lanes[OWN], inverse=name in BELOW))
            for held, lanes in (("nothing", each.alone), ("1,000", each.held))
            for name, lane in lanes.items()
            if name != OWN
        ),
    )
    if each.bursts:
        yield _bursts(each.bursts)


def _spreads(lane: Processes) -> Iterator[int]:
    for spread in (lane.add, lane.delete):
        yield from _figures(spread)


def _figures(spread: Spread) -> tuple[int, int, int, int]:
    return spread.p50, spread.p90, spread.p99, spread.max


def _milliseconds(lane: Processes) -> Iterator[str]:
    return (f"{value / 1e6:.2f}" for value in _spreads(lane))


def _ratios(lane: Processes, own: Processes, *, inverse: bool) -> Iterator[str]:
    for theirs, ours in zip(_spreads(lane), _spreads(own), strict=True):
        yield f"{ours / theirs if inverse else theirs / ours:.2f}"


def _bursts(bursts: Sequence[Burst]) -> str:
    own = {burst.at_once: burst.took.p50 for burst in bursts if burst.contender == OWN}
    return _table(
        ("started at once", "ADDs", "p50 ms", "max ms", "ADD/s", "times ipamd's"),
        (
            (
                burst.contender, f"{burst.at_once:,}", f"{burst.took.p50 / 1e6:.0f}", f"{burst.took.max / 1e6:.0f}",
                f"{burst.at_once * 1e9 / burst.took.p50:,.0f}", f"{burst.took.p50 / own[burst.at_once]:.2f}",
            )
            for burst in bursts
        ),
    )  # fmt: skip


def _loads(figures: Figures) -> str:
    columns = ("p50", "p90", "p99", "max")
    return _table(
        ("store", "connections", "ADD/s", "DEL/s", "mixed/s", *(f"ADD {column} us" for column in columns)),
        (
            (
                load.store, str(load.connections), f"{load.adds:,.0f}", f"{load.deletes:,.0f}", f"{load.mixed:,.0f}",
                *(f"{value / 1e3:,.0f}" for value in _figures(load.add)),
            )
            for load in figures.loads
        ),
    )  # fmt: skip


def _costs(figures: Figures) -> str:
    return _table(
        ("", "ADDs", "etcd's count", "an ADD"),
        (
            row
            for cost in figures.costs
            for row in (
                ("calls before the replies", f"{cost.requests:,}", f"{cost.on_the_way}", "0" if not cost.on_the_way else "> 0"),
                _each("transactions in a burst", cost.burst, cost.transactions, 3),
                _each("bytes received in a burst", cost.burst, cost.received, 0),
            )
        ),
    )  # fmt: skip


def _each(what: str, count: int, total: int, digits: int) -> tuple[str, ...]:
    return what, f"{count:,}", f"{total:,}", f"{total / count:,.{digits}f}"


def _claims(figures: Figures) -> str:
    return _table(
        ("", "blocks in the cluster", "p50 ms", "p90 ms", "max ms", "transactions, most"),
        (
            (
                claim.program, f"{claim.blocks:,}",
                *(f"{value / 1e6:.1f}" for value in (claim.took.p50, claim.took.p90, claim.took.max)),
                str(claim.transactions),
            )
            for claim in figures.claims
        ),
    )  # fmt: skip


def _starts(figures: Figures) -> str:
    return _table(
        ("store", "addresses", "ready p50 s", "ready max s", "resident MiB", "% of a core at rest"),
        (
            (
                start.store, f"{start.addresses:,}", f"{start.ready.p50 / 1e9:.3f}", f"{start.ready.max / 1e9:.3f}",
                f"{start.resident / 2**20:.1f}", "" if start.processor is None else f"{start.processor * 100:.2f}",
            )
            for start in figures.starts
        ),
    )  # fmt: skip


def _restarts(figures: Figures) -> str:
    return _table(
        ("store", "restarts", "calls", "refused", "longest wait of an ADD, s"),
        (
            (
                restart.store, str(len(restart.waits)), f"{restart.calls:,}", str(restart.refused),
                ", ".join(f"{wait / 1e9:.3f}" for wait in restart.waits),
            )
            for restart in figures.restarts
        ),
    )  # fmt: skip


def _table(head: Sequence[str], rows: Rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
