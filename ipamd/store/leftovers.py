"""What nobody will clear away by himself, found by a slow walk over all handles of the cluster.

Two kinds. A *handle that no block knows*, as programs leave it that write block and handle apart: whoever allocates
writes the handle first (Calico's plugin too), so one that has not changed for the grace time belongs to nobody. And
*what a node that is gone had in reserve*: its Node record was deleted while other nodes have theirs, it has no
affinity, and its reserve has not changed for the grace time. Of pods' addresses nothing is touched.

Whatever is removed looked the same twice, the grace time apart, and goes by compare-and-swap on all that was read: it
is safe whoever else does the same. What cannot be understood is left alone. May import core and store.
"""

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from ipamd.core import keys
from ipamd.core.address import Cidr, parse_cidr
from ipamd.core.clock import SECOND, Now
from ipamd.core.ledger import Ledger
from ipamd.core.records import RESERVE_NOTE, BlockRecord, HandleRecord, RecordError
from ipamd.store.base import Change, KeyRange, Record, Store

WINDOW = 50
"""New handles a step: at one step a minute 100,000 pods are walked over in a day and a half."""

REMOVALS = 10
"""Suspects looked at again, and so removed at most, in a step."""

SUSPECTS = 10_000
"""Handles remembered as suspect (some 3 MB): others come up in a later round."""

BLOCKS = 20
"""Blocks of one reserve that are changed in one transaction."""

_END = "\U0010ffff"


class Leftover(Struct, frozen=True):
    """A handle that looks left over, as it was at ``revision``: no block's, or the reserve of ``node``.

    ``reserved``: by block the ordinals that the reserve has in it, each with its sequence number.
    """

    revision: int
    node: str = ""
    reserved: Mapping[Cidr, Mapping[int, int]] = {}


class _Suspect(Struct, frozen=True):
    leftover: Leftover
    since: int


