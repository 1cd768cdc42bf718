"""``python -m tests.bench``: measure, print the report, and write it beside its figures as JSON.

Takes two minutes; ``--quick`` some seconds, for the guard in the test suite, whose figures are too few to quote.
The machine should have nothing else to do: the load at the start is part of the report.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import trio

import ipamd
from tests.bench import loads, processes, report
from tests.bench.figures import STORES, Figures
from tests.bench.programs import compile_programs


def main() -> int:
    """Run the benchmark; 0 when it ran, whatever the verdict: a busy machine is no mistake."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--output", type=Path, help="Markdown file to write; the figures go beside it as .json")
    parser.add_argument("--quick", action="store_true", help="some seconds; too few figures to quote")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ipamd-bench-") as directory:
        figures = measure(Path(directory), quick=arguments.quick)
    text = report.markdown(figures)
    sys.stdout.write(text)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text)
        figures_as_json = msgspec.json.format(msgspec.json.encode(_with_ratios(figures)), indent=2)
        arguments.output.with_suffix(".json").write_bytes(figures_as_json + b"\n")
    return 0


def measure(directory: Path, *, quick: bool) -> Figures:
    """Run all measures with their files below ``directory``."""
    programs = directory / "programs"
    compile_programs(programs)
    rounds, repeats, at_once = (30, 1, processes.A_FEW) if quick else (1000, 5, processes.AT_ONCE)
    amount: tuple[Sequence[int], int, int] = ((8,), 1, 100) if quick else (loads.CONNECTIONS, 5, 5000)
    machine = describe()
    comparisons = [
        processes.measure(directory / f"processes-{store}", programs, store, rounds, repeats, at_once)
        for store in STORES
    ]
    return Figures(machine, comparisons, loads.measure(directory, programs, *amount))


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


def _with_ratios(figures: Figures) -> dict[str, object]:
    ratios = {
        each.store: {"host_local_to_ipamd": report.faster(each), "ipamd_to_floor": report.above_floor(each)}
        for each in figures.comparisons
    }
    return {"figures": figures, "ratios": ratios, "goals": report.goals(figures)}


if __name__ == "__main__":
    sys.exit(main())
