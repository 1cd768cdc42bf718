"""Why: what an ADD would be answered now and what decided it, step by step, and nothing is changed by asking.

The steps are those of ``Ledger.add``, by its own functions: ``Ledger.refuse_late``, ``Selection.judge`` and
``Ledger.choose``, for requested addresses ``core.requested``, for host-local ranges ``RangeLedger.choose``. What is
told here in words are their reasons; the text of a refusal is the one that the pod would get.

Pure functions of the ledger. Of blocks that this node has no part in it knows nothing: who asks looks at the store and
says what it has (``Seen``).
"""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from ipamd.core import requested, supply
from ipamd.core.address import FAMILIES, Cidr, format_address, parse_cidr
from ipamd.core.block import Block
from ipamd.core.clock import Now
from ipamd.core.errors import RefusedError
from ipamd.core.facts import Place
from ipamd.core.ledger import Ledger
from ipamd.core.records import BlockRecord, RecordError
from ipamd.core.request import AddRequest, RangeRequest, Shortage
from ipamd.core.reserve import Reserve
from ipamd.core.selection import Judged
from ipamd.core.selector import Selector


class Seen(Struct, frozen=True):
    """What a look at the store told of the block that an address lies in: CIDR, record and revision.

    No ``value``: there is none. ``overlapped``: what is there has not the size of its pool's blocks. ``error``: why
    nothing could be learnt, else "".
    """

    cidr: str = ""
    value: bytes | None = None
    revision: int = 0
    overlapped: bool = False
    error: str = ""


UNSEEN = Seen(error="it was not asked")


class Refusal(Struct, frozen=True):
    """The code and the full text of an error, as the pod gets them."""

    code: int
    msg: str


class PoolStep(Struct, frozen=True):
    """One pool, and what admits or excludes it for a request.

    ``why`` reads on from the pool's name; ``remedy``: what would change it, "" if it is admitted. ``node_labels`` and
    ``namespace_labels`` are those that its selectors look at, with their values (None: absent). ``reserve`` is how many
    addresses can be handed out at once, ``next`` the first of them, and ``unreserved`` how many more its ``blocks`` of
    this node have. ``no_block``: why this node can claim no more block of it, ``no_address``: why it can have no more
    address, both "" as far as nothing is known to hinder. ``cidr`` is "" where there is no such pool.
    """

    pool: str
    cidr: str
    admitted: bool
    why: str
    remedy: str
    node_selector: str = ""
    node_labels: dict[str, str | None] = {}
    namespace_selector: str = ""
    namespace_labels: dict[str, str | None] = {}
    blocks: int = 0
    reserve: int = 0
    next: str = ""
    unreserved: int = 0
    waiting: int = 0
    no_block: str = ""
    no_address: str = ""


class Decision(Struct, frozen=True):
    """What an ADD would be answered for one IP version.

    ``outcome``: it would get ``address`` at once, wait for what ``why`` says, or be refused with ``refusal``. ``named``
    are the pools that ``named_by`` names, ``requested`` is the address that the request asks for, "" if none.
    """

    family: int
    outcome: Literal["address", "wait", "refusal"]
    pools: tuple[PoolStep, ...] = ()
    named: tuple[str, ...] = ()
    named_by: str = ""
    requested: str = ""
    address: str = ""
    pool: str = ""
    block: str = ""
    why: str = ""
    refusal: Refusal | None = None


def explain(
    ledger: Ledger, request: AddRequest, now: Now, excuse: str, seen: Mapping[str, Seen] | None = None
) -> list[Decision]:
    """What an ADD would be answered at ``now``, for each IP version by itself.

    ``excuse`` says why an address is not to be had at once; ``seen`` is what the store has at the blocks of requested
    addresses, by CIDR (``unseen``). A refusal that was found out a while ago is told, though an ADD would
    make the node look again.
    """
    families = tuple(request.addresses) or request.families
    asked = replace(request, started=0)  # before any refusal: what is known counts
    return [_decide(ledger, asked, family, now, excuse, seen or {}) for family in families]


