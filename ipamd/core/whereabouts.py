"""Where an address is: its pool and block, who has it, and what keeps it from being assigned. Pure functions.

What the ledger says of its own blocks comes first; of others what a look at the store told (``explain.Seen``).
"""

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from ipamd.core import requested
from ipamd.core.address import format_address
from ipamd.core.block import Block
from ipamd.core.census import state_of
from ipamd.core.clock import Now
from ipamd.core.explain import UNSEEN, Decision, Seen, as_seen, explain
from ipamd.core.facts import Assigned, Attachment
from ipamd.core.keys import RESERVE, is_reserve_of
from ipamd.core.ledger import Ledger
from ipamd.core.pool import Pool
from ipamd.core.records import Owner, rfc3339
from ipamd.core.request import AddRequest

State = Literal[
    "unknown",
    "outside",
    "unclaimed",
    "free",
    "reserve",
    "pod",
    "tunnel",
    "releasing",
    "cooling",
    "quarantined",
    "other",
]
"""``unknown``: the store could not be asked; ``outside``: in no pool; ``unclaimed``: its block does not exist;
``reserve``: of this node or another; ``other``: held by what is no workload, tunnel or reserve."""


class Holder(Struct, frozen=True):
    """Who has an address: an attachment of this node, or what the store says. ``flushed``: the store says so too.

    ``attributes`` are those of the allocation in the store; ``since`` is RFC 3339, or as the attributes have it.
    """

    handle: str = ""
    node: str = ""
    network: str = ""
    container: str = ""
    interface: str = ""
    namespace: str = ""
    pod: str = ""
    since: str = ""
    flushed: bool = True
    attributes: dict[str, str] = {}


class Whereabouts(Struct, frozen=True):
    """An address. ``what`` says in a sentence what ``state`` and ``holder`` mean.

    ``affinity`` is the owner of its block (``host:<node>``, "" for none). ``reserved_by`` are the IPReservations that
    keep it back, ``hindrances`` all that keeps this node from assigning it to a pod that does not ask for it, none:
    nothing does. ``on_request`` is what a pod that asks for it would be answered. ``ranges`` are the networks with
    host-local ranges in which it is held: each is an address space of its own.
    """

    address: str
    pool: str
    block: str
    affinity: str
    state: State
    what: str
    holder: Holder | None
    reserved_by: tuple[str, ...]
    hindrances: tuple[str, ...]
    on_request: Decision
    ranges: dict[str, Attachment] = {}


def whereabouts(ledger: Ledger, family: int, value: int, now: Now, seen: Seen = UNSEEN) -> Whereabouts:
    """Where an address is; ``seen`` is what the store has at its block, unless the ledger knows it."""
    pool = requested.pool_of(ledger.settings, family, value)
    planned = "" if pool is None else str(requested.block_of(pool, value))
    block, damage = _block(ledger, family, value), ""
    if block is None and planned:
        block, damage = as_seen(ledger, seen, now)
        damage = damage or seen.error
    cidr = planned if block is None else block.cidr
    state, what, holder = _state(block, cidr, value, damage)
    reserved_by = tuple(_reservations(ledger, family, value))
    affinity = (block.record.affinity if block is not None and block.record else None) or ""
    asking = AddRequest(Attachment("-", "-", "-"), (family,), {}, now.boot, addresses={family: value})
    hindrances = [] if pool is None else list(_of_pool(ledger, pool))
    hindrances += [f"IPReservation {name} keeps it back" for name in reserved_by]
    if state not in ("free", "unclaimed") and not (block and block.ready(value - block.net.base)):
        hindrances.append(what)
    elif block is not None and not block.owned:
        hindrances.append(_of_others(affinity, strict=ledger.settings.config.strict_affinity))
    return Whereabouts(
        format_address(family, value),
        pool.name if pool else "",
        cidr,
        affinity,
        state,
        what,
        holder,
        reserved_by,
        tuple(hindrances),
        explain(ledger, asking, now, "", {planned: seen})[0],
        {
            name: network.holders[family, value]
            for name, network in ledger.ranges.networks.items()
            if (family, value) in network.holders
        },
    )


