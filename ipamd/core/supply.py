"""What a node's blocks should give it: how many addresses to reserve, from which block, and what to give back.

Pure functions of the ledger. The writer of the store asks them before each transaction; they change nothing that it
holds (``idle_block`` notes since when a block is empty).
"""

from ipamd.core.block import Block, ordinals_of
from ipamd.core.facts import NOBODY, Place, Released
from ipamd.core.ledger import Ledger, Quarantine
from ipamd.core.pool import Pool
from ipamd.core.records import BlockRecord
from ipamd.core.reserve import TIGHT

SPARE = 2
"""Free ordinals of a block that stay unreserved while nobody waits: the node agent takes tunnel addresses from them."""

SPARE_FROM = 8
"""Blocks smaller than this have no spare ordinals: they would lose too large a share."""

IDLE_BLOCK = 60_000_000_000
"""How long a block has been empty before it is given back (ns): a claim is dearer than a minute of waiting."""

IDLE_LOAN = 60_000_000_000
"""How long after the last borrowing what is left of it in reserve is given back (ns)."""


def shortage(ledger: Ledger, pool: Pool, now: int) -> int:
    """How many more addresses of its own blocks of a pool this node wants in reserve; negative: it has too many."""
    owned = [block for block in ledger.blocks_of(pool.name) if block.owned]
    if ledger.settings.config.strict_affinity:  # nobody may borrow: to reserve all costs the others nothing
        return sum((block.unreserved_bits | block.cooled).bit_count() for block in owned)
    # What was borrowed does not count: it goes back when there are enough of its own.
    return ledger.reserve(pool.name, now).target - sum(block.available for block in owned)


def urgent(ledger: Ledger, pool: Pool, now: int) -> bool:
    """Whether the reserve is so low that it is worth a transaction of its own."""
    reserve = ledger.reserve(pool.name, now)
    return reserve.waiting > 0 or ledger.available(pool.name) * 2 <= reserve.rest


def reservable(ledger: Ledger, block: Block, record: BlockRecord, *, waiting: bool) -> list[int]:
    """The ordinals of a block's image that may be reserved, the one that has been free the longest first.

    What has cooled comes last: to edit the image (``batch``) frees it.
    """
    barred = ledger.settings.barred_in(block.net)
    cooled = [ordinal for ordinal in ordinals_of(block.cooled) if record.allocations[ordinal] is not None]
    free = [ordinal for ordinal in (*record.unallocated, *cooled) if not barred >> ordinal & 1]
    return free if waiting or block.net.size < SPARE_FROM else free[: max(0, len(free) - SPARE)]


def wants_block(ledger: Ledger, pool: Pool, now: int) -> bool:
    """Whether the node's blocks of a pool cannot satisfy it: time to claim another, before the last is used up."""
    if ledger.settings.locked:
        return False
    waiting = ledger.reserve(pool.name, now).waiting > 0
    missing = ledger.reserve(pool.name, now).target - ledger.available(pool.name)
    blocks = ledger.blocks_of(pool.name)
    if not any(block.owned for block in blocks):
        return True
    for block in blocks:
        if block.owned and block.record is not None:
            missing -= len(reservable(ledger, block, block.record, waiting=waiting))
    return missing > 0


def blocks_beside(ledger: Ledger, pool: Pool) -> int:
    """How many blocks of this node count against ``maxBlocksPerHost`` when it wants another of a pool.

    Calico counts those of the pools that the request may use: all that serve, or the pool alone that must be named.
    """
    serving = ledger.settings.selection.serving(pool.family)
    pools = {pool.name, *(each.name for each in serving if ledger.settings.selection.exclusion(pool) is None)}
    return sum(block.owned for name in pools for block in ledger.blocks_of(name))


def forbidden(ledger: Ledger, pool: Pool) -> tuple[str, str] | None:
    """Why the cluster's rules do not allow this node another block, and what to do; None if they do."""
    config = ledger.settings.config
    owned = blocks_beside(ledger, pool)
    if not config.auto_allocate_blocks:
        return "autoAllocateBlocks is false", "set it, or give the node a block"
    if owned >= config.block_limit:
        return f"this node has {owned} blocks, the limit (maxBlocksPerHost)", "raise it or use larger blocks"
    return None


