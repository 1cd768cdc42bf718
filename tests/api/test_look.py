"""Looks at the store before a refusal: one at a time, apart from one another, fresh for everybody who waits."""

import trio
from trio.testing import MockClock

from ipamd.api.look import APART, PATIENCE, Look


class Store:
    """Counts the looks, each of which takes ``takes`` seconds and finds the number of changes made before it began."""

    def __init__(self, takes: float = 0.05) -> None:
        self.takes = takes
        self.obstacle = ""
        self.began: list[float] = []
        self.busy = 0
        self.changes = 0
        self.known = 0

    async def ask(self) -> str:
        """One look."""
        self.began.append(trio.current_time())
        self.busy += 1
        assert self.busy == 1
        found = self.changes
        try:
            await trio.sleep(self.takes)
        finally:
            self.busy -= 1
        self.known = found
        return self.obstacle


async def test_everybody_hears_of_what_was_there_when_they_came(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Who comes while a look is under way waits for the next: it was not fresh for them; and so many share one."""
    store = Store()
    look = Look(store.ask)

    async def refused(at: float) -> None:
        await trio.sleep(at)
        store.changes += 1
        mine = store.changes
        assert await look.fresh() == ""
        assert store.known >= mine

    async with trio.open_nursery() as pods:
        for number in range(100):
            pods.start_soon(refused, number / 100)
    assert 4 <= len(store.began) <= 7
    assert all(late - early > APART - 1e-6 for early, late in zip(store.began, store.began[1:], strict=False))


async def test_a_pod_refused_in_a_loop_costs_a_few_reads_a_second(autojump_clock: MockClock) -> None:
    """The store is asked at most every fifth of a second, whoever asks and however quickly it answers."""
    store = Store(takes=0.0)
    look = Look(store.ask)
    with trio.move_on_after(10):
        while True:
            await look.fresh()
    assert 45 <= len(store.began) <= 51


async def test_the_first_look_after_a_pause_is_at_once(autojump_clock: MockClock) -> None:
    """The limit costs a single refused pod nothing."""
    store = Store(takes=0.0)
    look = Look(store.ask)
    for _number in range(3):
        began = trio.current_time()
        await look.fresh()
        assert trio.current_time() == began
        await trio.sleep(1)


async def test_a_store_that_does_not_answer_is_not_waited_for_long(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Each hears after the same short time that it did not, however many came before."""
    store = Store(takes=60.0)
    look = Look(store.ask)
    said: list[str] = []

    async def refused() -> None:
        began = trio.current_time()
        said.append(await look.fresh())
        assert trio.current_time() == began + PATIENCE

    async with trio.open_nursery() as pods:
        for _number in range(10):
            pods.start_soon(refused)
    assert said == ["it did not answer within 1 s"] * 10
    store.takes = 0.0
    assert await look.fresh() == ""


async def test_what_kept_from_looking_is_told_to_all_who_waited_for_it(autojump_clock: MockClock) -> None:
    """The obstacle is that of the look that they waited for, not of an earlier one."""
    store = Store()
    look = Look(store.ask)
    store.obstacle = "connection refused"
    assert await look.fresh() == "connection refused"
    store.obstacle = ""
    assert await look.fresh() == ""


async def test_who_hangs_up_while_looking_leaves_the_look_to_the_next(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """The client of the ADD that looked is gone: the others still get their look."""
    store = Store()
    look = Look(store.ask)
    scope = trio.CancelScope()

    async def refused_and_gone() -> None:
        with scope:
            await look.fresh()

    nursery.start_soon(refused_and_gone)
    await trio.sleep(0.01)
    said: list[str] = []

    async def refused() -> None:
        said.append(await look.fresh())

    async with trio.open_nursery() as pods:
        pods.start_soon(refused)
        pods.start_soon(refused)
        await trio.sleep(0.01)
        scope.cancel()
    assert said == ["", ""]
    assert len(store.began) == 2
