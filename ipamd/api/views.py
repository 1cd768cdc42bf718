"""What people debugging a node read: pools, blocks, allocations, reserve. Pure functions of the ledger.

Every view is a value that encodes as JSON; addresses and CIDRs are canonical texts, times are RFC 3339 in UTC.
"""

from msgspec import Struct

from ipamd.core.block import Block
from ipamd.core.ledger import Ledger
from ipamd.core.records import rfc3339
from ipamd.core.supply import shortage
from ipamd.core.tunnel import HANDLES
from ipamd.core.tunnel import attachment as attachment_of


class PoolView(Struct, frozen=True):
    """A pool, and this node's share of it.

    ``excluded``: why it does not serve this node's pods that do not name it, "" if it serves those of all namespaces
    or those that ``namespace_selector`` selects.
    """

    name: str
    cidr: str
    block_size: int
    disabled: bool
    node_selector: str
    namespace_selector: str
    excluded: str
    blocks: int
    addresses_in_use: int
    addresses_in_reserve: int


class BlockView(Struct, frozen=True):
    """A block by what its addresses are: in use, in reserve, free, lent to other nodes, or anything else.

    ``affinity`` is its owner (``host:<node>``, "" if it has none). In another's this node's addresses are borrowed, and
    only they are counted as in use and in reserve.
    """

    cidr: str
    pool: str
    affine: bool
    affinity: str
    revision: int
    size: int
    in_use: int
    in_reserve: int
    unreserved: int
    lent: int
    cooling: int
    unflushed: int
    contested: int


class AllocationView(Struct, frozen=True):
    """An address that a workload of this node holds.

    ``flushed``: the store says so too. ``borrowed_from``: whose block it is in (``host:<node>``, or ``nobody``), "" if
    it is this node's own.
    """

    address: str
    pool: str
    block: str
    ordinal: int
    handle: str
    network: str
    container: str
    interface: str
    namespace: str
    pod: str
    since: str
    flushed: bool
    borrowed_from: str


class RangeAllocationView(Struct, frozen=True):
    """An address that a workload of this node holds of host-local ranges: of no block, and never in the store."""

    address: str
    network: str
    container: str
    interface: str
    namespace: str
    pod: str
    since: str


class TunnelView(Struct, frozen=True):
    """A tunnel address of this node. ``flushed``: the store says so too."""

    type: str
    address: str
    handle: str
    flushed: bool


class ReserveView(Struct, frozen=True):
    """The reserve of a pool: the addresses that can be handed out at once, the next first.

    ``closed``: why no block of the pool can be claimed, ``refusal``: why no address of it can be had at all. ``tight``:
    small because there is no block left, ``pressed``: given back because a pod elsewhere needs it.
    """

    pool: str
    target: int
    available: int
    missing: int
    waiting: int
    closed: str
    refusal: str
    tight: bool
    pressed: bool
    addresses: tuple[str, ...]


def pools(ledger: Ledger) -> list[PoolView]:
    """All pools, in name order."""
    return [
        PoolView(
            pool.name,
            str(pool.cidr),
            pool.block_size,
            pool.disabled,
            pool.node_selector.text,
            pool.namespace_selector.text,
            exclusion.why if (exclusion := ledger.settings.selection.exclusion(pool)) else "",
            sum(block.owned for block in ledger.blocks_of(pool.name)),
            sum(block.held for block in ledger.blocks_of(pool.name)),
            ledger.available(pool.name),
        )
        for _name, pool in sorted(ledger.settings.pools.items())
    ]


def blocks(ledger: Ledger) -> list[BlockView]:
    """This node's blocks, and those it holds addresses of."""
    return [
        BlockView(
            block.cidr,
            _pool(ledger, block),
            block.owned,
            (block.record.affinity if block.record else None) or "",
            block.revision,
            block.net.size,
            block.held,
            block.available,
            block.unreserved_bits.bit_count(),
            block.lent,
            len(block.cooling),
            len(block.unflushed) + len(block.releasing),
            len(block.contested),
        )
        for block in ledger.blocks.values()
    ]


