"""The goals, each with what was measured for it and the verdict. Pure."""

from collections.abc import Callable, Iterator

from msgspec import Struct

from tests.bench.figures import (
    AWAY,
    FLOOR,
    OWN,
    REFERENCE,
    Comparison,
    Cost,
    Figures,
    Load,
    Processes,
    Restart,
    Spread,
    Start,
)

AT_ONCE = 100
NOISE = 1.1
"""What "no slower" allows: the medians of two halves of one run on a machine that others use differ by so much."""


_VERBS: dict[str, Callable[[Processes], Spread]] = {"ADD": lambda lane: lane.add, "DEL": lambda lane: lane.delete}


class Goal(Struct, frozen=True):
    """One goal and what was measured for it."""

    text: str
    measured: str
    met: bool


def goals(figures: Figures) -> list[Goal]:
    """The verdicts, each store's its own; a part that was left out has none."""
    return [
        *(goal for each in figures.processes for goal in _processes(each)),
        *(goal for load in figures.loads for goal in _socket(load)),
        *(goal for cost in figures.costs for goal in _cost(cost)),
        *_claims(figures),
        *(goal for start in figures.starts for goal in _start(start)),
        *(goal for restart in figures.restarts for goal in _restart(restart)),
    ]


def _least(text: str, value: float, goal: float, form: Callable[[float], str] = "{:.1f}".format) -> Goal:
    return Goal(f"{text}: at least {form(goal)}", form(value), value >= goal)


def _most(text: str, value: float, goal: float, form: Callable[[float], str] = "{:.2f}".format) -> Goal:
    return Goal(f"{text}: at most {form(goal)}", form(value), value <= goal)


def _processes(each: Comparison) -> Iterator[Goal]:
    own, floor, reference = (each.alone[name] for name in (OWN, FLOOR, REFERENCE))
    held, held_reference = each.held[OWN], each.held[REFERENCE]
    for verb, of in _VERBS.items():
        what = f"{verb} by exec, {each.store}"
        yield _least(f"{what}: times as fast as host-local, p50", of(reference).p50 / of(own).p50, 9)
        yield _least(f"{what}: the same beside held addresses", of(held_reference).p50 / of(held).p50, 30)
        yield _most(f"{what}: times the floor, p50", of(own).p50 / of(floor).p50, 1.35)
        yield _most(f"{what}: times the floor, p99", of(own).p99 / of(floor).p99, 2)
        yield _most(f"{what}: beside held addresses, times alone, p50", of(held).p50 / of(own).p50, NOISE)
    took = {(burst.contender, burst.at_once): burst.took.p50 for burst in each.bursts}
    if (OWN, AT_ONCE) in took:
        factor = took[REFERENCE, AT_ONCE] / took[OWN, AT_ONCE]
        yield _least(f"{AT_ONCE} ADDs at once, {each.store}: times as fast as host-local", factor, 10)


def _socket(load: Load) -> Iterator[Goal]:
    what = f"ADD at the socket, {load.store}, {load.connections} connection{'s' * (load.connections > 1)}"
    if load.connections == 1:
        yield _most(f"{what}: p50, us", load.add.p50 / 1e3, 100, "{:.0f}".format)
        yield _most(f"{what}: p99 while flushing, us", load.add.p99 / 1e3, 500, "{:.0f}".format)
    if load.connections == 32:
        yield _least(f"{what}: ADD/s on one core", load.adds, 20_000, "{:,.0f}".format)


def _cost(cost: Cost) -> Iterator[Goal]:
    burst = f"a burst of {cost.burst:,}"
    yield _most(f"etcd calls on the way of {cost.requests} ADDs", cost.on_the_way, 0, "{:.0f}".format)
    yield _most(f"etcd transactions an ADD, {burst}", cost.transactions / cost.burst, 0.05, "{:.3f}".format)
    yield _most(f"bytes to etcd an ADD, {burst}", cost.received / cost.burst, 1500, "{:.0f}".format)


def _claims(figures: Figures) -> Iterator[Goal]:
    own = {claim.blocks: claim for claim in figures.claims if claim.program == OWN}
    if len(own) > 1:
        most = own[max(own)]
        factor = most.took.p50 / own[min(own)].took.p50
        yield _most(f"first block beside {most.blocks:,} blocks: times as long as beside none", factor, 1.2)
        yield _most("first block: transactions", max(claim.transactions for claim in own.values()), 2, "{:.0f}".format)


def _start(start: Start) -> Iterator[Goal]:
    if start.store == AWAY and start.addresses == 1000:
        yield _most("start with 1,000 addresses, etcd away: s until ready", start.ready.p50 / 1e9, 0.35)
    if start.store != AWAY:
        what = f"with etcd and {start.addresses:,} addresses"
        yield _most(f"resident {what}, MiB", start.resident / 2**20, 60, "{:.1f}".format)
        if start.processor is not None:
            yield _most(f"idle {what}: share of a core, %", start.processor * 100, 0.2)


def _restart(restart: Restart) -> Iterator[Goal]:
    what = f"restart under load, {restart.store}"
    yield _most(f"{what}: calls refused, of {restart.calls:,}", restart.refused, 0, "{:.0f}".format)
    yield _most(f"{what}: the longest wait of an ADD, s", max(restart.waits) / 1e9, 0.6)