def unseen(ledger: Ledger, family: int, value: int) -> Cidr | None:
    """The block that an address lies in, if a look at the store has to tell of it."""
    pool = requested.pool_of(ledger.settings, family, value)
    block = None if pool is None else requested.block_of(pool, value)
    return None if str(block) in ledger.blocks else block


def _decide(
    ledger: Ledger, request: AddRequest, family: int, now: Now, excuse: str, seen: Mapping[str, Seen]
) -> Decision:
    address = request.addresses.get(family)
    decision = Decision(
        family,
        "wait",
        named=request.named.get(family, ()),
        named_by=request.named_by.get(family, "") if request.named.get(family) else "",
        requested="" if address is None else format_address(family, address),
        pools=() if address is not None else tuple(steps(ledger, request, family, now)),
    )
    try:
        ledger.refuse_late(request)
        if address is not None:
            return _decide_requested(ledger, request, decision, now, seen)
        found = ledger.choose(request, family, now.boot)
    except RefusedError as error:
        return replace(decision, outcome="refusal", refusal=Refusal(error.code, error.msg))
    if isinstance(found, Shortage):
        return replace(decision, pool=found.pool, why=_wait(ledger, found.pool, excuse))
    return _assigned(ledger, decision, found)


def _assigned(ledger: Ledger, decision: Decision, place: Place) -> Decision:
    block = ledger.blocks[place.block]
    pool = ledger.pool_of(block)
    return replace(
        decision,
        outcome="address",
        address=block.address(place.ordinal),
        pool=pool.name if pool else "",
        block=place.block,
    )


def _wait(ledger: Ledger, name: str, excuse: str) -> str:
    if not name:
        return f"no pool is known yet; {excuse}"
    reserve = ledger.reserves.get(name)
    if reserve is not None and reserve.closed is not None:
        return (
            f"no address of pool {name} is in reserve, and no block of it can be claimed: {reserve.closed.why}; an "
            "address of another node's block is looked for"
        )
    return f"no address of pool {name} is in reserve; {excuse}"


def _decide_requested(
    ledger: Ledger, request: AddRequest, decision: Decision, now: Now, seen: Mapping[str, Seen]
) -> Decision:
    """As ``Ledger.add`` and the look at the store that follows it decide; raises RefusedError."""
    family = decision.family
    pool, place = requested.locate(ledger.settings, request, family)
    block, damage, overlapped = ledger.blocks.get(place.block), "", False
    if block is not None and block.ready(place.ordinal):
        return _assigned(ledger, decision, place)
    ledger.refuse_requested(request, family, block, place)
    decision = replace(decision, pool=pool.name, block=place.block)
    if block is None:
        look, net = seen.get(place.block, UNSEEN), parse_cidr(place.block)
        overlapped = look.overlapped or any(other.net.overlaps(net) for other in ledger.blocks.values())
        if look.error and not overlapped:
            return replace(decision, why=f"the store has to say who has it: {look.error}")
        block, damage = (None, "") if overlapped else as_seen(ledger, look, now)
    found = requested.judge(block, place, damage, strict=ledger.settings.config.strict_affinity)
    if overlapped:
        found = requested.overlapped(place.block)
    if found and block is not None and requested.lendable(block, place.ordinal):
        return replace(decision, why=f"another node is asked to give it back: {found[1]}")
    if found:
        raise requested.refused(request, family, *found)
    how = f"its block {place.block} is claimed" if block is None else f"it is reserved in its block {place.block}"
    return replace(decision, why=f"{how} first, which takes a transaction")