def to_borrow(ledger: Ledger, pool: Pool, now: int) -> int:
    """How many addresses of other nodes' blocks this node needs: enough for who waits, and a little."""
    reserve = ledger.reserve(pool.name, now)
    if not reserve.waiting or ledger.settings.config.strict_affinity:
        return 0
    return max(0, min(reserve.rest, TIGHT) + reserve.waiting - ledger.available(pool.name))


def surplus(ledger: Ledger, pool: Pool, now: int) -> list[tuple[Block, list[int]]]:
    """Which reserved ordinals of a pool to give back: those of the last blocks, the last to be handed out.

    What was borrowed comes first, and all of it when it was not needed for a while.
    """
    excess = ledger.available(pool.name)
    if pool in ledger.pools_in_use():
        reserve = ledger.reserve(pool.name, now)
        strict = ledger.settings.config.strict_affinity
        borrowed = sum(block.available for block in ledger.blocks_of(pool.name) if not block.owned)
        idle = strict or (not reserve.waiting and now - reserve.borrowed_at >= IDLE_LOAN)
        excess = max(0 if strict else reserve.surplus(excess), borrowed if idle else 0)
    gifts = []
    for block in reversed(ledger.blocks_of(pool.name)):
        if excess <= 0:
            break
        if _goes_whole(ledger, block):
            continue
        ordinals = block.line()[-excess:]
        if ordinals:
            gifts.append((block, ordinals))
        excess -= len(ordinals)
    return gifts


def outlived(ledger: Ledger, grace: int, now: int) -> list[Released]:
    """What to give back of the reserve of another instance of this node, unchanged for ``grace`` (ns).

    It was promised by a state file that is lost (or of another host of this name): some of it may be a living pod's
    that the store never heard of. So it is kept from everybody for a while, not handed out, and not freed at once.
    """
    found: dict[str, set[Place]] = {}
    for block in ledger.blocks.values():
        for ordinal, handle in block.stranded.items():
            if ordinal not in block.releasing:
                found.setdefault(handle, set()).add(block.place(ordinal))
    before, ledger.quarantine = ledger.quarantine, {}
    over = []
    for handle, places in found.items():
        known = before.get(handle)
        if known is None or known.places != places:
            known = Quarantine(frozenset(places), now)
        ledger.quarantine[handle] = known
        if now - known.since >= grace and not ledger.rival:  # it is the other's, who lives
            over.append(Released(NOBODY, handle, tuple(sorted(places, key=_by_place)), 0))
    return over


def _by_place(place: Place) -> tuple[str, int]:
    return place.block, place.ordinal


def orphaned(ledger: Ledger) -> list[tuple[Block, list[int]]]:
    """The reserved ordinals to give back because their blocks are no pool's: it was deleted, or cut anew."""
    return [
        (block, block.line())
        for block in ledger.blocks.values()
        if block.available and ledger.pool_of(block) is None and not _goes_whole(ledger, block)
    ]


def _goes_whole(ledger: Ledger, block: Block) -> bool:
    """Whether a block is to be given back at once, and its share of the reserve with it: it will not be wanted."""
    pool = ledger.pool_of(block)
    return block.owned and block.empty and (pool is None or not ledger.serves(pool))


def idle_block(ledger: Ledger, now: int) -> Block | None:
    """A block of this node that nobody uses, has not for a while, and that the reserve can do without."""
    for block in ledger.blocks.values():
        block.idle_since = (block.idle_since or now) if block.empty else None
        if _goes_whole(ledger, block):
            return block
        if not block.owned or block.idle_since is None or now - block.idle_since < IDLE_BLOCK:
            continue
        pool = ledger.pool_of(block)
        if pool is None or pool not in ledger.pools_in_use():
            return block
        others = [other for other in ledger.blocks_of(pool.name) if other is not block and other.owned]
        if others and sum(other.available for other in others) >= ledger.reserve(pool.name, now).target:
            return block
    return None
