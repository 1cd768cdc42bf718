"""``python -m tests.scale``: run the clusters, print the tables of ``docs/scale.md`` and draw its plot.

Each run is a process of its own, one after the other, so that memory and figures are its own.
"""

import argparse
import multiprocessing
from pathlib import Path

from tests.scale.clusters import claiming, crowding
from tests.scale.figures import charts, measure, table
from tests.scale.plot import svg

CLAIMING = {"ipamd": (50, 200, 800, 3200, 10_000), "Calico": (50, 200, 800)}
"""Sizes. Calico's algorithm lists all blocks for each claim: 10,000 nodes would hold some 100 GB at once."""

CROWDING = {"ipamd": (50, 200, 500, 1000), "Calico": (50, 200)}
"""Its search through a pool without a free block is one call for each block: memory is not the limit, patience is."""


def main() -> None:
    """Run all sizes, or those asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.scale", description=__doc__)
    parser.add_argument("--most", type=int, default=10_000, help="leave larger clusters out")
    parser.add_argument("--plot", type=Path, default=Path("docs/scale.svg"), help="where to draw")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for make, sizes in ((claiming, CLAIMING), (crowding, CROWDING)):
        print(f"\n{make.__name__}\n")
        found = []
        for algorithm, each in sizes.items():
            for nodes in (size for size in each if size <= arguments.most):
                with context.Pool(1) as pool:
                    found.append(pool.apply(measure, (make(nodes), algorithm)))
        print("\n".join(table(found)), flush=True)
        if make is claiming:
            arguments.plot.write_text(svg(charts(found)))


if __name__ == "__main__":
    main()
