"""Requested addresses: where one lies, whether it may be assigned at all, and who has it.

Calico's rules: an address that a request names must lie in an enabled pool that allows the use. Selectors,
``assignmentMode`` and IPReservations do not matter, nor do pools that the request names beside it, nor the limits on
claiming blocks. Its block is claimed if there is none; of another node's block it is borrowed, unless
``strict_affinity`` forbids it.
"""

from msgspec import Struct

from ipamd.core.address import BITS, Cidr, format_address
from ipamd.core.block import Block
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Assigned, Place
from ipamd.core.keys import RESERVE
from ipamd.core.pool import Pool
from ipamd.core.records import Owner
from ipamd.core.request import AddRequest
from ipamd.core.reserve import Refusal
from ipamd.core.settings import Settings


class Want(Struct):
    """A place that ``waiting`` ADDs asked for.

    What looks at the store told since then: ``absent``, that there is no such block; ``refusal``, that nobody here can
    have it. ``asked`` is when the node that has it in reserve was asked for it (CLOCK_BOOTTIME, ns), 0: not yet.
    """

    waiting: int = 0
    absent: bool = False
    asked: int = 0
    refusal: Refusal | None = None


def refused(request: AddRequest, family: int, code: Code, why: str) -> RefusedError:
    """The refusal of an ADD because of the address of this IP version that it asked for."""
    address = format_address(family, request.addresses[family])
    return RefusedError(code, f"cannot assign {address} to {request.subject}: {why}")


def locate(settings: Settings, request: AddRequest, family: int) -> tuple[Pool, Place]:
    """The pool and the place of the requested address of an IP version; raises RefusedError (105)."""
    value = request.addresses[family]
    pool = pool_of(settings, family, value)
    if pool is None:
        why = "it is in no IP pool; request an address of an enabled pool"
        if damaged := settings.selection.damaged:
            why = f"it is in no IP pool that can be read; {damaged}; correct the record, or request another address"
    elif (barred := settings.selection.bar(pool)) is not None:
        why = f"its pool {pool.name} ({pool.cidr}) {barred.why}; request an address of another pool"
    else:
        block = block_of(pool, value)
        return pool, Place(str(block), value - block.base)
    raise refused(request, family, Code.ADDRESS_NOT_ASSIGNABLE, why)


def pool_of(settings: Settings, family: int, value: int) -> Pool | None:
    """The pool that an address lies in."""
    return next((pool for pool in settings.pools.values() if pool.cidr.has(family, value)), None)


def block_of(pool: Pool, value: int) -> Cidr:
    """The block of a pool that an address lies in."""
    bits = BITS[pool.family] - pool.block_size
    return Cidr(pool.family, value >> bits << bits, pool.block_size)


def taken(holder: str) -> str:
    """Why an address cannot be had that somebody has."""
    return f"{holder} has it; request another address, or release this one first"


def tenant(assigned: Assigned) -> str:
    """Who holds an address of this node, in the words of an error."""
    if "pod" in assigned.labels:
        return f"{assigned.labels.get('namespace', '')}/{assigned.labels['pod']} on this node"
    return f"container {assigned.attachment.container} on this node"


def stranger(owner: Owner) -> str:
    """Who holds an address according to the store, in the words of an error."""
    where = f" on node {owner.node}" if owner.node else ""
    who = f"handle {owner.handle}" if owner.handle else "somebody without a handle"
    if "pod" in owner.secondary:
        who = f"{owner.secondary.get('namespace', '')}/{owner.secondary['pod']}"
    elif "type" in owner.secondary:
        who = f"{who} ({owner.secondary['type']})"
    return who + where


def lendable(block: Block, ordinal: int) -> bool:
    """Whether a place is in the reserve of another node, which gives it back when it is asked for it."""
    owner = None if block.record is None else block.record.owner(ordinal)
    return owner is not None and owner.handle.startswith(RESERVE) and owner.node != block.node


def judge(block: Block | None, place: Place, damage: str, *, strict: bool) -> tuple[Code, str] | None:
    """Why nobody of this node can have a place, as a look at the store told; None if nothing is in the way.

    ``block`` is None if there is none, or none that can be understood: then ``damage`` says what is wrong with it.
    """
    if damage:
        return Code.ADDRESS_NOT_ASSIGNABLE, (
            f"the record of its block {place.block} cannot be understood ({damage}); correct or delete it"
        )
    return None if block is None else verdict(block, place.ordinal, strict=strict)


def overlapped(block: str) -> tuple[Code, str]:
    """Why nobody can have an address of a block (its CIDR) that blocks of another size are in the place of."""
    return Code.ADDRESS_NOT_ASSIGNABLE, (
        f"its block {block} overlaps a block of another size, made before its pool had this block size; request an "
        "address that lies in no such block"
    )


def verdict(block: Block, ordinal: int, *, strict: bool) -> tuple[Code, str] | None:
    """Why nobody of this node can have a place as the store has it, or None if it is free, ours, or about to be free.

    ``strict``: the cluster has strict affinity.
    """
    owner = None if block.record is None else block.record.owner(ordinal)
    if owner is not None and (owner.handle == block.reserve_handle or block.releasing.get(ordinal) == owner.handle):
        return None
    if owner is not None and owner.released_at and not block.cooled >> ordinal & 1:
        why = f"it was released at {owner.released_at} and cools (ipCooldownSeconds); wait, or request another address"
        return Code.ADDRESS_TAKEN, why
    if owner is not None and owner.released_at:
        owner = None
    if owner is not None and not owner.handle.startswith(RESERVE):
        return Code.ADDRESS_TAKEN, taken(stranger(owner))
    if strict and not block.owned:
        affinity = None if block.record is None else block.record.affinity
        whose = f"belongs to {affinity.replace(':', ' ', 1)}" if affinity else "belongs to no node"
        return Code.ADDRESS_NOT_ASSIGNABLE, (
            f"its block {block.cidr} {whose}, and strict affinity forbids to borrow; request an address of this "
            "node's blocks, or of a block that does not exist yet"
        )
    if owner is not None:
        return Code.ADDRESS_TAKEN, taken(f"the reserve of node {owner.node}")
    return None