def as_seen(ledger: Ledger, seen: Seen, now: Now) -> tuple[Block | None, str]:
    """A block as the store has it (None: there is none), and what is wrong with its record, else ""."""
    if seen.value is None:
        return None, ""
    try:
        record = BlockRecord(seen.value)
    except RecordError as error:
        return None, str(error)
    if str(record.cidr) != seen.cidr:
        return None, f"the block at the key of {seen.cidr} says that it is {record.cidr}"
    if record.deleted:
        return None, ""
    block = Block(seen.cidr, ledger.node, ledger.reserve_handle)
    block.merge(record, seen.value, seen.revision)
    block.note_cooled(now, ledger.settings.config.cooldown * 1_000_000_000)
    return block, ""


# --- pools --------------------------------------------------------------------------------------------------------


def steps(ledger: Ledger, request: AddRequest, family: int, now: Now) -> list[PoolStep]:
    """What admits or excludes each pool of an IP version, in name order, and what this node has of it."""
    judged = ledger.settings.selection_for(request.use).judge(request, family)
    how = _NAMED if request.named.get(family) else _SELECTED
    return [_step(ledger, each, how, request.namespace_labels, now) for each in judged]


def steps_of_node(ledger: Ledger, now: Now) -> list[PoolStep]:
    """The same for this node's pods that name no pool, whatever their namespace; those of IPv4 first."""
    found = {
        judged.name: _step(ledger, judged, _SELECTED_NODE, None, now)
        for family in FAMILIES
        for judged in ledger.settings.selection.judge(None, family)
    }
    return list(found.values())


_NAMED = "serves: the request names it, so its selectors do not count"
_SELECTED = "serves: it is enabled and Automatic, and its selectors select this node and the pod's namespace"
_SELECTED_NODE = "serves: it is enabled and Automatic, and its nodeSelector selects this node"


def _step(ledger: Ledger, judged: Judged, how: str, namespace_labels: Mapping[str, str] | None, now: Now) -> PoolStep:
    """``how``: what is said of a pool that serves."""
    pool, exclusion = judged.pool, judged.exclusion
    why, remedy = (how, "") if exclusion is None else (exclusion.why, exclusion.remedy)
    verdict = PoolStep(judged.name, "", exclusion is None, why, remedy)
    if pool is None:
        return verdict
    blocks = ledger.blocks_of(pool.name)
    own = [block for block in blocks if block.owned]
    barred = supply.forbidden(ledger, pool)
    reserve = ledger.reserves.get(pool.name, Reserve(ledger.policy, now.boot))
    heads = (block.address(head) for block in blocks if (head := block.head()) is not None)
    return replace(
        verdict,
        cidr=str(pool.cidr),
        node_selector=pool.node_selector.text,
        node_labels=_compared(pool.node_selector, ledger.settings.node_labels),
        namespace_selector=pool.namespace_selector.text,
        namespace_labels=_compared(pool.namespace_selector, namespace_labels or {}),
        blocks=len(own),
        reserve=ledger.available(pool.name),
        next=next(heads, ""),
        unreserved=sum(_unreserved(ledger, block) for block in own),
        waiting=reserve.waiting,
        no_block=reserve.closed.why if reserve.closed else barred[0] if barred else "",
        no_address=reserve.refusal.why if reserve.refusal else "",
    )


def _unreserved(ledger: Ledger, block: Block) -> int:
    free = (block.unreserved_bits | block.cooled) & ~ledger.settings.barred_in(block.net)
    return free.bit_count()


def _compared(selector: Selector, labels: Mapping[str, str]) -> dict[str, str | None]:
    return {label: labels.get(label) for label in selector.labels}


# --- host-local ranges --------------------------------------------------------------------------------------------


def explain_ranges(ledger: Ledger, request: RangeRequest) -> list[Decision]:
    """What an ADD from host-local ranges would be answered, for each range set in their order, until one is refused."""
    found: list[Decision] = []
    try:
        ledger.refuse_ended(request)
        for family, value in ledger.ranges.choose(request):
            found.append(Decision(family, "address", address=format_address(family, value)))
    except RefusedError as error:
        family = request.sets[min(len(found), len(request.sets) - 1)][0].family
        found.append(Decision(family, "refusal", refusal=Refusal(error.code, error.msg)))
    return found
