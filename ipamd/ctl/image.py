"""The records of IPAM as a consistency check needs them: understood, compact, changed record by record.

100,000 allocations fit into some 100 MB: of a block only what it says of its allocated addresses is kept, of a handle
its counts, of a node its name. Pure but for ``read``, which is the only function that waits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from sys import intern

from msgspec import Struct

from ipamd.core import keys
from ipamd.core.address import Cidr, format_address
from ipamd.core.pool import Pool, decode_pool
from ipamd.core.records import (
    BlockRecord,
    HandleRecord,
    RecordError,
    affinity_state,
    cluster_guid,
    datastore_locked,
    decode_config,
    reserved_cidrs,
)
from ipamd.ctl.resources.release import keys_below
from ipamd.ctl.target import Records
from ipamd.store.base import Record

AFFINITIES = {keys.IPAM + "host/": "host", keys.IPAM + "virtual/": "virtual"}
"""Where affinities are, and of what type their owner is."""

_SMALL = (keys.POOLS, keys.RESERVATIONS, *AFFINITIES)
_LARGE = {keys.blocks_prefix(4): "IPv4 blocks", keys.blocks_prefix(6): "IPv6 blocks", keys.HANDLES: "handles"}
_SINGLE = (keys.CONFIG, keys.CLUSTER_INFORMATION)


class Allocation(Struct, frozen=True):
    """An allocated address: by whom, and the sequence number of its block at that time (0: the block does not say).

    ``cooling``: it was released, and is kept from everybody for a while.
    """

    ordinal: int
    handle: str
    sequence: int
    node: str
    namespace: str
    pod: str
    type: str
    timestamp: str
    cooling: bool


class BlockImage(Struct, frozen=True):
    """A block: its owner as ``host:<node>`` ("" if it has none), and what is allocated in it."""

    cidr: Cidr
    affinity: str
    allocations: tuple[Allocation, ...]
    revision: int

    def address(self, allocation: Allocation) -> str:
        """The address of an allocation."""
        return format_address(self.cidr.family, self.cidr.base + allocation.ordinal)


class HandleImage(Struct, frozen=True):
    """A handle: how many addresses of each block (by CIDR) it counts."""

    counts: tuple[tuple[str, int], ...]
    revision: int


class Affinity(Struct, frozen=True):
    """A claim: of which block, by whom (``host:<node>``), in which state."""

    cidr: Cidr
    owner: str
    state: str
    revision: int


class Image:
    """Records by key, as last taken in; ``damaged`` are those that cannot be understood, with the reason."""

    def __init__(self) -> None:
        self.blocks: dict[str, BlockImage] = {}
        self.handles: dict[str, HandleImage] = {}
        self.affinities: dict[str, Affinity] = {}
        self.pools: dict[str, Pool] = {}
        self.damaged: dict[str, str] = {}
        self.registered: frozenset[str] = frozenset()
        """The nodes that have a Node record."""
        self.served: frozenset[str] = frozenset()
        """The nodes that a daemon says it serves."""
        self.guid = ""
        self.locked = False
        self.information_revision = 0
        """Of the record that has the cluster's name and lock."""

    @property
    def allocations(self) -> Iterator[tuple[BlockImage, Allocation]]:
        """Every allocated address, with its block."""
        return ((block, allocation) for block in self.blocks.values() for allocation in block.allocations)

    def take(self, asked: Iterable[str], records: Sequence[Record]) -> None:
        """Take records in; of the keys asked for, those without a record are absent now."""
        for key in asked:
            for known in (self.blocks, self.handles, self.affinities, self.pools, self.damaged):
                known.pop(key, None)
        for record in records:
            self.damaged.pop(record.key, None)
            try:
                self._understand(record)
            except ValueError as error:  # RecordError is one
                self.damaged[record.key] = str(error)

    def _understand(self, record: Record) -> None:
        key = record.key
        kind = keys.kind_of(key)
        if kind is keys.Kind.BLOCK:
            block = _block(record)
            if block is not None:
                self.blocks[key] = block
        elif kind is keys.Kind.HANDLE:
            counts = HandleRecord(record.value).blocks
            if counts:
                self.handles[key] = HandleImage(tuple((intern(c), n) for c, n in counts.items()), record.revision)
        elif kind is keys.Kind.POOL:
            self.pools[key] = decode_pool(record.value)
        elif kind is keys.Kind.RESERVATION:
            reserved_cidrs(record.value)
        elif kind is keys.Kind.CONFIG and key == keys.CONFIG:
            decode_config(record.value)
        elif kind is keys.Kind.CLUSTER_INFORMATION:
            self.guid, self.locked = cluster_guid(record.value), datastore_locked(record.value)
            self.information_revision = record.revision
        else:
            self._understand_affinity(record)

    def _understand_affinity(self, record: Record) -> None:
        prefix = next((each for each in AFFINITIES if record.key.startswith(each)), "")
        if not prefix or "/block/" not in record.key:
            return
        state = affinity_state(record.value)
        if state:
            owner = f"{AFFINITIES[prefix]}:{record.key.removeprefix(prefix).partition('/')[0]}"
            self.affinities[record.key] = Affinity(keys.cidr_of(record.key), owner, state, record.revision)


def _block(record: Record) -> BlockImage | None:
    """What is kept of a block; None if it is softly deleted."""
    block = BlockRecord(record.value)
    if keys.block_key(block.cidr) != record.key:
        raise RecordError(f"it says that it is block {block.cidr}")
    if block.deleted:
        return None
    found = []
    for ordinal, index in enumerate(block.allocations):
        if index is None:
            continue
        owner = block.owners[index]
        of = owner.secondary.get
        found.append(
            Allocation(
                ordinal,
                owner.handle,
                block.sequences.get(str(ordinal), 0),
                intern(owner.node),
                intern(of("namespace", "")),
                of("pod", ""),
                intern(of("type", "")),
                of("timestamp", ""),
                bool(owner.released_at),
            )
        )
    return BlockImage(block.cidr, intern(block.affinity or ""), tuple(found), record.revision)


async def read(records: Records, say: Callable[[str], None]) -> Image:
    """Everything; what is large in reads of its own, so that no more than one is in memory twice.

    ``say`` is told what is being read.
    """
    image = Image()
    say("pools and affinities")
    image.take(_SINGLE, (await records.read(_SINGLE, _SMALL)).records)
    for prefix, what in _LARGE.items():
        say(what)
        image.take((), (await records.read((), (prefix,))).records)
    await _names(image, records)
    return image


async def look_again(image: Image, records: Records, asked: Iterable[str]) -> None:
    """Take in how these records are now, and all that there are few of."""
    small = [*image.affinities, *image.pools, *(key for key in image.damaged if not key.startswith(tuple(_LARGE)))]
    image.take((*_SINGLE, *small), (await records.read(_SINGLE, _SMALL)).records)
    wanted = sorted(asked)
    if wanted:
        image.take(wanted, (await records.read(wanted)).records)
    await _names(image, records)


async def _names(image: Image, records: Records) -> None:
    image.registered = frozenset(map(keys.name_of, await keys_below(records, keys.NODES)))
    image.served = frozenset(map(keys.name_of, await keys_below(records, keys.DAEMONS)))
