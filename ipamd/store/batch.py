"""From what a node wants its blocks to hold to the next transaction: which of the wishes come first. Pure.

Several ADDs and DELs share a transaction.
"""

from collections.abc import Collection

from ipamd.core import keys, supply
from ipamd.core.block import Block, ordinals_of
from ipamd.core.clock import SECOND, Now
from ipamd.core.facts import Withdrawn
from ipamd.core.ledger import Ledger
from ipamd.store.base import Change
from ipamd.store.draft import Batch, Draft, Limits, handle_change
from ipamd.store.known import Known
from ipamd.store.recounts import short


def gather(ledger: Ledger, known: Known, limits: Limits, now: Now, low: Collection[str] = ()) -> Draft | None:
    """The next transaction that brings the store closer to what this node wants; None: there is nothing to do.

    ``low`` are handles that may count too little.
    """
    draft = Draft(ledger, known, limits, now)
    cooldown = ledger.settings.config.cooldown * SECOND
    for block in ledger.blocks.values():
        block.note_cooled(now, cooldown)
    for block in ledger.blocks.values():
        draft.release(block)
    for block in ledger.blocks.values():
        draft.assign(block)
    for handle, blocks in short(ledger, known, low).items():
        draft.recount(handle, blocks)
    if not ledger.settings.locked:
        for place in ledger.wanted:
            draft.reserve_wanted(place)
        draft.give_back(supply.orphaned(ledger))
        for pool in ledger.settings.pools.values():
            draft.give_back(supply.surplus(ledger, pool, now.boot))
        for pool in ledger.pools_in_use():
            draft.top_up(pool.name)
    return draft if draft.images else None


def retire(ledger: Ledger, known: Known, block: Block) -> Batch:
    """The transaction that gives an empty block back: block, affinity and the reserve's share of it."""
    affinity = keys.affinity_key(ledger.node, block.net)
    handle = known.handle(ledger.reserve_handle)
    handle.set(block.cidr, 0)
    changes = (
        Change(keys.block_key(block.net), None, block.revision),
        Change(affinity, None, known.revision(affinity)),
        handle_change(known, ledger.reserve_handle, handle),
    )
    reserved = tuple(ordinals_of(block.reserve_bits))
    return Batch(changes, (Withdrawn(block.cidr, reserved),) if reserved else ())