class Walk:
    """``step`` by step over all handles, round and round. ``grace`` is in ns; ``handles`` and ``addresses`` count."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        grace: int,
        now: Callable[[], Now],
        report: Callable[[str, dict[str, str]], None],
    ) -> None:
        self._ledger, self._store, self._grace, self._now, self._report = ledger, store, grace, now, report
        self._cursor = keys.HANDLES
        self._suspects: dict[str, _Suspect] = {}
        self.handles = self.addresses = 0

    def forget(self) -> None:
        """Suspect nobody: what was seen before does not count any more."""
        self._suspects.clear()

    async def step(self) -> None:
        """Look at the next few handles, and again at those that have been suspect for long; remove what still is."""
        now = self._now().boot
        grace = max(self._grace, self._ledger.settings.config.cooldown * SECOND)
        due = [key for key, suspect in self._suspects.items() if now - suspect.since >= grace][:REMOVALS]
        _revision, names = await self._store.list_keys(KeyRange(self._cursor, keys.HANDLES + _END, WINDOW))
        self._cursor = names[-1] + "\0" if len(names) == WINDOW else keys.HANDLES
        asked = sorted({*due, *(name for name in names if name not in self._suspects)})
        if not asked:
            return
        handles = {record.key: record for record in (await self._store.read(asked)).records}
        blocks = await self._blocks(handles.values())
        found = await self._leftovers(handles.values(), blocks)
        before = {key: self._suspects.pop(key).leftover for key in due}
        for key, leftover in found.items():
            if before.get(key) == leftover:
                await self._remove(handles[key], leftover, blocks)
            elif len(self._suspects) < SUSPECTS:
                self._suspects[key] = _Suspect(leftover, now)

    # --- what looks left over ---------------------------------------------------------------------------------

    async def _blocks(self, handles: Iterable[Record]) -> dict[str, Record]:
        """The blocks that the handles name, by CIDR."""
        cidrs = {cidr for record in handles for cidr in _named(record) or ()}
        records = (await self._store.read(sorted(map(keys.block_key, cidrs)))).records if cidrs else ()
        return {str(keys.cidr_of(record.key)): record for record in records}

    async def _leftovers(self, handles: Iterable[Record], blocks: Mapping[str, Record]) -> dict[str, Leftover]:
        """Those of the handles that look left over, by key."""
        found: dict[str, Leftover] = {}
        for record in handles:
            cidrs = _named(record)
            images = None if cidrs is None else [_image(blocks[str(c)]) for c in cidrs if str(c) in blocks]
            if images is None or None in images:
                continue  # nobody can say what they know
            leftover = _judge(record, [image for image in images if image is not None])
            if leftover is not None:
                found[record.key] = leftover
        gone = await self._gone({leftover.node for leftover in found.values() if leftover.node})
        return {key: leftover for key, leftover in found.items() if not leftover.node or leftover.node in gone}

    async def _gone(self, nodes: set[str]) -> set[str]:
        """Those of the nodes that were deleted: neither registered, as others are, nor served, nor with an affinity."""
        if not nodes:
            return set()
        asked = [prefix + node for node in nodes for prefix in (keys.NODES, keys.DAEMONS)]
        found = {record.key for record in (await self._store.read(asked)).records}
        known = {key for key in found if key.startswith(keys.NODES)}
        absent = {node for node in nodes if not found & {keys.NODES + node, keys.DAEMONS + node}}
        if not absent or not (known or await self._any(keys.NODES)):
            return set()  # where nobody registers nodes, it says nothing that one is not
        return {node for node in absent if not await self._any(keys.affinities_prefix(node))}

    async def _any(self, prefix: str) -> bool:
        """Whether there is a key below a prefix."""
        _revision, names = await self._store.list_keys(KeyRange(prefix, prefix + _END, 1))
        return bool(names)

    # --- what becomes of it -----------------------------------------------------------------------------------

    async def _remove(self, handle: Record, leftover: Leftover, blocks: Mapping[str, Record]) -> None:
        if leftover.node:
            await self._release(handle, leftover, blocks)
        elif (await self._store.commit([Change(handle.key, None, handle.revision)])).chosen is not None:
            self.handles += 1
            self._report("removed a handle that no block knows", {"handle": _id(handle.key)})

    async def _release(self, handle: Record, leftover: Leftover, blocks: Mapping[str, Record]) -> None:
        """Free what a node that is gone had in reserve, if all of it is as it was read, and the node still is gone."""
        record, node, changes = HandleRecord(handle.value), leftover.node, []
        chosen = dict(list(leftover.reserved.items())[:BLOCKS])
        for cidr, ordinals in chosen.items():
            block = blocks[str(cidr)]
            image = BlockRecord(block.value)
            for ordinal in ordinals:
                image.free(ordinal)
            record.set(str(cidr), 0)
            # As with Calico, a block that is no node's goes with the last of its addresses.
            value = image.encode() if image.affinity is not None or not image.empty else None
            changes.append(Change(block.key, value, block.revision))
        changes.append(Change(handle.key, record.encode(), handle.revision))
        still_gone = [keys.NODES + node, keys.DAEMONS + node, *(keys.affinity_key(node, cidr) for cidr in chosen)]
        changes += [Change(key, None, 0) for key in still_gone]
        if (await self._store.commit(changes)).chosen is not None:
            count = sum(map(len, chosen.values()))
            self.addresses += count
            self._report(
                "released what a node that is gone had in reserve",
                {
                    "gone": node,
                    "handle": _id(handle.key),
                    "blocks": " ".join(map(str, chosen)),
                    "addresses": str(count),
                },
            )


def _id(key: str) -> str:
    """The handle id that a key names, as allocations are compared by it: without the trailer that some carry."""
    return key.removeprefix(keys.HANDLES).partition("\r")[0]


def _named(handle: Record) -> list[Cidr] | None:
    """The blocks that a handle names; None if it cannot be understood."""
    try:
        return [parse_cidr(cidr) for cidr in HandleRecord(handle.value).blocks]
    except ValueError:  # RecordError is one
        return None


def _image(block: Record) -> BlockRecord | None:
    """A block's image; None if it cannot be understood, or is marked as deleted: it may be of use to somebody."""
    try:
        image = BlockRecord(block.value)
    except RecordError:
        return None
    return None if image.deleted or keys.block_key(image.cidr) != block.key else image


def _judge(handle: Record, images: Iterable[BlockRecord]) -> Leftover | None:
    """What a handle looks like beside all its blocks: left over, a reserve (of a node that may live), or in use."""
    name, nodes = _id(handle.key), set()
    reserved: dict[Cidr, dict[int, int]] = {}
    for image in images:
        for ordinal in range(image.cidr.size):
            owner = image.owner(ordinal)
            if owner is None or owner.handle != name:
                continue
            if owner.secondary.get("note") != RESERVE_NOTE or not keys.is_reserve_of(name, owner.node):
                return None
            nodes.add(owner.node)
            reserved.setdefault(image.cidr, {})[ordinal] = image.sequences.get(str(ordinal), 0)
    if not reserved:
        return Leftover(handle.revision)
    return Leftover(handle.revision, nodes.pop(), reserved) if len(nodes) == 1 else None