def shares(ledger: Ledger) -> dict[str, str]:
    """What this node has of each block, by CIDR: ``own``, or ``borrowed`` addresses of another's."""
    return {
        block.cidr: "own" if block.owned else "borrowed"
        for block in ledger.blocks.values()
        if block.owned or block.held or block.available
    }


def allocations(ledger: Ledger) -> list[AllocationView | RangeAllocationView]:
    """What this node's workloads hold: attachments it knows, then what it knows only from the store, then ranges."""
    views: list[AllocationView | RangeAllocationView] = []
    for attachment, assigned in ledger.holdings.items():
        if not attachment.network:
            continue
        for place in assigned.places:
            block = ledger.blocks[place.block]
            views.append(
                AllocationView(
                    block.address(place.ordinal),
                    _pool(ledger, block),
                    place.block,
                    place.ordinal,
                    assigned.handle,
                    attachment.network,
                    attachment.container,
                    attachment.interface,
                    assigned.labels.get("namespace", ""),
                    assigned.labels.get("pod", ""),
                    rfc3339(assigned.at),
                    _flushed(block, place.ordinal),
                    _lender(block),
                )
            )
    for block in ledger.blocks.values():
        for handle, ordinals in block.adopted.items():
            views.extend(_adopted(ledger, block, handle, ordinal) for ordinal in ordinals)
    for attachment, given in ledger.ranges.holdings.items():
        who = (given.labels.get("namespace", ""), given.labels.get("pod", ""), rfc3339(given.at))
        views += [
            RangeAllocationView(address, attachment.network, attachment.container, attachment.interface, *who)
            for address in given.addresses
        ]
    return views


def tunnels(ledger: Ledger) -> list[TunnelView]:
    """This node's tunnel addresses: those given here, then what others took under its handles."""
    views = [
        TunnelView(attachment.interface, block.address(place.ordinal), assigned.handle, _flushed(block, place.ordinal))
        for attachment, assigned in ledger.holdings.items()
        for place, block in ((place, ledger.blocks[place.block]) for place in assigned.places)
        if not attachment.network
    ]
    for block in ledger.blocks.values():
        for handle, ordinals in block.tunnels.items():
            kind = next(kind for kind in HANDLES if attachment_of(ledger.node, kind).handle == handle)
            views += [TunnelView(kind, block.address(ordinal), handle, flushed=True) for ordinal in ordinals]
    return views


def reserves(ledger: Ledger, now: int) -> list[ReserveView]:
    """The reserve of each pool that has one, at ``now`` (CLOCK_BOOTTIME, ns); of one not in use, nothing is wanted."""
    views = []
    in_use = {pool.name for pool in ledger.pools_in_use()}
    for name, reserve in sorted(ledger.reserves.items()):
        pool = ledger.settings.pools.get(name)
        if pool is None:
            continue
        addresses = [block.address(ordinal) for block in ledger.blocks_of(name) for ordinal in block.line()]
        views.append(
            ReserveView(
                name,
                reserve.target if name in in_use else 0,
                ledger.available(name),
                max(0, shortage(ledger, pool, now)) if name in in_use else 0,
                reserve.waiting,
                reserve.closed.why if reserve.closed else "",
                reserve.refusal.why if reserve.refusal else "",
                reserve.tight,
                reserve.pressed_until > now,
                tuple(addresses),
            )
        )
    return views


def _pool(ledger: Ledger, block: Block) -> str:
    pool = ledger.pool_of(block)
    return pool.name if pool else ""


def _lender(block: Block) -> str:
    if block.owned or block.record is None:
        return ""
    return block.record.affinity or "nobody"


def _flushed(block: Block, ordinal: int) -> bool:
    return ordinal not in block.unflushed and ordinal not in block.contested


def _adopted(ledger: Ledger, block: Block, handle: str, ordinal: int) -> AllocationView:
    owner = block.record.owner(ordinal) if block.record else None
    secondary = owner.secondary if owner else {}
    network, _dot, container = handle.partition(".")
    return AllocationView(
        block.address(ordinal),
        _pool(ledger, block),
        block.cidr,
        ordinal,
        handle,
        network,
        container,
        "",
        secondary.get("namespace", ""),
        secondary.get("pod", ""),
        secondary.get("timestamp", ""),
        flushed=True,
        borrowed_from=_lender(block),
    )
