"""Taking a pool's blocks from the nodes before it is deleted, as Calico does.

A block without addresses goes with its affinity; one that has some stays, without a node, until they are gone.
"""

from collections.abc import Sequence

from ipamd.core import keys
from ipamd.core.address import Cidr
from ipamd.core.records import BlockRecord, RecordError
from ipamd.ctl.errors import CommandError
from ipamd.ctl.target import Records
from ipamd.store.base import Change, KeyRange, Record

_PAGE = 10_000
"""Keys listed at once: below a megabyte."""
_ATTEMPTS = 10
"""How often a block is tried anew that others change meanwhile."""


async def keys_below(records: Records, prefix: str) -> list[str]:
    """All keys below a prefix."""
    found: list[str] = []
    window = KeyRange.below(prefix, _PAGE)
    while True:
        _revision, page = await records.list_keys(window)
        found += page
        if len(page) < _PAGE:
            return found
        window = KeyRange(page[-1] + "\0", window.end, _PAGE)


async def block_keys(records: Records, cidr: Cidr) -> list[str]:
    """The keys of all blocks that have an address of a CIDR."""
    return [key for key in await keys_below(records, keys.blocks_prefix(cidr.family)) if _overlaps(key, cidr)]


def _overlaps(key: str, cidr: Cidr) -> bool:
    try:
        return keys.cidr_of(key).overlaps(cidr)
    except ValueError:  # no block's key
        return False


async def release_pool(records: Records, pool: str, cidr: Cidr, *, dry_run: bool) -> str:
    """Release a pool's blocks; returns what is still in use, in words. Raises CommandError."""
    used: dict[Cidr, int] = {}
    affinities: dict[Cidr, list[str]] = {}
    for owners in ("host/", "virtual/"):
        for key in await keys_below(records, keys.IPAM + owners):
            if _overlaps(key, cidr):
                affinities.setdefault(keys.cidr_of(key), []).append(key)
    blocks = {keys.cidr_of(key) for key in await block_keys(records, cidr)}
    for block in sorted(blocks | set(affinities)):
        count = await _release(records, block, affinities.get(block, ()), dry_run=dry_run)
        if count:
            used[block] = count
    return _told(pool, used)


def _told(pool: str, used: dict[Cidr, int]) -> str:
    total = sum(used.values())
    if not total:
        return ""
    blocks = ", ".join(str(block) for block in used) if len(used) <= 3 else f"{len(used)} blocks"
    is_used = "1 address is" if total == 1 else f"{total} addresses are"
    return f"IPPool {pool}: {is_used} still in use, in {blocks}; pods keep them until they are deleted"


async def _release(records: Records, block: Cidr, affinities: Sequence[str], *, dry_run: bool) -> int:
    """Release a block and the affinities to it; returns how many addresses of it are in use."""
    key = keys.block_key(block)
    for _ in range(_ATTEMPTS):
        found = {record.key: record for record in (await records.read([key, *affinities])).records}
        changes = [Change(name, None, found[name].revision) for name in affinities if name in found]
        count = 0
        if key in found:
            change, count = without_node(found[key])
            changes += [change] if change is not None else []
        if dry_run or not changes or (await records.commit(changes)).chosen is not None:
            return count
    raise CommandError(f"cannot release block {block}: others change it all the time; try again")


def without_node(record: Record) -> tuple[Change | None, int]:
    """What takes a block from its node (None: nothing to do), and how many addresses of it are in use."""
    try:
        block = BlockRecord(record.value)
    except RecordError as error:
        raise CommandError(
            f"cannot release the block {record.key}: {error}; another program wrote it: correct or delete it"
        ) from error
    if block.deleted or block.empty:
        return Change(record.key, None, record.revision), 0
    count = sum(1 for index in block.allocations if index is not None and _in_use(block, index))
    if block.affinity is None:
        return None, count
    block.affinity = None
    return Change(record.key, block.encode(), record.revision), count


def _in_use(block: BlockRecord, index: int) -> bool:
    """Whether an allocation is somebody's: not a reserve of a node's daemon, nor cooling after its release."""
    owner = block.owners[index]
    return not owner.released_at and not owner.handle.startswith(keys.RESERVE)
