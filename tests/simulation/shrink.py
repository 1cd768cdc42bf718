"""From a plan that fails to a smaller one that fails in the same way: events are left out while it still does."""

from collections.abc import Callable, Sequence

from tests.simulation.plan import Plan
from tests.simulation.world import Verdict


def shrink(plan: Plan, run: Callable[[Plan], Verdict], budget: int = 400) -> list[int]:
    """The positions of the events that are needed, found in ``budget`` runs at most."""
    wanted = {kind for kind, _text in run(plan).findings}
    kept = list(range(len(plan.events)))
    size = max(1, len(kept) // 2)
    while budget > 0:
        smaller = _without_one_part(kept, size)
        for candidate in smaller:
            budget -= 1
            if budget >= 0 and wanted & {kind for kind, _text in run(plan.keep(candidate)).findings}:
                kept = candidate
                break
        else:
            if size == 1:
                return kept
            size = max(1, size // 2)
    return kept


def _without_one_part(kept: Sequence[int], size: int) -> list[list[int]]:
    return [[*kept[:at], *kept[at + size :]] for at in reversed(range(0, len(kept), size))]
