"""No is confirmed: before an ADD is refused for want of a pool, the store is asked once more.

Yes is answered from memory. A pool that was made a millisecond ago may not be in memory yet, so what would be a refusal
waits for a look at the store that began after the ADD came. Looks come one at a time and apart from one another: pods
that are refused again and again must not cost the store more than a few reads a second.
"""

from collections.abc import Awaitable, Callable

import trio

APART = 0.2
"""Seconds from the beginning of one look to that of the next."""

PATIENCE = 1.0
"""Seconds that a refusal waits for a store that does not answer."""


class Look:
    """``ask`` looks at the store and makes what it finds part of memory; it returns why it could not, else ""."""

    def __init__(self, ask: Callable[[], Awaitable[str]]) -> None:
        self._ask = ask
        self._turn = trio.Lock()
        self._begun = 0
        self._ended = 0
        self._obstacle = ""
        self._not_before = 0.0

    async def fresh(self) -> str:
        """Wait until a look that begins after this call has ended; returns why there was none in time, else ""."""
        came = self._begun
        with trio.move_on_after(PATIENCE):
            async with self._turn:  # who holds it looks, also for those who came before the look began
                if self._ended <= came:
                    await self._look()
                return self._obstacle
        return f"it did not answer within {PATIENCE:g} s"

    async def _look(self) -> None:
        await trio.sleep_until(self._not_before)
        self._begun += 1
        self._not_before = trio.current_time() + APART
        self._obstacle = await self._ask()
        self._ended = self._begun
