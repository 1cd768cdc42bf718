"""One key that one daemon of the cluster holds at a time: for as long as it says so, and a little longer.

The record is bound to a lease, which the store ends when it was not renewed for its time. A hold saves work, it makes
nothing safe: a process may be stopped between the look at the clock and what it does next. Imports trio, and ``base``.
"""

import math
from contextlib import suppress

import trio

from ipamd.store.base import Change, Record, Store, StoreRefusedError, StoreUnavailableError

RELEASE_SECONDS = 1.0
"""How long it may take to release a key at the end; else it goes with its lease."""


class Hold:
    """``take`` the key, ``renew`` it several times in each ``ttl`` (s), ``release`` it.

    The first two raise what the store raises.
    """

    def __init__(self, store: Store, key: str, ttl: float) -> None:
        self._store, self._key, self._ttl = store, key, ttl
        self._lease = self._revision = 0
        self._until = -math.inf

    @property
    def held(self) -> bool:
        """Whether the store surely has the key as ours: counted from when the last word that it took was sent."""
        return trio.current_time() < self._until

    async def take(self, value: bytes, over: Record | None = None) -> bool:
        """Write the key, if it is absent, or still ``over``; whether it is held now."""
        sent = trio.current_time()
        lease = await self._store.grant(self._ttl)
        expected = over.revision if over is not None else 0
        outcome = await self._store.commit([Change(self._key, value, expected, lease.id)])
        if outcome.chosen is None:
            await self._store.revoke(lease.id)
            return False
        self._lease, self._revision = lease.id, outcome.revision
        self._until = sent + lease.ttl
        return self.held

    async def renew(self) -> Record | None:
        """Begin the time anew, if the key is still ours; returns what is at the key. If this fails, time goes on."""
        sent = trio.current_time()
        lasts = await self._store.renew(self._lease)
        found = (await self._store.read([self._key])).records
        record = found[0] if found else None
        ours = lasts > 0 and record is not None and record.revision == self._revision
        self._until = sent + lasts if ours else -math.inf
        return record

    async def release(self) -> None:
        """Let go of the key, at once if the store answers soon."""
        held, self._until = self.held, -math.inf
        if held:
            with trio.move_on_after(RELEASE_SECONDS, shield=True), suppress(StoreUnavailableError, StoreRefusedError):
                await self._store.revoke(self._lease)
