"""A transaction in the making: what it changes, decided piece by piece as long as there is room. Pure.

It is decided in one step of the ledger's, with edits of the blocks' images that take little time. To write it down, all
the JSON of its records, takes ten times as long: this is done in portions, between which requests are answered.

A block and the handles it names always change together, so that no crash point leaks a handle. The order of the changes
is such that any prefix of them is safe: handles that gain, blocks, handles that lose.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from msgspec import Raw, Struct

from ipamd.core import keys, supply
from ipamd.core.address import Cidr
from ipamd.core.block import Block, ordinals_of
from ipamd.core.clock import Now
from ipamd.core.facts import Assigned, Fact, Place, Withdrawn
from ipamd.core.ledger import Ledger
from ipamd.core.records import (
    RESERVE_NOTE,
    BlockRecord,
    HandleRecord,
    Owner,
    affinity_record,
    attribute,
    cooling_attribute,
    go_time,
    new_block,
)
from ipamd.store.base import Change
from ipamd.store.known import Known


class Limits(Struct, frozen=True):
    """How large a transaction may grow: operations (etcd's own limit is 128) and bytes (1.5 MiB)."""

    operations: int = 64
    size: int = 1 << 20


PORTION = 16
"""How many handles are written in a row: some 0.15 ms on a machine of 2026."""


class Batch(Struct, frozen=True):
    """One transaction that is written already, and the facts that must be durable before it is sent."""

    changes: tuple[Change, ...]
    before: tuple[Fact, ...] = ()
    full: bool = False
    """Whether there was more to do than fits."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """The keys of the blocks that are changed."""
        return tuple(change.key for change in self.changes if keys.is_block(change.key))

    def write(self) -> Iterator[None]:
        """Nothing is left to be written; see ``Draft.write``."""
        return iter(())


class _Stored(Struct, frozen=True):
    """A block as the draft found it."""

    net: Cidr
    record: BlockRecord | None
    revision: int

    def counts(self) -> Counter[str]:
        return Counter() if self.record is None else self.record.counts()


_Counts = Mapping[str, Counter[str]]
"""How many addresses each handle holds, by block."""


def reserve_attribute(ledger: Ledger, image: BlockRecord, now: int) -> Raw:
    """The attributes of a block's reserved ordinals: one entry for all of them, the one already there if any.

    The ``type`` is a tunnel's because of what Calico's own programs do with it: they leave it alone while the node
    exists, it keeps the block from being reclaimed as empty, and when the node is deleted it is collected.
    """
    for raw, owner in zip(image.attributes, image.owners, strict=True):
        if owner.handle == ledger.reserve_handle:
            return raw
    kind = "ipipTunnelAddress" if image.cidr.family == 4 else "vxlanV6TunnelAddress"
    secondary = {"node": ledger.node, "note": RESERVE_NOTE, "timestamp": go_time(now), "type": kind}
    return attribute(ledger.reserve_handle, secondary)


def handle_change(known: Known, handle: str, record: HandleRecord) -> Change:
    """The change that makes a handle's record this one."""
    key = keys.handle_key(handle)
    return Change(key, record.encode(), known.revision(key))


class Draft:
    """A transaction in the making: an edited image of each block it touches.

    When it is decided, in one step, ``before`` are the facts that must be durable before it is sent, and ``full`` says
    whether there was more to do than fits. From then on ``blocks`` are in doubt. ``changes`` are there when ``write``
    has come to its end.
    """

    def __init__(self, ledger: Ledger, known: Known, limits: Limits, now: Now) -> None:
        self.ledger, self.known, self.limits, self.now = ledger, known, limits, now
        self.images: dict[str, BlockRecord] = {}
        self.handles: set[str] = set()
        self.before: list[Fact] = []
        self.full = False
        self.changes: tuple[Change, ...] = ()
        self._stored: dict[str, _Stored] = {}
        self._size = 0
        self._affinities = 0
        self._parting: set[str] = set()

    # --- what goes in -----------------------------------------------------------------------------------------

    def release(self, block: Block) -> None:
        """Free what was given up in a block, as far as there is room; what is not there is not made for that."""
        if block.record is None and not block.value and not block.desired:
            return
        if block.ownerless and block.cooled and self._room(block, self.ledger.reserve_handle):
            self._image(block)
        for ordinal, handle in block.releasing.items():
            if self._room(block, handle):
                self._release(block, ordinal, handle)
                self._parting.add(handle)
        if block.withdrawn and self._room(block, self.ledger.reserve_handle):
            # Again, if it was told before: an IPReservation withdraws without a fact of its own.
            self.before.append(Withdrawn(block.cidr, tuple(ordinals_of(block.withdrawn))))
            for ordinal in ordinals_of(block.withdrawn):
                self._free(block, ordinal, self.ledger.reserve_handle)

    def assign(self, block: Block) -> None:
        """Give the block's ordinals to the attachments that hold them, as far as there is room.

        A handle that gives up an address in this transaction gets another in the next: there is no order of the two
        changes, with the one record of the handle, of which every prefix is safe.
        """
        for assigned in block.unflushed.values():
            if assigned.handle in self._parting:
                self.full = True
                continue
            if not self._room(block, assigned.handle):
                return
            for place in assigned.places:
                other = self.ledger.blocks[place.block]
                if place.ordinal in other.unflushed and (other is block or self._room(other, assigned.handle)):
                    self._assign(other, place.ordinal, assigned)

    def recount(self, handle: str, blocks: Iterable[Block]) -> None:
        """Have the handle's record count what these blocks give it."""
        for block in blocks:
            if self._room(block, handle):
                self._image(block)
                self.handles.add(handle)

    def reserve_wanted(self, place: Place) -> None:
        """Reserve an address that somebody asked for, if it is free; an IPReservation does not matter."""
        block = self.ledger.blocks.get(place.block)
        if block is None or block.record is None or (not block.owned and self.ledger.settings.config.strict_affinity):
            return
        image = self.images.get(block.cidr, block.record)
        owner = image.owner(place.ordinal)
        free = owner is None or (owner.released_at and block.cooled >> place.ordinal & 1)
        if free and place.ordinal not in block.desired and self._room(block, self.ledger.reserve_handle):
            image = self._image(block)
            image.take({place.ordinal}, reserve_attribute(self.ledger, image, self.now.unix))
            self.handles.add(self.ledger.reserve_handle)

    def give_back(self, gifts: Iterable[tuple[Block, list[int]]]) -> None:
        """Free these reserved ordinals."""
        if self.full:
            return
        for block, ordinals in gifts:
            if self._room(block, self.ledger.reserve_handle):
                self.before.append(Withdrawn(block.cidr, tuple(ordinals)))
                for ordinal in ordinals:
                    self._free(block, ordinal, self.ledger.reserve_handle)

    def top_up(self, pool: str) -> None:
        """Reserve what a pool's reserve lacks: from blocks in this transaction, from others only if it is urgent."""
        value = self.ledger.settings.pools[pool]
        missing = supply.shortage(self.ledger, value, self.now.boot)
        waiting = self.ledger.reserve(pool, self.now.boot).waiting > 0
        urgent = supply.urgent(self.ledger, value, self.now.boot)
        for block in self.ledger.blocks_of(pool):
            if missing <= 0:
                return
            if not block.owned or block.record is None or not (block.cidr in self.images or urgent):
                continue
            image = self.images.get(block.cidr, block.record)
            free = supply.reservable(self.ledger, block, image, waiting=waiting)
            # What is withdrawn stays out of the reserve until the store has freed it: else it would never end.
            ordinals = [ordinal for ordinal in free if not block.withdrawn >> ordinal & 1][:missing]
            if ordinals and self._room(block, self.ledger.reserve_handle):
                image = self._image(block)
                image.take(set(ordinals), reserve_attribute(self.ledger, image, self.now.unix))
                self.handles.add(self.ledger.reserve_handle)
                missing -= len(ordinals)

    # --- edits ------------------------------------------------------------------------------------------------

    def _room(self, block: Block, handle: str) -> bool:
        """Whether a change of this block and handle still fits, counting one operation for the reserve's handle."""
        if keys.block_key(block.net) in self.ledger.damaged:
            return False  # a block that cannot be read cannot be written, and must not keep the others waiting
        fresh_handles = {handle, self.ledger.reserve_handle} - self.handles
        operations = len(self.images) + len(self.handles) + len(fresh_handles) + self._affinities
        fresh = (2 if block.record is None else 1) if block.cidr not in self.images else 0
        size = self._size + (len(block.value) + 256 if fresh else 0) + 512
        if self.images and (operations + fresh > self.limits.operations or size > self.limits.size):
            self.full = True
            return False
        self._size = size
        return True

    def _image(self, block: Block) -> BlockRecord:
        """The image of a block to edit, in which whatever has cooled is free."""
        image = self.images.get(block.cidr)
        if image is None:
            image = block.record.copy() if block.record is not None else self._written_again(block)
            for ordinal in ordinals_of(block.cooled):
                image.free(ordinal)
            self.images[block.cidr] = image
            self._stored[block.cidr] = _Stored(block.net, block.record, block.revision if block.value else 0)
            self._affinities += block.record is None
        return image

    def _written_again(self, block: Block) -> BlockRecord:
        """A block that vanished beneath living pods; one that was marked as deleted has what others have in it."""
        owner = keys.host_affinity(self.ledger.node)
        if not block.value:
            return new_block(block.net, owner, self.now.unix)
        image = BlockRecord(block.value)
        if image.deleted:
            image.revive(owner)
        return image

    def _release(self, block: Block, ordinal: int, handle: str) -> None:
        """Free what a pod gave up; with a cooldown let it cool, also if the store never heard of the pod."""
        if not self.ledger.settings.config.cooldown:
            self._free(block, ordinal, handle)
            return
        image = self._image(block)
        owner = image.owner(ordinal)
        if owner is not None and owner.handle in (handle, self.ledger.reserve_handle):
            image.cool(ordinal, cooling_attribute(self.now.unix))
        self.handles |= {handle, self.ledger.reserve_handle}

    def _free(self, block: Block, ordinal: int, handle: str) -> None:
        image = self._image(block)
        owner = image.owner(ordinal)
        if owner is not None and owner.handle == handle:
            image.free(ordinal)
        self.handles |= {handle, self.ledger.reserve_handle}

    def _assign(self, block: Block, ordinal: int, assigned: Assigned) -> None:
        image = self._image(block)
        secondary = {**assigned.labels, "node": self.ledger.node}
        if "type" not in secondary:  # Calico gives a tunnel address no time
            secondary["timestamp"] = go_time(assigned.at)
        reserve = self.ledger.reserve_handle
        before = image.owner(ordinal)
        if block.record is None and before is not None and before.handle not in (assigned.handle, reserve):
            return  # somebody's meanwhile: contested, as soon as the block is back
        image.assign(ordinal, Owner(assigned.handle, secondary["node"], secondary))
        if before is not None and before.handle:
            self.handles.add(before.handle)
        self.handles |= {assigned.handle, reserve}

    # --- what comes out ---------------------------------------------------------------------------------------

    @property
    def blocks(self) -> tuple[str, ...]:
        """The keys of the blocks that are changed."""
        return tuple(keys.block_key(stored.net) for stored in self._stored.values())

    def write(self) -> Iterator[None]:
        """Make the changes, in portions: whoever has requests to answer does so before each, and after the last.

        The ledger may have changed meanwhile, and is not looked at: what was decided stands, as if it were sent.
        """
        yield
        gains: list[Change] = []
        losses: list[Change] = []
        held = {cidr: image.counts() for cidr, image in self.images.items()}
        were = {cidr: stored.counts() for cidr, stored in self._stored.items()}
        for number, handle in enumerate(sorted(self.handles)):
            if number % PORTION == PORTION - 1:
                yield
            self._write_handle(handle, held, were, gains, losses)
        blocks = []
        for cidr, image in self.images.items():
            yield
            stored = self._stored[cidr]
            if stored.record is None:
                gains.insert(0, self._affinity_change(stored.net))
            # As with Calico, a block that is no node's goes with the last of its addresses.
            value = image.encode() if image.affinity is not None or not image.empty else None
            blocks.append(Change(keys.block_key(stored.net), value, stored.revision))
        yield
        self.changes = (*gains, *blocks, *losses)

    def _write_handle(
        self, handle: str, held: _Counts, were: _Counts, gains: list[Change], losses: list[Change]
    ) -> None:
        record = self.known.handle(handle)
        before = sum(record.blocks.values())
        for cidr, counts in held.items():
            record.set(cidr, counts[handle])
        change = handle_change(self.known, handle, record)
        if change.value is None and not change.expected:
            losses.append(change)  # only a comparison: the key must still be absent
        # If the count differs from the store's image, but not from the handle as last seen, a stranger changed it.
        elif change.value != self.known.value(change.key) or any(
            counts[handle] != were[cidr][handle] for cidr, counts in held.items()
        ):
            (losses if sum(record.blocks.values()) < before else gains).append(change)

    def _affinity_change(self, net: Cidr) -> Change:
        key = keys.affinity_key(self.ledger.node, net)
        return Change(key, affinity_record("confirmed", self.known.value(key)), self.known.revision(key))
