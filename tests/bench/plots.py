"""The benchmark's three pictures, as charts to draw. Pure."""

from collections.abc import Iterator

from tests.bench.figures import STORES, Figures
from tests.scale.plot import Chart


def charts(figures: Figures) -> list[Chart]:
    """A chart for each part that was measured."""
    return [*_adds(figures), *_throughput(figures), *_sizes(figures)]


def _adds(figures: Figures) -> Iterator[Chart]:
    for each in figures.processes:
        lines = {
            name: [(value / 1e6, float(percent)) for percent, value in enumerate(lane.curve)]
            for name, lane in each.alone.items()
        }
        title = f"ADD by exec, nothing held, {each.store} store"
        yield Chart(title, "ms, whole process", "% of the ADDs that took no longer", lines, shares=True)


def _throughput(figures: Figures) -> Iterator[Chart]:
    if figures.loads:
        lines = {
            store: [(float(load.connections), load.adds) for load in figures.loads if load.store == store]
            for store in STORES
        }
        yield Chart("ADDs at the socket, daemon on one core, flushing", "connections", "ADD/s", lines)


def _sizes(figures: Figures) -> Iterator[Chart]:
    if figures.claims:
        programs = dict.fromkeys(claim.program for claim in figures.claims)
        lines = {
            program: [
                (float(max(claim.blocks, 1)), claim.took.p50 / 1e6)
                for claim in figures.claims
                if claim.program == program
            ]
            for program in programs
        }
        title = "A node's first block and address"
        yield Chart(title, "blocks in the cluster (1 stands for none)", "ms, p50", lines)
