"""``python -m tests.bench``: measure, print the report, and write it beside its figures as JSON and its plots.

Takes a quarter of an hour; with ``--rounds 100`` some minutes, with ``--quick`` some seconds, for the guard in the test
suite, whose figures are too few to quote. The machine should have nothing else to do: the load at the start is part of
the report.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import trio
from msgspec import Struct

import ipamd
from tests.bench import claims, costs, goals, loads, processes, report, restarts, starts
from tests.bench.figures import STORES, Figures
from tests.bench.plots import charts
from tests.bench.programs import compile_programs
from tests.scale.plot import svg


class Amount(Struct, frozen=True):
    """How much to measure; see the parts."""

    processes: processes.Amount
    connections: Sequence[int]
    load_bursts: int
    load_pairs: int
    burst: int
    clusters: Sequence[int]
    claims: int
    addresses: Sequence[int]
    starts: int
    idle: float
    restarts: int


QUICK = Amount(processes.Amount(30, 30, {10: 1}), (8,), 1, 100, 200, (0, 100), 1, (0, 30), 1, 0.2, 1)
"""Only to see that all is measured."""

PARTS = ("processes", "loads", "costs", "claims", "starts", "restarts")


def amount(rounds: int) -> Amount:
    """What takes a quarter of an hour with 1,000 rounds, and some minutes with 100.

    All counts but those of rounds stay as they are.
    """
    few = rounds < 500
    return Amount(
        processes.Amount(rounds, processes.HELD, {100: 2 if few else 7, 1000: 1 if few else 3}),
        loads.CONNECTIONS, 1 if few else 5, 500 if few else 5000, 1000,
        claims.SIZES, 3 if few else 15, starts.SIZES, 2 if few else 7, 2.0 if few else 10.0, 2 if few else 7,
    )  # fmt: skip


def main() -> int:
    """Run the benchmark; 0 when it ran, whatever the verdict: a busy machine is no mistake."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--output", type=Path, help="Markdown file to write; beside it go .json and .svg")
    parser.add_argument("--rounds", type=int, default=1000, help="of whole processes (default: 1000); all else follows")
    parser.add_argument("--quick", action="store_true", help="some seconds; too few figures to quote")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    arguments = parser.parse_args()
    much = QUICK if arguments.quick else amount(arguments.rounds)
    with tempfile.TemporaryDirectory(prefix="ipamd-bench-") as directory:
        figures = measure(Path(directory), much, arguments.only)
    text = report.markdown(figures)
    sys.stdout.write(text)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text)
        written = msgspec.json.encode({"figures": figures, "goals": goals.goals(figures)})
        arguments.output.with_suffix(".json").write_bytes(msgspec.json.format(written, indent=2) + b"\n")
        arguments.output.with_suffix(".svg").write_text(svg(charts(figures)))
    return 0


def measure(directory: Path, much: Amount, parts: Sequence[str]) -> Figures:
    """Run the parts with their files below ``directory``."""
    programs = directory / "programs"
    compile_programs(programs)
    machine = describe()
    measures: dict[str, Callable[[], Sequence[object]]] = {
        "processes": lambda: [
            processes.measure(directory / f"processes-{store}", programs, store, much.processes) for store in STORES
        ],
        "loads": lambda: loads.measure(directory, programs, much.connections, much.load_bursts, much.load_pairs),
        "costs": lambda: [costs.measure(directory, programs, much.burst)],
        "claims": lambda: claims.measure(directory, much.clusters, much.claims),
        "starts": lambda: starts.measure(directory, programs, much.addresses, much.starts, much.idle),
        "restarts": lambda: list(restarts.measure(directory, programs, much.restarts)),
    }
    return Figures(machine, **{part: measures[part]() for part in parts})


def describe() -> dict[str, str]:
    """The machine and the versions, for the report's head."""
    server, client = loads.cores()
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": _processor(),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "ipamd": ipamd.__version__,
        "trio": trio.__version__,
        "msgspec": msgspec.__version__,
        "load at the start": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "socket measure": f"daemon on core {server}, client (and etcd) on core {client}",
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
