"""Requested addresses that are not in the reserve: who has them, and which block to claim for them.

What this node cannot have is said only after a look at the store. The writer asks here, and sends.
"""

from collections.abc import Iterable

from ipamd.core import keys
from ipamd.core import requested as rules
from ipamd.core.address import Cidr, parse_cidr
from ipamd.core.clock import SECOND, Now
from ipamd.core.explain import Seen
from ipamd.core.facts import Committed, Place
from ipamd.core.ledger import Ledger
from ipamd.core.pool import Pool, blocks_around
from ipamd.core.requested import Want
from ipamd.core.reserve import Refusal
from ipamd.store.base import Store
from ipamd.store.claim import neighbours, overlaps

PATIENCE = 1_500_000_000
"""How long an ADD waits for an address that another node has in reserve and was asked for (ns)."""


def unseen(ledger: Ledger, now: int) -> list[Place]:
    """The places asked for of which it is not known, or not surely, that this node can have them."""
    return [
        place for place, want in ledger.wanted.items() if want.refusal is None and _in_doubt(ledger, place, want, now)
    ]


def _in_doubt(ledger: Ledger, place: Place, want: Want, now: int) -> bool:
    block = ledger.blocks.get(place.block)
    if block is None:
        return not want.absent
    if keys.block_key(block.net) in ledger.damaged:
        return True
    if want.asked and now - want.asked < PATIENCE and rules.lendable(block, place.ordinal):
        return False  # the watch tells when the other has given it back
    return rules.verdict(block, place.ordinal, strict=ledger.settings.config.strict_affinity) is not None


async def look(store: Store, places: Iterable[Place]) -> list[Committed]:
    """What the store has at the blocks of these places."""
    block_keys = sorted({keys.block_key(parse_cidr(place.block)) for place in places})
    return (await store.read(block_keys)).facts(block_keys)


async def see(store: Store, block: Cidr, value: int) -> Seen:
    """What the store has where an address (as an integer) of a block lies, be it a block of another size.

    Raises StoreUnavailableError, StoreRefusedError.
    """
    cidrs = blocks_around(block.family, value)
    found = {record.key: record for record in (await store.read([keys.block_key(cidr) for cidr in cidrs])).records}
    for cidr in (block, *cidrs):
        record = found.get(keys.block_key(cidr))
        if record is not None:
            return Seen(str(cidr), record.value, record.revision, cidr != block)
    _revision, beside = await store.list_keys(neighbours(block))
    return Seen(str(block), overlapped=overlaps(block, beside))


def pause(ledger: Ledger, now: int) -> float | None:
    """In how many seconds the first of the asked nodes has had its time to answer; None: nobody is waited for."""
    due = [want.asked + PATIENCE for want in ledger.wanted.values() if want.asked and want.refusal is None]
    return max(min(due) - now, 0) / SECOND if due else None


def judge(ledger: Ledger, places: Iterable[Place], now: Now) -> list[Place]:
    """Note what the look at these places told: who cannot have one, and which blocks do not exist.

    Returns those that are in another node's reserve, which is to be asked for them.
    """
    to_ask: list[Place] = []
    for place in places:
        want, block = ledger.wanted.get(place), ledger.blocks.get(place.block)
        damage = ledger.damaged.get(keys.block_key(parse_cidr(place.block)))
        if want is None:
            continue
        want.absent = block is None
        if block is not None:
            block.note_cooled(now, ledger.settings.config.cooldown * SECOND)
        found = rules.judge(block, place, damage or "", strict=ledger.settings.config.strict_affinity)
        if found and block and not damage and not want.asked and rules.lendable(block, place.ordinal):
            want.asked = now.boot
            to_ask.append(place)
            continue
        if found:
            want.refusal = Refusal(*found, now.boot)
    return to_ask


def to_claim(ledger: Ledger) -> tuple[Pool, Cidr, tuple[int, ...]] | None:
    """A block that does not exist and of which addresses are asked for, its pool, and their ordinals."""
    for place, want in ledger.wanted.items():
        if want.absent and want.refusal is None and place.block not in ledger.blocks:
            cidr = parse_cidr(place.block)
            pool = next((pool for pool in ledger.settings.pools.values() if pool.cuts(cidr)), None)
            if pool is not None:
                return pool, cidr, tuple(each.ordinal for each in ledger.wanted if each.block == place.block)
    return None


def forget_look(ledger: Ledger, cidr: Cidr) -> None:
    """Somebody changed what a look at this block had told."""
    for place, want in ledger.wanted.items():
        if place.block == str(cidr):
            want.absent = False


def refuse_overlapped(ledger: Ledger, cidr: Cidr, now: int) -> None:
    """Refuse the addresses of a block that cannot be claimed because one of another size is in its place."""
    for place, want in ledger.wanted.items():
        if place.block == str(cidr):
            want.refusal = Refusal(*rules.overlapped(str(cidr)), now)