def _block(ledger: Ledger, family: int, value: int) -> Block | None:
    """The block in memory that an address lies in; it may be of another size than its pool's blocks."""
    return next((block for block in ledger.blocks.values() if block.net.has(family, value)), None)


def _reservations(ledger: Ledger, family: int, value: int) -> Iterator[str]:
    for name, cidrs in sorted(ledger.settings.reservations.items()):
        if any(cidr.has(family, value) for cidr in cidrs):
            yield name


def _of_pool(ledger: Ledger, pool: Pool) -> Iterator[str]:
    exclusion = ledger.settings.selection.exclusion(pool)
    if exclusion is not None:
        yield f"its pool {pool.name} {exclusion.why}"


def _of_others(affinity: str, *, strict: bool) -> str:
    whose = f"belongs to {affinity.replace(':', ' ', 1)}" if affinity else "belongs to no node"
    how = "strictAffinity forbids to borrow from it" if strict else "it is borrowed only when no block is left to claim"
    return f"its block {whose}, and {how}"


def _state(block: Block | None, cidr: str, value: int, damage: str) -> tuple[State, str, Holder | None]:
    if not cidr:
        return "outside", "it is in no IP pool", None
    if damage:
        return "unknown", f"its block cannot be looked at: {damage}", None
    if block is None:
        return "unclaimed", "its block does not exist: no node has claimed it", None
    ordinal = value - block.net.base
    owner = None if block.record is None else block.record.owner(ordinal)
    assigned = block.desired.get(ordinal)
    if assigned is not None:
        return _assigned(block, ordinal, assigned, owner)
    holder = None if owner is None else _stored(owner)
    if ordinal in block.releasing:
        return "releasing", "it was released here, and nobody gets it before the store knows", holder
    if owner is None:
        return "free", "nobody has it", None
    state = state_of(owner, {})
    if state == "cooling":
        return state, f"it was released at {owner.released_at} and cools (ipCooldownSeconds)", holder
    if state == "reserve":
        return _reserved(block, ordinal, owner)
    why = ": set aside in a block for Windows" if state == "other" else ""
    return state, f"{requested.stranger(owner)} has it{why}", holder


def _assigned(block: Block, ordinal: int, assigned: Assigned, owner: Owner | None) -> tuple[State, str, Holder]:
    flushed = ordinal not in block.unflushed and ordinal not in block.contested
    who, labels = assigned.attachment, assigned.labels
    what = f"{requested.tenant(assigned)} has it" if who.network else f"it is this node's {who.interface}"
    if ordinal in block.contested and owner is not None:
        what += f", and according to the store {requested.stranger(owner)}: delete one of the two pods"
    elif not flushed:
        what += ", and the store does not know yet"
    holder = Holder(
        assigned.handle,
        block.node,
        who.network,
        who.container if who.network else "",
        who.interface,
        labels.get("namespace", ""),
        labels.get("pod", ""),
        rfc3339(assigned.at),
        flushed,
        {} if owner is None else owner.secondary,
    )
    return ("pod" if who.network else "tunnel"), what, holder


def _reserved(block: Block, ordinal: int, owner: Owner) -> tuple[State, str, Holder]:
    holder = _stored(owner)
    if owner.handle == block.reserve_handle:
        line = block.line()
        if ordinal in line:
            place = f"number {line.index(ordinal) + 1} of {len(line)} in its block's line"
            return "reserve", f"this node has it in reserve, {place}", holder
        if block.kept_bits >> ordinal & 1:
            return "reserve", "this node keeps it for who asked for it", holder
        return "reserve", "this node is about to give it back from its reserve", holder
    if is_reserve_of(owner.handle, block.node):
        return (
            "quarantined",
            "a lost state file of this node had it in reserve: kept from everybody for a while",
            holder,
        )
    return "reserve", f"node {owner.node} has it in reserve", holder


def _stored(owner: Owner) -> Holder:
    network, _dot, container = owner.handle.partition(".")
    said = owner.secondary
    is_pod = bool(container) and not owner.handle.startswith(RESERVE) and "type" not in said
    return Holder(
        owner.handle,
        owner.node,
        network if is_pod else "",
        container if is_pod else "",
        "",
        said.get("namespace", ""),
        said.get("pod", ""),
        owner.released_at or said.get("timestamp", ""),
        flushed=True,
        attributes=said,
    )
