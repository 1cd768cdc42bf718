"""The line of ADDs that wait for an address: its order, its demand, and who leaves it."""

import trio
from msgspec import structs
from trio.testing import MockClock, wait_all_tasks_blocked

from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Assigned
from ipamd.core.request import AddRequest, Shortage
from ipamd.core.reserve import Refusal
from tests.api.plugin_call import Path
from tests.nodes import add_request


class Line:
    """ADDs that wait, and what became of them, in the order in which they ended."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.path = Path(deadline=10)
        self.nursery = nursery
        self.ended: list[tuple[str, Assigned | RefusedError | None]] = []

    async def join(self, container: str, *families: int, named: str = "") -> trio.CancelScope:
        """Let an ADD wait; returns the scope to cancel it by."""
        request = structs.replace(add_request(container, *families, started=1), named={4: (named,)} if named else {})
        scope = trio.CancelScope()
        self.nursery.start_soon(self._wait, request, scope)
        await wait_all_tasks_blocked()
        return scope

    async def _wait(self, request: AddRequest, scope: trio.CancelScope) -> None:
        outcome: Assigned | RefusedError | None = None
        with scope:
            shortage = self.path.ledger.add(request, self.path.now())
            assert isinstance(shortage, Shortage)
            try:
                outcome = (await self.path.waiting.join(request, shortage)).assigned
            except RefusedError as error:
                outcome = error
        self.ended.append((request.attachment.container, outcome))

    def wanted(self, pool: str) -> int:
        """How many wait for a pool."""
        return self.path.ledger.reserve(pool, 0).waiting


async def test_first_come_first_served(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Those who came first get the addresses that arrive; the others stay, and count as demand."""
    line = Line(nursery)
    for container in ("a", "b", "c"):
        await line.join(container)
    assert line.wanted("four") == 3
    line.path.supply("10.0.0.0/29", 2)
    await wait_all_tasks_blocked()
    assert {container for container, _outcome in line.ended} == {"a", "b"}
    assert (line.wanted("four"), len(line.path.waiting)) == (1, 1)
    line.path.supply("10.0.0.8/29", 2)
    await wait_all_tasks_blocked()
    assert line.wanted("four") == 0


async def test_a_dual_stack_add_waits_for_the_family_that_is_short(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """It takes nothing until it can have both, and wants the one until it has the other."""
    line = Line(nursery)
    await line.join("a", 4, 6)
    assert (line.wanted("four"), line.wanted("six")) == (1, 0)
    line.path.supply("10.0.0.0/29", 1)
    assert (line.wanted("four"), line.wanted("six")) == (1, 1)
    assert line.path.ledger.available("four") == 1
    line.path.supply("fd00::/125", 1)
    await wait_all_tasks_blocked()
    ((_container, outcome),) = line.ended
    assert isinstance(outcome, Assigned)
    assert [place.block for place in outcome.places] == ["10.0.0.0/29", "fd00::/125"]
    assert (line.wanted("four"), line.wanted("six")) == (0, 0)


async def test_who_cannot_be_served_does_not_keep_the_next_waiting(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """An ADD that waits for IPv6 as well lets a later one for IPv4 have the address."""
    line = Line(nursery)
    await line.join("a", 4, 6)
    await line.join("b", 4)
    line.path.supply("10.0.0.0/29", 1)
    await wait_all_tasks_blocked()
    assert [container for container, _outcome in line.ended] == ["b"]
    line.nursery.cancel_scope.cancel()


async def test_a_cancelled_add_leaves_nothing(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A client that hangs up while it waits: no demand, no address, the next in line gets it."""
    line = Line(nursery)
    scope = await line.join("a")
    await line.join("b")
    scope.cancel()
    await wait_all_tasks_blocked()
    assert line.wanted("four") == 1
    line.path.supply("10.0.0.0/29", 1)
    await wait_all_tasks_blocked()
    assert [container for container, _outcome in line.ended] == ["a", "b"]
    assert [who.container for who in line.path.ledger.holdings] == ["b"]


async def test_an_add_cancelled_when_it_was_just_decided_keeps_what_its_twin_was_told(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """One attachment asks twice; the first hangs up at the moment of the decision; the second's answer stays true."""
    line = Line(nursery)
    scope = await line.join("a")
    await line.join("a")
    scope.cancel()
    line.path.supply("10.0.0.0/29", 1)
    await wait_all_tasks_blocked()
    told = next(end for _container, end in line.ended if isinstance(end, Assigned))
    assert line.path.ledger.holdings[told.attachment] == told
    assert not line.path.ledger.blocks["10.0.0.0/29"].releasing


async def test_a_pool_that_has_no_more_refuses_those_who_wait(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """When the writer finds that a pool cannot be supplied, the waiting ADDs hear why, at once."""
    line = Line(nursery)
    await line.join("a")
    now = line.path.now().boot
    line.path.ledger.reserve("four", now).refusal = Refusal(Code.EXHAUSTED, "none of its 4 blocks is free", now)
    line.path.waiting.serve()
    await wait_all_tasks_blocked()
    ((container, refusal),) = line.ended
    assert container == "a"
    assert isinstance(refusal, RefusedError)
    assert refusal.code is Code.EXHAUSTED
    assert "none of its 4 blocks is free" in refusal.msg
    assert line.wanted("four") == 0


async def test_a_pool_that_is_gone_refuses_those_who_wait(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A pool deleted while ADDs wait for it: they are told that there is none."""
    from ipamd.core import keys

    line = Line(nursery)
    await line.join("a")
    line.path.commit(keys.POOLS + "four", None)
    line.path.waiting.serve()
    await wait_all_tasks_blocked()
    ((_container, outcome),) = line.ended
    assert isinstance(outcome, RefusedError)
    assert outcome.code is Code.NO_POOL


async def test_the_deadline_names_what_was_waited_for(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Code 11 after exactly the deadline, with the pool, the time and the excuse."""
    line = Line(nursery)
    await line.join("a")
    await trio.sleep(10.1)
    ((_container, outcome),) = line.ended
    assert isinstance(outcome, RefusedError)
    assert (outcome.code, outcome.msg) == (
        Code.TRY_AGAIN_LATER,
        (
            "cannot assign an address of pool four to default/pod-a: none could be had in 10 s; it is a test; "
            "the runtime will try again"
        ),
    )
    assert len(line.path.waiting) == 0


async def test_each_that_waits_grows_the_reserve_once_a_burst(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Demand is told at once to the writer, and doubles the level not more often than a transaction takes."""
    line = Line(nursery)
    for number in range(20):
        await line.join(f"c{number}")
    reserve = line.path.ledger.reserve("four", 0)
    assert (reserve.level, reserve.target) == (8, 28)
    assert line.path.log == ["hurry"] * 20
    line.nursery.cancel_scope.cancel()
