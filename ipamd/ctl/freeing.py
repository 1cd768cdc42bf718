"""Freeing what nobody needs: addresses, and the leftovers that a consistency check reports.

Each change is a compare-and-swap on all that it rests on. A block and the handles of its addresses change in one
transaction; with a cooldown set, a freed address cools first. As with Calico, a block that is no node's goes with the
last of its addresses.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import time_ns

from msgspec import Struct

from ipamd.core import keys
from ipamd.core.address import parse_address
from ipamd.core.pool import blocks_around
from ipamd.core.records import (
    BlockRecord,
    HandleRecord,
    RecordError,
    affinity_state,
    cooling_attribute,
    decode_config,
    handle_blocks,
)
from ipamd.ctl.errors import CommandError
from ipamd.ctl.report import Dated, Named
from ipamd.ctl.resources.release import without_node
from ipamd.ctl.target import Records
from ipamd.store.base import Change, Outcome, Record

ATTEMPTS = 10
"""How often something is tried anew that others change meanwhile."""
_SIGNS = keys.NODES, keys.DAEMONS
"""Below which a node has a record while it is there."""
TOGETHER = 40
"""Addresses freed in one transaction: with a handle and a node each, below the 128 operations that etcd takes."""


class Allocated(Struct, frozen=True):
    """An address as it was seen: who had it, and the sequence number (0: the block did not say).

    ``gone``: the node without which nobody needs it; if that is back, it is not freed.
    """

    address: str
    handle: str
    sequence: int
    gone: str = ""


class Freed(Struct):
    """What became of it: ``refused`` with the reasons."""

    done: list[str] = []
    absent: list[str] = []
    refused: dict[str, str] = {}


# --- addresses ----------------------------------------------------------------------------------------------------


async def find(records: Records, addresses: Iterable[str]) -> dict[str, Record]:
    """The block of each address, of whatever size; an address that no block has is left out."""
    asked = {address: list(candidates(*parse_address(address))) for address in addresses}
    wanted = sorted({key for candidates in asked.values() for key in candidates})
    found = {record.key: record for record in (await records.read(wanted)).records}
    found = {key: record for key, record in found.items() if not _decode(record).deleted}
    return {address: found[key] for address, candidates in asked.items() for key in candidates if key in found}


def candidates(family: int, value: int) -> Iterator[str]:
    """The keys of the blocks, of each size that Calico takes, in which an address may be."""
    return map(keys.block_key, blocks_around(family, value))


def _decode(record: Record) -> BlockRecord:
    try:
        return BlockRecord(record.value)
    except RecordError as error:
        raise CommandError(
            f"cannot use the block {record.key}: {error}; another program wrote it: correct or delete it"
        ) from error


def seen(address: str, block: Record) -> tuple[Allocated, Mapping[str, str]] | None:
    """Who has an address by its block, and the attributes; None if nobody has it (it may be cooling)."""
    record = _decode(block)
    ordinal = parse_address(address)[1] - record.cidr.base
    owner = record.owner(ordinal)
    if owner is None or owner.released_at:
        return None
    return Allocated(address, owner.handle, record.sequences.get(str(ordinal), 0)), owner.secondary


async def free(records: Records, wanted: Sequence[Allocated]) -> Freed:
    """Free addresses that still are as they were seen. Raises CommandError, also midway."""
    freed = Freed([], [], {})
    blocks = await find(records, (each.address for each in wanted))
    of_block: dict[str, list[Allocated]] = {}
    for each in wanted:
        if each.address in blocks:
            of_block.setdefault(blocks[each.address].key, []).append(each)
        else:
            freed.absent.append(each.address)
    cooldown = await _cooldown(records) if of_block else 0
    for key, allocated in of_block.items():
        for start in range(0, len(allocated), TOGETHER):
            await _free(records, key, allocated[start : start + TOGETHER], cooldown, freed)
    return freed


async def _cooldown(records: Records) -> int:
    found = (await records.read([keys.CONFIG])).records
    try:
        return decode_config(found[0].value).cooldown if found else 0
    except RecordError as error:
        raise CommandError(f"cannot read the IPAM configuration: {error}; correct the record {keys.CONFIG}") from error


async def _free(records: Records, key: str, wanted: Sequence[Allocated], cooldown: int, freed: Freed) -> None:
    """Free addresses of one block, in one transaction."""
    handles = sorted({keys.handle_key(each.handle) for each in wanted if each.handle})
    nodes = sorted({prefix + each.gone for each in wanted if each.gone for prefix in _SIGNS})
    for _ in range(ATTEMPTS):
        found = {record.key: record for record in (await records.read([key, *handles, *nodes])).records}
        now = Freed([], [], {})
        changes = list(_changes(key, wanted, found, cooldown, now))
        if now.done:
            changes += [Change(node, None, 0) for node in nodes if node not in found]
            outcome = await records.commit(changes)
            if outcome.chosen is None:
                continue
        freed.done += now.done
        freed.absent += now.absent
        freed.refused.update(now.refused)
        return
    raise CommandError(f"cannot release addresses of {keys.cidr_of(key)}: others change it all the time; try again")


def _changes(
    key: str, wanted: Sequence[Allocated], found: Mapping[str, Record], cooldown: int, told: Freed
) -> Iterator[Change]:
    """The transaction that frees what still is as it was seen; ``told`` is filled with what becomes of each."""
    if key not in found:
        told.absent += [each.address for each in wanted]
        return
    block = _decode(found[key])
    touched: set[str] = set()
    for each in wanted:
        ordinal = parse_address(each.address)[1] - block.cidr.base
        owner = block.owner(ordinal)
        back = next((prefix for prefix in _SIGNS if each.gone and prefix + each.gone in found), "")
        if owner is None or owner.released_at:
            told.absent.append(each.address)
        elif (owner.handle, block.sequences.get(str(ordinal), 0)) != (each.handle, each.sequence):
            told.refused[each.address] = f"it was freed and assigned anew since; handle {owner.handle} has it now"
        elif back:
            told.refused[each.address] = f"node {each.gone} is back"
        else:
            told.done.append(each.address)
            touched.add(owner.handle)
            if cooldown:
                block.cool(ordinal, cooling_attribute(time_ns()))
            else:
                block.free(ordinal)
    if not told.done:
        return
    left = {handle: block.count(handle) for handle in touched}
    gone = block.affinity is None and block.empty
    yield Change(key, None if gone else block.encode(), found[key].revision)
    for handle, count in sorted(left.items()):
        name = keys.handle_key(handle)
        if handle and name in found:
            counts = HandleRecord(found[name].value)
            counts.set(str(block.cidr), count)
            yield Change(name, counts.encode(), found[name].revision)


# --- leftovers ----------------------------------------------------------------------------------------------------


async def delete_handle(records: Records, handle: Named) -> str:
    """Delete a handle under which no block has an address; returns why not, "" if it is gone."""
    found = (await records.read([key := keys.handle_key(handle.ID)])).records
    if not found:
        return ""
    if str(found[0].revision) != handle.Revision:
        return "it changed since"
    blocks = (await records.read([keys.block_key(cidr) for cidr in handle_blocks(found[0].value)])).records
    if any(_decode(block).count(handle.ID.partition("\r")[0]) for block in blocks):
        return "an address is under it now"
    return _why_not(await records.commit([Change(key, None, found[0].revision)]))


async def delete_affinity(records: Records, affinity: Dated) -> str:
    """Delete an affinity that its block does not confirm; returns why not, "" if it is gone."""
    key, block_key = affinity.key, keys.block_key(keys.cidr_of(affinity.key))
    found = {record.key: record for record in (await records.read([key, block_key])).records}
    if key not in found or not affinity_state(found[key].value):
        return ""
    block = _decode(found[block_key]) if block_key in found else None
    owner = ":".join(key.removeprefix(keys.IPAM).split("/")[:2])
    if found[key].revision != affinity.revision or (block is not None and block.affinity == owner):
        return "it changed since"
    absent = [Change(block_key, None, 0)] if block is None else []  # who makes it meanwhile needs the affinity
    return _why_not(await records.commit([Change(key, None, affinity.revision), *absent]))


async def take_block(records: Records, block: Dated) -> str:
    """Take a block from a node that has no affinity to it: deleted if it is empty; returns why not, else ""."""
    found = (await records.read([block.key])).records
    if not found:
        return ""
    owner = _decode(found[0]).affinity or ""
    if found[0].revision != block.revision or not owner:
        return "it changed since"
    change, _in_use = without_node(found[0])
    absent = [Change(keys.claim_key(owner, keys.cidr_of(block.key)), None, 0)]
    return _why_not(await records.commit([*([change] if change else []), *absent]))


def _why_not(outcome: Outcome) -> str:
    return "" if outcome.chosen is not None else "it changed at this moment"
