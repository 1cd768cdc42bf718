"""The promise under everything at once: crashes, lost and late messages, full disks, reboots, by seeds.

``make soak SEEDS=100000`` runs more of them; a failing seed says how to replay it.
"""

import os
import subprocess
import sys

import pytest

from tests.simulation.plan import Plan, draw
from tests.simulation.shrink import shrink
from tests.simulation.world import Verdict, simulate

SEEDS = 2000 if os.environ.get("CI") else 250
"""As many as take two minutes on two cores, or a quarter of one."""

PART = 250
"""Seeds of one test."""


def command(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """Run ``python -m tests.simulation``."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )


@pytest.mark.parametrize("first", range(0, SEEDS, PART))
def test_no_address_is_given_twice_none_is_lost_and_none_leaks(first: int) -> None:
    """As many clusters, each with its own misfortunes: the promise holds in all."""
    done = command("--from", str(first), "--seeds", str(PART), "--processes", "1")  # other tests run beside it
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"seeds {PART}, double 0, lost 0, leaked 0, unsound 0\n" in done.stdout


@pytest.mark.parametrize("seed", [3, 5, 8])
def test_a_seed_gives_the_same_run_again(seed: int) -> None:
    """Twice in one process, and in another whose sets have another order: what happened is the same to the letter."""
    first, second = simulate(draw(seed)), simulate(draw(seed))
    assert first.trace
    assert first.trace == second.trace
    runs = [command("--replay", str(seed), hash_seed=hash_seed).stdout for hash_seed in ("0", "7")]
    assert runs[0].splitlines()[-1].startswith("digest ")
    assert runs[0] == runs[1]


def test_much_happens_in_a_run() -> None:
    """Runs that assign nothing would prove nothing: faults of all kinds strike while pods come and go."""
    verdicts = [simulate(draw(seed)) for seed in range(20)]
    trace = "\n".join(line for verdict in verdicts for line in verdict.trace)
    assert sum(verdict.acknowledged for verdict in verdicts) > 100
    for sign in (": dead", "cannot append to the state file", "no answer in time", ": given up", "missing 1", ": DEL"):
        assert sign in trace, sign


def test_a_failing_plan_shrinks_to_the_events_that_matter() -> None:
    """What is left fails as the whole did, and without any of its events it does not."""
    plan = draw(11)
    guilty = {2, 5}

    def run(tried: Plan) -> Verdict:
        fails = all(plan.events[position] in tried.events for position in guilty)
        return Verdict(0, [("lost", "x")] if fails else [], [], "", 0, 0)

    assert len(plan.events) > 8
    assert set(shrink(plan, run)) == guilty
