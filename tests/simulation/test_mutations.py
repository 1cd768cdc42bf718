"""The simulation bites: it finds deliberate bugs of the kind that breaks the promise.

Here each is looked for where it was found before; ``python -m tests.simulation --mutations`` looks from seed 0 on.
"""

import pytest

from tests.simulation.mutations import MUTATIONS, applied
from tests.simulation.plan import draw
from tests.simulation.world import simulate

FOUND = {
    "replies before the fact is in the state file": 6,
    "answers an ADD that the full disk did not take": 78,
    "hands out what is free in the block, not only what is in reserve": 0,
    "hands an address of the reserve out twice": 0,
    "hands an address out again before the store knows of the DEL": 1,
    "takes an address back while a transaction is in doubt": 28,
    "forgets after a start that a transaction of the last life may arrive": 28,
    "leaves the tombstones out of a checkpoint": 3,
    "leaves what is being released out of a checkpoint": 28,
    "drops from a checkpoint what is appended while it is written": 38,
    "forgets a reboot": 11,
    "leaves what is withdrawn out of the state file": 300,
    "sends what it gives back before that is in the state file": 300,
    "drops the tombstone of a DEL": 3,
    "gives a repeated ADD another address": 0,
    "believes only the store when it starts": 22,
    "writes a block whatever became of it since it was read": 19,
    "takes a transaction without an answer for done": 3,
    "leaves the pods' handles out of the transaction": 0,
}
"""By what a daemon does wrong, a seed that shows it: the search begins there, as other changes move it."""

AHEAD = 40
"""How many seeds are tried."""


@pytest.mark.parametrize("name", FOUND)
def test_a_deliberate_bug_is_found(name: str) -> None:
    """A run that is sound without the bug is not with it."""
    for seed in range(FOUND[name], FOUND[name] + AHEAD):
        with applied(name):
            found = simulate(draw(seed)).findings
        if found:
            assert simulate(draw(seed)).findings == []
            return
    pytest.fail(f"a daemon that {name} was not found in {AHEAD} seeds")


def test_every_deliberate_bug_is_one_that_this_list_knows() -> None:
    """None is left out but those that take too many seeds to be looked for here."""
    assert MUTATIONS.keys() - FOUND.keys() == {
        "lets an older word of the store replace a newer one",
        "never ends a failure to sync",
        "looks for its reserve in its own blocks only",
    }
