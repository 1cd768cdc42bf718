"""Handles that no block knows: what programs leave that write block and handle apart. Removed, slowly.

A handle's key says nothing of its node, so each node walks over all handles, a few a minute, and looks closer at those
that name a block of its own. Who allocates writes the handle before the block (Calico's plugin too), so a handle that
has not changed for ``GRACE`` and that none of its blocks knows belongs to nobody; it goes by compare-and-swap on its
revision. Handles whose blocks are all gone, or other nodes', are left to others.

Part of the writer's one task. May import core and store.
"""

from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from ipamd.core import keys
from ipamd.core.clock import Now
from ipamd.core.ledger import Ledger
from ipamd.core.records import BlockRecord, RecordError, handle_blocks
from ipamd.store.base import Change, ChangeSet, KeyRange, Outcome, Record, Store

PAUSE = 60_000_000_000
"""Between two steps of the walk (ns)."""
WINDOW = 50
"""Handles a step: a cluster of 1,000 pods is walked over in 20 minutes, at two reads a minute and node."""
REMOVALS = 10
"""Handles removed in a step."""
SUSPECTS = 200
"""Handles remembered as suspect: others come up in a later round."""
GRACE = 900_000_000_000
"""How long a handle must not have changed (ns)."""

_END = "\U0010ffff"


class _Suspect(Struct, frozen=True):
    revision: int
    since: int


class HandleWalk:
    """``step`` when nothing else is to be done; ``removed`` counts. ``send`` commits one change set."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        send: Callable[[ChangeSet], Awaitable[Outcome]],
        now: Callable[[], Now],
        report: Callable[[str, dict[str, str]], None],
    ) -> None:
        self._ledger, self._store, self._send, self._now, self._report = ledger, store, send, now, report
        self._cursor = keys.HANDLES
        self._last = now().boot + GRACE - PAUSE  # nothing is to be removed before, and a start has better to do
        self._suspects: dict[str, _Suspect] = {}
        self.removed = 0

    async def step(self) -> None:
        """Look at the next few handles and at the suspects, if it is time; remove what has been suspect for long."""
        now = self._now().boot
        if now - self._last < PAUSE:
            return
        self._last = now
        _revision, names = await self._store.list_keys(KeyRange(self._cursor, keys.HANDLES + _END, WINDOW))
        self._cursor = names[-1] + "\0" if len(names) == WINDOW else keys.HANDLES
        ours = self._held()
        asked = sorted({name for name in names if name not in ours} | self._suspects.keys())
        if not asked:
            return
        records = (await self._store.read(asked)).records
        leaked = await self._leaked(records)
        before, self._suspects = self._suspects, {}
        over: list[Record] = []
        for record in leaked:
            known = before.get(record.key)
            since = known.since if known is not None and known.revision == record.revision else now
            if now - since >= GRACE and len(over) < REMOVALS:
                over.append(record)
            elif len(self._suspects) < SUSPECTS:
                self._suspects[record.key] = _Suspect(record.revision, since)
        for record in over:
            await self._remove(record)

    def _held(self) -> set[str]:
        """The keys of the handles that this node's blocks know, or are about to."""
        handles = {self._ledger.reserve_handle}
        for block in self._ledger.blocks.values():
            handles.update(held.handle for held in block.desired.values())
            handles.update(block.releasing.values(), block.stranded.values(), block.adopted, block.tunnels)
        return {keys.handle_key(handle) for handle in handles}

    async def _leaked(self, records: Sequence[Record]) -> list[Record]:
        """Those of the handles that name a block of this node, and that none of their blocks knows."""
        named = {record.key: handle_blocks(record.value) for record in records}
        own = {block.net for block in self._ledger.blocks.values() if block.owned}
        candidates = [record for record in records if own.intersection(named[record.key])]
        if not candidates:
            return []
        cidrs = {cidr for record in candidates for cidr in named[record.key]}
        found = await self._store.read(sorted(map(keys.block_key, cidrs)))
        images: dict[str, BlockRecord | None] = {}
        for block in found.records:
            try:
                images[block.key] = BlockRecord(block.value)
            except RecordError:
                images[block.key] = None  # nobody can say what it knows
        ours = self._held()  # what came meanwhile
        return [
            record
            for record in candidates
            if record.key not in ours
            and not any(_knows(images, keys.block_key(cidr), _handle(record.key)) for cidr in named[record.key])
        ]

    async def _remove(self, record: Record) -> None:
        outcome = await self._send([Change(record.key, None, record.revision)])
        if outcome.chosen is not None:
            self.removed += 1
            self._report("removed a handle that no block knows", {"handle": _handle(record.key)})


def _handle(key: str) -> str:
    """The handle id that a key names, as allocations are compared by it: without the trailer that some carry."""
    return key.removeprefix(keys.HANDLES).partition("\r")[0]


def _knows(images: dict[str, BlockRecord | None], key: str, handle: str) -> bool:
    if key not in images:
        return False
    image = images[key]
    return image is None or image.count(handle) > 0
