"""``python -m tests.simulation``: run many seeds on all cores and say what was wrong; or replay one, with its trace.

The last line is ``seeds n, double 0, lost 0, leaked 0, unsound 0`` with figures. For each failing seed (the first
few) the smallest part of it that still fails is looked for, and the command that replays that is printed.
"""

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

from tests.simulation.mutations import MUTATIONS, applied
from tests.simulation.plan import draw
from tests.simulation.shrink import shrink
from tests.simulation.world import Verdict, simulate

KINDS = ("double", "lost", "leaked", "unsound")

SHOWN = 5
"""Failing seeds that are shrunk and shown."""

OFTEN = 1000
"""Seeds after which a run says how far it is."""


def main() -> int:
    """1 if anything was wrong."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of strings: their order is part of what happens
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])  # noqa: S606 - itself
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one (default: 0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: as many as cores")
    parser.add_argument("--replay", type=int, help="run this seed alone and print its trace")
    parser.add_argument("--events", help="with --replay: only these events, by their positions, as 0,3,8")
    parser.add_argument("--mutations", action="store_true", help="put deliberate bugs in, and say when each is found")
    arguments = parser.parse_args()
    if arguments.mutations:
        return bite(arguments.seeds, arguments.processes)
    if arguments.replay is not None:
        return replay(arguments.replay, arguments.events)
    return soak(range(arguments.first, arguments.first + arguments.seeds), arguments.processes)


def replay(seed: int, events: str | None) -> int:
    """Run one seed, or some of its events, and print what happened."""
    plan = draw(seed)
    if events is not None:
        plan = plan.keep([int(position) for position in events.split(",") if position])
    verdict = simulate(plan)
    _print(f"{plan.nodes} nodes, {plan.blocks} blocks of /{plan.block_size}, reserve {plan.reserve}, {plan.durability}")
    _print(*verdict.trace, *_words(verdict), f"digest {verdict.digest}")
    return bool(verdict.findings)


def soak(seeds: Sequence[int], processes: int) -> int:
    """Run seeds, and print what was wrong in each that failed."""
    began, counts, acknowledged, happened, failed = time.perf_counter(), Counter[str](), 0, 0, 0
    with multiprocessing.Pool(processes, gc.set_threshold, (50_000,)) as pool:
        for done, verdict in enumerate(pool.imap(_run, seeds, chunksize=8)):
            if done and done % OFTEN == 0:
                _print(f"{done} seeds, {failed} failed")
            acknowledged += verdict.acknowledged
            happened += verdict.events
            if verdict.findings:
                failed += 1
                counts.update(kind for kind, _text in verdict.findings)
                if failed <= SHOWN:
                    _print(f"seed {verdict.seed} fails:", *(f"  {line}" for line in _words(verdict)[:3]))
                    kept = ",".join(map(str, shrink(draw(verdict.seed), simulate)))
                    _print(f"  python -m tests.simulation --replay {verdict.seed} --events {kept}")
    seconds = time.perf_counter() - began
    _print(
        f"{happened} events, {acknowledged} ADDs acknowledged, {failed} seeds failed; {seconds:.0f} s, "
        f"{seconds / len(seeds) * processes * 1000:.0f} ms a seed and process",
        f"seeds {len(seeds)}, " + ", ".join(f"{kind} {counts[kind]}" for kind in KINDS),
    )
    return bool(failed)


def bite(limit: int, processes: int) -> int:
    """Look for each deliberate bug in as many seeds as it takes, ``limit`` at most; print a table for docs/design.md."""
    missed = 0
    _print("| a daemon that | is found by seed | as |", "|---|---|---|")
    with multiprocessing.Pool(processes, gc.set_threshold, (50_000,)) as pool:
        for name, seed, words in pool.imap(partial(_hunt, limit), MUTATIONS):
            missed += not words
            _print(f"| {name} | {seed if words else 'none'} | {words[0].partition(':')[0] if words else ''} |")
    _print("", f"{len(MUTATIONS)} deliberate bugs, {missed} not found in {limit} seeds")
    return bool(missed)


def _hunt(limit: int, name: str) -> tuple[str, int, list[str]]:
    for seed in range(limit):
        with applied(name):
            verdict = simulate(draw(seed))
        if verdict.findings:
            return name, seed, _words(verdict)
    return name, limit, []


def _run(seed: int) -> Verdict:
    verdict = simulate(draw(seed))
    if not verdict.findings:
        verdict.trace.clear()  # else all of them would be sent between processes
    return verdict


def _words(verdict: Verdict) -> list[str]:
    return [f"{kind}: {text}" for kind, text in verdict.findings]


def _print(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
