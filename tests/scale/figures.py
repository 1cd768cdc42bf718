"""What is told of a run: figures, the lines of a table and the charts."""

import time
from collections.abc import Iterator, Sequence

import trio
from msgspec import Struct
from trio.testing import MockClock

from tests.scale.clusters import Run, Scenario, run_calico, run_ipamd
from tests.scale.plot import Chart


class Figures(Struct, frozen=True):
    """What is told of a run. Counts are means over the nodes, or over the pods where it says so."""

    scenario: Scenario
    algorithm: str
    pods: int
    claims: int
    p50: float
    p99: float
    last: float
    commits: float
    conflicts: float
    conflicts_a_pod: float
    round_trips: float
    values: float
    read_bytes: float
    events: float
    most_events: int
    refused: int
    bytes_a_pod: float
    took: float


def measure(scenario: Scenario, algorithm: str) -> Figures:
    """Run a scenario and take its figures."""
    began = time.perf_counter()
    program = run_ipamd if algorithm == "ipamd" else run_calico
    run = trio.run(program, scenario, clock=MockClock(autojump_threshold=0))
    return figures(run, algorithm, time.perf_counter() - began)


def figures(run: Run, algorithm: str, took: float) -> Figures:
    """The figures of a run that took so many real seconds."""
    nodes, seconds = run.scenario.nodes, run.seconds
    return Figures(
        run.scenario,
        algorithm,
        run.pods,
        run.total(lambda tally: tally.claims),
        seconds[len(seconds) // 2],
        seconds[len(seconds) * 99 // 100],
        seconds[-1],
        run.total(lambda tally: tally.meter.calls["commit"]) / nodes,
        run.total(lambda tally: tally.meter.conflicts) / nodes,
        run.total(lambda tally: tally.meter.conflicts) / run.pods,
        run.total(lambda tally: tally.meter.round_trips) / nodes,
        run.total(lambda tally: tally.meter.values) / nodes,
        run.total(lambda tally: tally.meter.read_bytes) / nodes,
        run.total(lambda tally: tally.events) / nodes,
        run.most(lambda tally: tally.events),
        run.total(lambda tally: tally.refused),
        run.bytes_a_pod,
        took,
    )


def table(found: Sequence[Figures]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield (
        "| | nodes | pods | first address p50 / p99 / last, ms | transactions a node | lost of these | calls a node "
        "| records read | kB read | watch events, mean / most | store bytes a pod | real s |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for each in found:
        times = " / ".join(f"{second * 1000:.0f}" for second in (each.p50, each.p99, each.last))
        events = f"{each.events:.1f} / {each.most_events}" if each.algorithm == "ipamd" else "-"
        yield (
            f"| {each.algorithm} | {each.scenario.nodes:,} | {each.pods:,} | {times} | {each.commits:.2f} "
            f"| {each.conflicts:.2f} | {each.round_trips:.1f} | {each.values:,.1f} | {each.read_bytes / 1000:,.1f} "
            f"| {events} | {each.bytes_a_pod:,.0f} | {each.took:.0f} |"
        )


def charts(found: Sequence[Figures]) -> list[Chart]:
    """The plot: what a claim reads, and how long the last node waits."""
    names = dict.fromkeys(each.algorithm for each in found)
    lines = {name: [each for each in found if each.algorithm == name] for name in names}
    read = {name: [(e.scenario.nodes, e.read_bytes / 1000) for e in line] for name, line in lines.items()}
    calls = {name: [(e.scenario.nodes, e.round_trips) for e in line] for name, line in lines.items()}
    return [
        Chart("kB read from the store for a node's block and first pod", "nodes that start at once", "kB", read),
        Chart("Calls of the store for a node's block and first pod", "nodes that start at once", "calls", calls),
    ]
