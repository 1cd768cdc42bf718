"""Addresses with which containers live, as the runtime knows, and of which this node's ledger does not.

Their ADD was acknowledged, and the state file lost before the store was told. Each is taken back where the store has
it for this node: in the reserve, this instance's or a lost one's, under the container's own handle, or free in a
block of this node. An address of host-local ranges, which no store knows, is taken back unless another
attachment has it here. Where somebody else has it, that is told with both names. Nothing is ever given up here.
"""

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from ipamd.core import requested
from ipamd.core.address import Cidr, format_address
from ipamd.core.block import Block
from ipamd.core.clock import THIS_BOOT, Now
from ipamd.core.facts import Assigned, Attachment, Place, RangeAssigned
from ipamd.core.ledger import Ledger
from ipamd.core.ranges import Address, read_address
from ipamd.core.records import BlockRecord


class Living(Struct, frozen=True):
    """An attachment that the runtime knows, its addresses, and the labels of its allocation (pod, namespace).

    ``ranged``: by its network's configuration they are of host-local ranges.
    """

    attachment: Attachment
    addresses: tuple[Address, ...]
    labels: dict[str, str]
    ranged: bool = False

    @property
    def subject(self) -> str:
        """Who lives, in the words of a finding."""
        if "pod" in self.labels:
            return f"{self.labels.get('namespace', '')}/{self.labels['pod']} (container {self.attachment.container})"
        return f"container {self.attachment.container}"


class Regained(Struct, frozen=True):
    """The facts to make durable, and the blocks of pools that the ledger does not have and that are to be read."""

    facts: list[Assigned | RangeAssigned]
    unseen: set[Cidr]


def regain(ledger: Ledger, living: Iterable[Living], now: Now) -> Regained:
    """Take back what can be."""
    found = Regained([], set())
    for each in living:
        if each.attachment in ledger.tombstones or each.attachment in ledger.ranges.holdings:
            continue
        assigned = _of_ranges(ledger, each, now) if each.ranged else _of_pools(ledger, each, now, found.unseen)
        if assigned is not None:
            ledger.apply(assigned)
            found.facts.append(assigned)
    return found


def _of_pools(ledger: Ledger, each: Living, now: Now, unseen: set[Cidr]) -> Assigned | None:
    places: list[Place] = []
    for address in each.addresses if each.attachment not in ledger.holdings else ():
        block = _block(ledger, address)
        if block is None:
            unseen.update(_cut(ledger, address))
        elif _may_take(block, address[1] - block.net.base, each.attachment.handle):
            places.append(block.place(address[1] - block.net.base))
    if not places:
        return None
    return Assigned(each.attachment, each.attachment.handle, tuple(places), each.labels, now.unix, THIS_BOOT)


def _of_ranges(ledger: Ledger, each: Living, now: Now) -> RangeAssigned | None:
    """Of a network that is served here, or may be: a state file that has not seen the store may be a lost one's heir.

    Of others the reference plugin gives out the addresses, whose DEL would never come here.
    """
    if ledger.revision and each.attachment.network not in ledger.ranges.networks:
        return None
    texts = [format_address(*address) for address in each.addresses]
    free = {read_address(text): text for text in texts if _holder(ledger, each, text) is None}
    if not free:
        return None
    return RangeAssigned(each.attachment, tuple(free.values()), each.labels, now.unix, THIS_BOOT)


def _holder(ledger: Ledger, each: Living, text: str) -> Attachment | None:
    """Who has an address of ranges in the attachment's network."""
    network = ledger.ranges.networks.get(each.attachment.network)
    return None if network is None else network.holders.get(read_address(text))


def conflicts(ledger: Ledger, living: Iterable[Living], others: Mapping[Cidr, BlockRecord]) -> list[str]:
    """The addresses that somebody else has too, in words; ``others`` are blocks that the ledger has no part in."""
    return [finding for each in living for finding in _conflicts(ledger, each, others)]


def _may_take(block: Block, ordinal: int, handle: str) -> bool:
    if ordinal in block.desired or ordinal in block.releasing or block.record is None:
        return False  # somebody's; or a DEL was carried out, and the runtime has yet to hear of it
    owner = block.record.owner(ordinal)
    if owner is None:
        return block.owned
    ours = owner.handle in (handle, block.reserve_handle) or ordinal in block.stranded
    return not owner.released_at and ours


def _conflicts(ledger: Ledger, each: Living, others: Mapping[Cidr, BlockRecord]) -> Iterator[str]:
    if each.ranged or each.attachment in ledger.ranges.holdings:
        yield from _conflicts_in_ranges(ledger, each)
        return
    for address in each.addresses:
        block = _block(ledger, address)
        holder = None if block is None else block.desired.get(address[1] - block.net.base)
        if holder is not None:
            if holder.attachment != each.attachment:
                yield _finding(each, address, f"this node gave it to {requested.tenant(holder)}")
            continue
        record = block.record if block is not None else next(map(others.get, _cut(ledger, address)), None)
        owner = None if record is None else record.owner(address[1] - record.cidr.base)
        if owner is None or owner.released_at or owner.handle == each.attachment.handle:
            continue
        if block is not None and (owner.handle == block.reserve_handle or owner.handle in block.stranded.values()):
            continue
        yield _finding(each, address, f"the store gives it to {requested.stranger(owner)}")


def _conflicts_in_ranges(ledger: Ledger, each: Living) -> Iterator[str]:
    for address in each.addresses:
        holder = _holder(ledger, each, format_address(*address))
        if holder is not None and holder != each.attachment:
            other = Living(holder, (), ledger.ranges.holdings[holder].labels)
            yield _finding(each, address, f"this node gave it to {other.subject} in network {holder.network}")


def _finding(each: Living, address: Address, other: str) -> str:
    return (
        f"address {format_address(*address)} has two holders: the container runtime says {each.subject} on this node, "
        f"and {other}; delete one of the two pods"
    )


def _block(ledger: Ledger, address: Address) -> Block | None:
    family, value = address
    for block in ledger.blocks.values():
        if block.net.family == family and block.net.base <= value < block.net.base + block.net.size:
            return block
    return None


def _cut(ledger: Ledger, address: Address) -> Iterator[Cidr]:
    """The block of a pool that an address would be of, if it is a pool's."""
    family, value = address
    for pool in ledger.settings.pools.values():
        if pool.cidr.family == family and pool.cidr.base <= value < pool.cidr.base + pool.cidr.size:
            size = pool.cidr.size // pool.blocks
            yield pool.block((value - pool.cidr.base) // size)
