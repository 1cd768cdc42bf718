"""The task by which one daemon of the cluster at a time clears away what nobody owns (``leftovers``), slowly.

Which one: whoever holds ``keys.CLEANER``. That saves work and makes nothing safe: two that clean at once, each in the
belief to be alone, do no harm. May import trio, core and store.
"""

from collections.abc import Callable

import trio
from msgspec import Struct

from ipamd.core import keys
from ipamd.core.clock import Now
from ipamd.core.ledger import Ledger
from ipamd.core.records import go_json, rfc3339
from ipamd.store.base import Store, StoreRefusedError, StoreUnavailableError
from ipamd.store.hold import Hold
from ipamd.store.leftovers import Walk

LEAST_HOLD = 5.0
"""The shortest time for which the key is held (s): etcd counts in seconds."""


class Cleaning(Struct, frozen=True):
    """Settings: seconds between two steps, and how long what is removed must have looked left over (ns)."""

    interval: float = 60.0
    grace: int = 3_600_000_000_000


class Cleaner:
    """``run`` it in a nursery; ``release`` the part at the end of the daemon."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        settings: Cleaning,
        now: Callable[[], Now],
        report: Callable[[str, dict[str, str]], None],
    ) -> None:
        self._ledger, self._store, self._interval, self._now, self._report = (
            ledger,
            store,
            settings.interval,
            now,
            report,
        )
        self._hold = Hold(store, keys.CLEANER, max(LEAST_HOLD, 3 * settings.interval))
        self._walk = Walk(ledger, store, settings.grace, now, report)
        self._histories = ledger.histories
        self._told = ""

    @property
    def here(self) -> bool:
        """Whether this daemon is the one."""
        return self._hold.held

    @property
    def handles(self) -> int:
        """How many handles it removed since the start."""
        return self._walk.handles

    @property
    def addresses(self) -> int:
        """How many addresses it released that nodes which are gone had in reserve."""
        return self._walk.addresses

    async def run(self) -> None:
        """Take part for ever: be ready to be the one, and clean while it is."""
        while True:
            await trio.sleep(self._interval)
            try:
                await self._turn()
                self._told = ""
            except (StoreUnavailableError, StoreRefusedError) as error:
                if str(error) != self._told:
                    self._report("cannot clear away what nobody owns", {"error": str(error)})
                self._told = str(error)

    async def _turn(self) -> None:
        if not self._ledger.synced:
            return
        if self._hold.held:
            await self._hold.renew()
        else:
            self._walk.forget()
            found = (await self._store.read([keys.CLEANER])).records
            if found or self._ledger.settings.locked:
                return
            holder = {"node": self._ledger.node, "since": rfc3339(self._now().unix)}
            await self._hold.take(go_json(holder))
        if self._histories != self._ledger.histories:
            self._histories = self._ledger.histories
            self._walk.forget()
        if self._hold.held and not self._ledger.settings.locked:
            await self._walk.step()

    async def release(self) -> None:
        """Let another daemon be the one at once."""
        await self._hold.release()
