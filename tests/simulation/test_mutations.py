"""The simulation bites: it finds deliberate bugs of the kind that breaks the promise.

Here each is looked for where it was found before; ``python -m tests.simulation --mutations`` looks from seed 0 on.
"""

import re
from pathlib import Path

import pytest

from tests.simulation.mutations import MUTATIONS, applied
from tests.simulation.plan import draw
from tests.simulation.world import simulate

FOUND = {
    "replies before the fact is in the state file": 3,
    "answers an ADD that the full disk did not take": 69,
    "drops from a checkpoint what is appended while it is written": 161,
    "leaves the tombstones out of a checkpoint": 13,
    "leaves what is being released out of a checkpoint": 554,
    "leaves what is withdrawn out of the state file": 326,
    "forgets a reboot": 23,
    "never ends a failure to sync": 204,
    "hands out what is free in the block, not only what is in reserve": 0,
    "hands an address of the reserve out twice": 0,
    "hands an address out again before the store knows of the DEL": 1,
    "takes an address back while a transaction is in doubt": 308,
    "forgets after a start that a transaction of the last life may arrive": 554,
    "drops the tombstone of a DEL": 1,
    "gives a repeated ADD another address": 0,
    "believes only the store when it starts": 13,
    "lets an older word of the store replace a newer one": 33,
    "writes a block whatever became of it since it was read": 28,
    "takes a transaction without an answer for done": 17,
    "leaves the pods' handles out of the transaction": 0,
    "sends what it gives back before that is in the state file": 326,
    "looks for its reserve in its own blocks only": 680,
}
"""By what a daemon does wrong, a seed that showed it: the search begins there, as every change of the daemon moves it."""

DESIGN = Path(__file__).parents[2] / "docs" / "design.md"

AHEAD = 40
"""How many seeds are tried from there on, before all are."""

ALL = 2000
"""As many as CI runs: what takes more to be found is not found."""


@pytest.mark.parametrize("name", FOUND)
def test_a_deliberate_bug_is_found(name: str) -> None:
    """A run that is sound without the bug is not with it."""
    for seed in (*range(FOUND[name], FOUND[name] + AHEAD), *range(ALL)):
        with applied(name):
            found = simulate(draw(seed)).findings
        if found:
            assert not any("crashed" in words for _kind, words in found), f"it is the mutation that is wrong: {found}"
            assert simulate(draw(seed)).findings == []
            return
    pytest.fail(f"a daemon that {name} was not found in {ALL} seeds")


def test_every_deliberate_bug_is_looked_for() -> None:
    """None is left out, and the design tells of each what it took to find it."""
    assert MUTATIONS.keys() == FOUND.keys()
    told = re.findall(r"^\| (.+) \| (\d+) \| (?:double|lost|leaked|unsound) \|$", DESIGN.read_text(), re.MULTILINE)
    assert {name: int(seed) for name, seed in told} == FOUND
