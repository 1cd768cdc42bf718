"""The invariants of a ledger, as a list of those that are broken. What a ledger is tested by at every step."""

from collections.abc import Iterator

from ipamd.core.block import Block, ordinals_of
from ipamd.core.facts import Attachment
from ipamd.core.ledger import Ledger
from ipamd.core.range_ledger import RangeLedger
from ipamd.core.ranges import read_address


def check(ledger: Ledger) -> list[str]:
    """Every broken invariant in a sentence of its own; empty: the ledger is sound."""
    findings = [*_holdings(ledger), *_ranges(ledger.ranges)]
    for block in ledger.blocks.values():
        problems = (*_block(ledger, block), *_derived(ledger, block))
        findings.extend(f"block {block.cidr}: {problem}" for problem in problems)
    findings.extend(
        f"block {cidr} is gone and looked through" for cidr in ledger.unclaimed_in.keys() - ledger.blocks.keys()
    )
    findings.extend(f"record {key} cannot be understood: {why}" for key, why in sorted(ledger.damaged.items()))
    return findings


def _holdings(ledger: Ledger) -> Iterator[str]:
    holders: dict[tuple[str, int], Attachment] = {}
    for attachment, assigned in ledger.holdings.items():
        if assigned.attachment != attachment:
            yield f"{attachment} is kept under the name of another attachment, {assigned.attachment}"
        for place in assigned.places:
            other = holders.setdefault((place.block, place.ordinal), attachment)
            if other != attachment:
                yield f"ordinal {place.ordinal} of {place.block} is held by two attachments: {other} and {attachment}"
            block = ledger.blocks.get(place.block)
            if block is None or block.desired.get(place.ordinal) is not assigned:
                yield f"{attachment} holds ordinal {place.ordinal} of {place.block}, of which the block knows nothing"


def _ranges(ranges: RangeLedger) -> Iterator[str]:
    held: dict[str, int] = {}
    for attachment, assigned in ranges.holdings.items():
        if assigned.attachment != attachment:
            yield f"{attachment} is kept under the name of another attachment, {assigned.attachment}"
        for text in assigned.addresses:
            holder = ranges.networks[attachment.network].holders.get(read_address(text))
            if holder != attachment:
                yield f"{attachment} holds {text} of network {attachment.network}, which {holder or 'nobody'} has there"
        held[attachment.network] = held.get(attachment.network, 0) + len(assigned.addresses)
    for name, network in ranges.networks.items():
        marked = sum(bits.bit_count() for bits in network.used.values())
        if not len(network.holders) == marked == held.get(name, 0):
            yield (
                f"network {name}: its attachments hold {held.get(name, 0)} addresses, {len(network.holders)} have a "
                f"holder, and {marked} are marked as used"
            )


def _block(ledger: Ledger, block: Block) -> Iterator[str]:
    owners = [None] * block.net.size if block.record is None else [block.record.owner(o) for o in range(block.net.size)]
    handles = [None if owner is None or owner.released_at else owner.handle for owner in owners]
    for ordinal, assigned in block.desired.items():
        if ledger.holdings.get(assigned.attachment) is not assigned:
            yield f"ordinal {ordinal} is kept for {assigned.attachment}, which does not hold it"
        if ordinal in block.releasing:
            yield f"ordinal {ordinal} is held and being released at once"
        flushed = handles[ordinal] == assigned.handle
        if flushed == (ordinal in block.unflushed) and ordinal not in block.contested:
            yield f"ordinal {ordinal} is {'in' if flushed else 'not in'} the store and marked as if it were not so"
        if ordinal in block.contested:
            holder = block.contested[ordinal]
            yield f"ordinal {ordinal} is held by {assigned.attachment} and, says the store, by handle {holder}"
    for ordinal in ordinals_of(block.reserve_bits | block.kept_bits):
        if handles[ordinal] != block.reserve_handle:
            yield f"ordinal {ordinal} is in reserve although the store does not give it to this node"
        if ordinal in block.desired or ordinal in block.releasing or block.withdrawn >> ordinal & 1:
            yield f"ordinal {ordinal} is in reserve although it is held, being released or withdrawn"
    if block.reserve_bits and sorted(block.line()) != ordinals_of(block.reserve_bits):
        yield "the order of its reserve does not name the ordinals that are in it"
    for ordinal, handle in block.releasing.items():
        if handles[ordinal] not in (None, handle, block.reserve_handle):  # free: its assignment was under way
            yield f"ordinal {ordinal} is being released for handle {handle}, which the store does not have there"


def _derived(ledger: Ledger, block: Block) -> Iterator[str]:
    """What is kept beside the image so that nobody has to look it through."""
    if block.unclaimed and block.cidr not in ledger.unclaimed_in:
        yield "somebody holds something in it that no attachment is known to, and nobody would find it"
    others = 0
    if block.record is not None:
        its = {index for index, owner in enumerate(block.record.owners) if owner.handle != block.reserve_handle}
        others = sum(1 << ordinal for ordinal, index in enumerate(block.record.allocations) if index in its)
    if block.others_bits != others:
        yield f"it counts ordinals {ordinals_of(block.others_bits)} as others', and the store {ordinals_of(others)}"
