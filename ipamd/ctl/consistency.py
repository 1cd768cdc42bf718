"""Whether Calico's records agree with one another: rules over an ``Image``, each finding with its cure. Pure.

What programs are just writing looks inconsistent for a moment: Calico's plugin writes a handle before its block, and
its claim takes three writes. So a finding counts only if a second look finds the same (``examination``);
``keys`` are the records that the second look has to read for it.
"""

from collections.abc import Iterator

from msgspec import Struct

from ipamd.core import keys
from ipamd.core.address import Cidr, parse_cidr
from ipamd.core.records import WINDOWS_HANDLE
from ipamd.ctl.image import Allocation, BlockImage, Image

_RELEASE = "`ipamctl ipam release --from-report FILE` {} (`ipamctl ipam check --report FILE` makes the report)"
_WRITTEN = "another program wrote it: correct or delete it"


class Finding(Struct, frozen=True):
    """What is wrong: the rule, what it is about (``block 10.0.0.0/26``), a sentence, and the way out."""

    problem: str
    object: str
    what: str
    cure: str
    keys: frozenset[str] = frozenset()


def problems(image: Image) -> Iterator[Finding]:
    """All that is wrong with the records."""
    for key, why in image.damaged.items():
        yield Finding("damaged-record", f"record {key}", f"it cannot be understood: {why}", _WRITTEN, frozenset({key}))
    yield from _pools(image)
    yield from _blocks(image)
    yield from _affinities(image)
    yield from _handles(image)
    yield from _leaked(image)


def _pools(image: Image) -> Iterator[Finding]:
    """Selectors that cannot be read, and pools that overlap."""
    pools = sorted(image.pools.items(), key=lambda each: (each[1].cidr.family, each[1].cidr.base, each[1].cidr.prefix))
    for at, (key, pool) in enumerate(pools):
        if pool.unreadable:
            cure = f"`ipamctl patch ippool {pool.name}` with a selector that can be read"
            yield Finding("unreadable-selector", f"pool {pool.name}", pool.unreadable, cure, frozenset({key}))
        for other_key, other in pools[at + 1 :]:
            if not pool.cidr.overlaps(other.cidr):
                break
            what = f"its {pool.cidr} overlaps {other.cidr} of pool {other.name}: one address can be given out twice"
            cure = "disable one of them, recreate its pods, and delete it"
            yield Finding("overlapping-pools", f"pool {pool.name}", what, cure, frozenset({key, other_key}))


# --- blocks and affinities ----------------------------------------------------------------------------------------


def _blocks(image: Image) -> Iterator[Finding]:
    """Blocks that overlap, that belong to nobody's pool, or that are not their pool's size."""
    blocks = sorted(image.blocks.values(), key=lambda each: (each.cidr.family, each.cidr.base, each.cidr.prefix))
    around: BlockImage | None = None
    for block in blocks:
        if around is not None and around.cidr.overlaps(block.cidr):
            what = f"it overlaps block {around.cidr}: one address can be given out twice"
            cure = "recreate the pods that have addresses in one of the two; it can be deleted when it is empty"
            yield _of_block("overlapping-blocks", block, what, cure, around.cidr)
            continue
        around = block
        pool = next((pool for pool in image.pools.values() if pool.cidr.overlaps(block.cidr)), None)
        if pool is None and block.affinity:
            what = f"it is in no pool, and still {_owner(block.affinity)}'s"
            cure = "create the pool again and delete it with `ipamctl delete ippool`, which takes its blocks back"
            yield _of_block("block-without-pool", block, what, cure)
        elif pool is not None and not pool.cuts(block.cidr):
            what = f"pool {pool.name} ({pool.cidr}) is cut into blocks of /{pool.block_size}, and this is none of them"
            yield _of_block("foreign-block", block, what, "recreate its pods; without addresses it is not used again")


def _of_block(problem: str, block: BlockImage, what: str, cure: str, *others: Cidr) -> Finding:
    concerned = frozenset(map(keys.block_key, (block.cidr, *others)))
    return Finding(problem, f"block {block.cidr}", what, cure, concerned)


def _affinities(image: Image) -> Iterator[Finding]:
    """Claims that the block does not confirm, and owners of blocks without a claim."""
    claims = {(affinity.cidr, affinity.owner) for affinity in image.affinities.values()}
    for key, affinity in image.affinities.items():
        block = image.blocks.get(keys.block_key(affinity.cidr))
        concerned = frozenset({key, keys.block_key(affinity.cidr)})
        about = f"affinity of {_owner(affinity.owner)} to {affinity.cidr}"
        if keys.block_key(affinity.cidr) in image.damaged:
            continue
        if block is None or block.affinity != affinity.owner:
            there = (
                "there is no such block" if block is None else f"the block is {_owner(block.affinity) or 'nobody'}'s"
            )
            cure = f"a restart of its daemon repairs it, or {_RELEASE.format('deletes it')}"
            yield Finding("stale-affinity", about, f"it is {affinity.state}, and {there}", cure, concerned)
        elif affinity.state != "confirmed":
            what = f"it is {affinity.state}: a claim or its end was not completed"
            cure = f"restart ipamd or calico-node of {_owner(affinity.owner)}, which completes it"
            yield Finding("unfinished-claim", about, what, cure, concerned)
    for block in image.blocks.values():
        if block.affinity and (block.cidr, block.affinity) not in claims:
            what = f"it is {_owner(block.affinity)}'s, which has no affinity to it and does not use it"
            cure = _RELEASE.format(
                "takes it from the node: without addresses it is deleted, else it stays until they go"
            )
            found = _of_block("unclaimed-block", block, what, cure)
            yield Finding(
                found.problem,
                found.object,
                found.what,
                found.cure,
                found.keys | {keys.claim_key(block.affinity, block.cidr)},
            )


