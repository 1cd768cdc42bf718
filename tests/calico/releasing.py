"""Giving back, as all of Calico's programs do it: by handle, by address, by affinity.

Every record is read and written by itself, each write is a compare-and-swap, and whoever loses one reads again. A
handle is counted down in a write of its own, after the block's.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from msgspec import Struct

from ipamd.store.base import Store
from tests.calico import block as blocks
from tests.calico.block import SECOND
from tests.calico.datastore import CLUSTER_INFORMATION, CONFIG, IPAM, ConflictError, Datastore, Entry
from tests.calico.pools import NODES, CalicoError, of_address, read_pools, selects

RETRIES = 100
_Result = TypeVar("_Result")


class Config(Struct, frozen=True):
    """The cluster's IPAM configuration."""

    strict: bool = False
    auto_allocate: bool = True
    limit: int = 20
    cooldown: int = 0


class Releasing:
    """A program that gives back, for a node ("" if for none). ``now`` gives Unix nanoseconds."""

    def __init__(self, store: Store, node: str, now: Callable[[], int]) -> None:
        self.datastore = Datastore(store)
        self.node = node
        self._now = now

    async def release_by_handle(self, handle: str) -> None:
        """Give back all addresses of a handle; one that does not exist has none."""
        found = await self.datastore.get(f"{IPAM}handle/{handle}")
        for cidr in list(found.value["block"]) if found else ():
            await self._again(lambda cidr=cidr: self._release_handle_in(handle, cidr))

    async def release_address(self, address: str, *, handle: str | None = None, sequence: int | None = None) -> bool:
        """Give back one address, if its handle and sequence number are those named; returns whether it was allocated.

        Raises CalicoError if they are not: the address has a new owner.
        """
        pool = of_address(await read_pools(self.datastore), address)
        cidr = pool.block_of(address) if pool else await self._old_block_of(address)
        return await self._again(lambda: self._release_address_in(cidr, address, handle, sequence))

    async def _old_block_of(self, address: str) -> str:
        """The block of an address whose pool is gone; the address itself if there is none."""
        wanted = ipaddress.ip_address(address)
        for entry in await self.datastore.list(blocks_prefix(wanted.version)):
            if wanted in ipaddress.ip_network(entry.value["cidr"]):
                return str(entry.value["cidr"])
        return str(ipaddress.ip_network(address))

    async def release_affinity(self, cidr: str, *, must_be_empty: bool) -> None:
        """Give a block of this node up: an empty one is deleted, one in use stays without affinity."""
        await self._again(lambda: self._release_affinity(cidr, must_be_empty=must_be_empty))

    async def _release_handle_in(self, handle: str, cidr: str) -> None:
        entry = await self._block(cidr)
        ordinals = blocks.held_by(entry.value, handle) if entry else []
        if not ordinals:
            return
        assert entry is not None
        await self._give_back(entry, ordinals)
        await self._again(lambda: self._count(handle, cidr, -len(ordinals)))
        await self._stay_consistent(entry)

    async def _release_address_in(self, cidr: str, address: str, handle: str | None, sequence: int | None) -> bool:
        entry = await self._block(cidr)
        ordinal = blocks.ordinal_of(entry.value, address) if entry else 0
        owner = blocks.attribute_of(entry.value, ordinal) if entry else None
        if entry is None or owner is None or "releasedAt" in owner:
            return False
        if handle not in (None, owner.get("handle_id")):
            raise CalicoError(f"cannot release {address}: it belongs to {owner.get('handle_id')}")
        if sequence not in (None, entry.value.get("sequenceNumberForAllocation", {}).get(str(ordinal))):
            raise CalicoError(f"cannot release {address}: bad sequence number")
        await self._give_back(entry, [ordinal])
        if owner.get("handle_id"):
            await self._again(lambda: self._count(owner["handle_id"], cidr, -1))
        await self._stay_consistent(entry)
        return True

    async def _give_back(self, entry: Entry, ordinals: Sequence[int]) -> None:
        """Write the block without them, or delete it if it has no affinity and is empty; raises ConflictError."""
        config = await self._config()
        for ordinal in ordinals:
            blocks.take_back(entry.value, ordinal, config.cooldown, self._now())
        if entry.value["affinity"] is None and blocks.empty(entry.value):
            await self.datastore.delete(entry)
        else:
            await self.datastore.update(entry, blocks.finished(entry.value))

    async def _stay_consistent(self, entry: Entry) -> None:
        """Give up the affinity of a block whose pool no longer selects its node, if it is empty."""
        owner = (entry.value["affinity"] or "").removeprefix("host:")
        node = await self.datastore.get(NODES + owner) if owner else None
        pool = of_address(await read_pools(self.datastore), entry.value["cidr"].partition("/")[0]) if node else None
        if node and pool and not selects(pool.selector, node.value["metadata"].get("labels", {})):
            await Releasing(self.datastore.store, owner, self._now).release_affinity(
                entry.value["cidr"], must_be_empty=True
            )

    async def _release_affinity(self, cidr: str, *, must_be_empty: bool) -> None:
        affinity = await self.datastore.get(affinity_key(self.node, cidr))
        if affinity is None:
            return
        entry = await self._block(cidr)
        if entry is not None and entry.value["affinity"] == self._affinity:
            if must_be_empty and not blocks.empty(entry.value):
                return
            affinity.value["state"] = "pendingDeletion"
            affinity = await self.datastore.update(affinity)
            if blocks.empty(entry.value):
                await self.datastore.delete(entry)
            else:
                entry.value["affinity"] = None
                entry.value.pop("affinity_claim_time", None)
                await self.datastore.update(entry, blocks.finished(entry.value))
        await self.datastore.delete(affinity)

    # --- records ----------------------------------------------------------------------------------------------

    @property
    def _affinity(self) -> str:
        return f"host:{self.node}"

    def _timestamp(self) -> str:
        at = self._now()
        return (
            f"{datetime.fromtimestamp(at // SECOND, UTC):%Y-%m-%d %H:%M:%S}.{at % SECOND:09d}".rstrip("0").rstrip(".")
            + " +0000 UTC"
        )

    async def _block(self, cidr: str) -> Entry | None:
        """A block read for writing: what has cooled down in it is free."""
        entry = await self.datastore.get(block_key(cidr))
        if entry is not None and any("releasedAt" in attribute for attribute in entry.value["attributes"]):
            blocks.thaw(entry.value, (await self._config()).cooldown, self._now())
        return entry

    async def _config(self) -> Config:
        information = await self.datastore.get(CLUSTER_INFORMATION)
        if information and information.value["spec"].get("datastoreReady") is False:
            raise CalicoError("Calico is currently not ready to process requests")
        found = await self.datastore.get(CONFIG)
        if found is None:
            return Config()
        return Config(
            found.value.get("strict_affinity", False),
            found.value.get("auto_allocate_blocks", False),
            found.value.get("maxBlocksPerHost") or 20,
            found.value.get("ipCooldownSeconds", 0),
        )

    async def _count(self, handle: str, cidr: str, change: int) -> None:
        """Count a handle's addresses of a block up or down; raises ConflictError."""
        key = f"{IPAM}handle/{handle}"
        found = await self.datastore.get(key)
        counts: dict[str, int] = dict(found.value["block"]) if found else {}
        counts[cidr] = counts.get(cidr, 0) + change
        counts = {block: count for block, count in sorted(counts.items()) if count > 0}
        if found is None:
            if counts:
                await self.datastore.create(key, {"block": counts, "deleted": False})
            return
        found.value["block"] = counts
        await (self.datastore.update(found) if counts else self.datastore.delete(found))

    async def _again(self, attempt: Callable[[], Awaitable[_Result]]) -> _Result:
        """Repeat what reads and then writes until nobody comes between."""
        for _ in range(RETRIES):
            try:
                return await attempt()
            except ConflictError:
                continue
        raise CalicoError(f"Max retries hit - excessive concurrent IPAM requests on {self.node}")


def blocks_prefix(family: int) -> str:
    """Below which all blocks of an IP version are."""
    return f"{IPAM}assignment/ipv{family}/block/"


def block_key(cidr: str) -> str:
    """The key of a block."""
    return blocks_prefix(ipaddress.ip_network(cidr).version) + cidr.replace("/", "-")


def affinity_key(node: str, cidr: str) -> str:
    """The key of a node's affinity to a block."""
    return f"{IPAM}host/{node}/ipv{ipaddress.ip_network(cidr).version}/block/{cidr.replace('/', '-')}"