def _owner(affinity: str) -> str:
    """``host:a`` in words."""
    kind, _, name = affinity.partition(":")
    return f"node {name}" if kind == "host" else f"{kind} {name}".strip()


# --- handles ------------------------------------------------------------------------------------------------------


def _handles(image: Image) -> Iterator[Finding]:
    """Handles that count other addresses than the blocks have under them."""
    counted = _counted(image)
    for key, handle in image.handles.items():
        name = handle_id(key)
        held = {cidr: counted.pop((name, cidr), 0) for cidr, _count in handle.counts}
        if any(keys.block_key(cidr) in image.damaged for cidr in map(_cidr, held) if cidr is not None):
            continue
        concerned = frozenset({key, *(keys.block_key(cidr) for cidr in map(_cidr, held) if cidr is not None)})
        if not any(held.values()):
            what = f"no address is under it, and it counts some of {', '.join(held)}"
            cure = f"ipamd deletes it by itself within a day or two, or {_RELEASE.format('does')}"
            yield Finding("leaked-handle", f"handle {name}", what, cure, concerned)
            continue
        for cidr, count in handle.counts:
            if held[cidr] != count:
                what = f"it counts {count} addresses of block {cidr}, which has {held[cidr]} under it"
                cure = "nothing has to be done: what is left of it when its pod is gone is deleted as leaked"
                yield Finding("wrong-count", f"handle {name}", what, cure, concerned)
    for (name, cidr), count in counted.items():
        where = f"{count} addresses of block {cidr} are under it, and "
        what = where + (
            "its record does not count them" if keys.handle_key(name) in image.handles else "it has no record"
        )
        cure = "recreate the pod, and see with `ipamctl ipam show` that the address is free: its DEL may not find it"
        concerned = frozenset({keys.handle_key(name), *(keys.block_key(each) for each in (_cidr(cidr),) if each)})
        if not concerned & image.damaged.keys():
            yield Finding("missing-handle", f"handle {name}", what, cure, concerned)


def _counted(image: Image) -> dict[tuple[str, str], int]:
    """How many addresses the blocks have under each handle, by handle and CIDR."""
    counted: dict[tuple[str, str], int] = {}
    for block in image.blocks.values():
        cidr = str(block.cidr)
        for allocation in block.allocations:
            if allocation.handle and allocation.handle != WINDOWS_HANDLE:
                at = (allocation.handle, cidr)
                counted[at] = counted.get(at, 0) + 1
    return counted


def handle_id(key: str) -> str:
    """The id that a handle's key names, without the trailer that some carry."""
    return key.removeprefix(keys.HANDLES).partition("\r")[0]


def _cidr(text: str) -> Cidr | None:
    try:
        return parse_cidr(text)
    except ValueError:
        return None


# --- addresses ----------------------------------------------------------------------------------------------------


def leaked(image: Image) -> Iterator[tuple[BlockImage, Allocation]]:
    """What nodes have that are gone: not registered, not served by a daemon, and without a block.

    It says nothing that a node is not registered where a living one is not either, as ipamd's need not be.
    """
    claiming = {
        each.owner.removeprefix("host:") for each in image.affinities.values() if each.owner.startswith("host:")
    }
    if not image.registered or not image.served | claiming <= image.registered:
        return
    for block, allocation in image.allocations:
        if allocation.node and allocation.node not in image.registered and not allocation.cooling:
            yield block, allocation


def _leaked(image: Image) -> Iterator[Finding]:
    for block, allocation in leaked(image):
        what = f"{holder(allocation)} has it, and there is no node {allocation.node} any more"
        cure = _RELEASE.format("frees it")
        found = _of_block("leaked-address", block, what, cure)
        about = f"address {block.address(allocation)}"
        yield Finding(found.problem, about, what, cure, found.keys)


def holder(allocation: Allocation) -> str:
    """Who has an address, in words."""
    of = f" of node {allocation.node}" if allocation.node else ""
    if allocation.cooling:
        return "nobody, it is cooling,"
    if allocation.pod:
        return f"pod {allocation.namespace}/{allocation.pod}{of}"
    if allocation.node and keys.is_reserve_of(allocation.handle, allocation.node):
        return f"the reserve{of}"
    if allocation.type:
        return f"{allocation.type}{of}"
    return f"handle {allocation.handle}{of}" if allocation.handle else f"somebody without a handle{of}"
