"""Claiming a block, as Calico's programs do it: in three writes, and the repair of claims that a crash left half done.

Affinity pending, block, affinity confirmed. An affinity without a block: make the block; a block of another node: drop
the affinity; an own block with a pending affinity: confirm it. When no block is free, an empty one of another node that
was claimed over a minute ago is deleted with its affinity, and claimed anew.
"""

import ipaddress
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from ipamd.store.base import Store
from tests.calico import block as blocks
from tests.calico.block import SECOND
from tests.calico.datastore import IPAM, ConflictError, Entry
from tests.calico.pools import CalicoError, Pool, of_address, selects
from tests.calico.releasing import Config, Releasing, affinity_key, block_key, blocks_prefix

RECLAIM_AGE = 60 * SECOND


class NoFreeBlockError(Exception):
    """No block of the pools can be claimed."""


def start_index(node: str, number_of_blocks: int) -> int:
    """Where a node begins to look for a block: any hash of its name (Calico's is Go's random generator)."""
    return zlib.crc32(node.encode()) % number_of_blocks


class Claiming(Releasing):
    """A program that claims blocks for a node; ``start`` gives the block it tries first, of so many."""

    def __init__(
        self, store: Store, node: str, now: Callable[[], int], start: Callable[[str, int], int] = start_index
    ) -> None:
        super().__init__(store, node, now)
        self._start = start

    async def _claim(
        self, config: Config, pools: Sequence[Pool], family: int, reserved: Callable[[str], bool], owned: int
    ) -> str:
        """Claim the first free block, else an empty one of another node; returns its CIDR.

        Raises NoFreeBlockError, ConflictError if another node was quicker, CalicoError at a limit.
        """
        if not config.auto_allocate:
            raise NoFreeBlockError
        if owned >= config.limit:
            raise CalicoError("cannot allocate new block due to per host block limit")
        existing = {entry.value["cidr"]: entry for entry in await self.datastore.list(blocks_prefix(family))}
        at = self._now()
        reclaimable = None
        for pool in pools:
            for cidr in self._walk(pool):
                entry = existing.get(cidr)
                if entry is None and not all(map(reserved, map(str, ipaddress.ip_network(cidr)))):
                    await self._claim_block(cidr)
                    return cidr
                if entry is not None and reclaimable is None and self._reclaimable(entry, at):
                    reclaimable = entry
        if reclaimable is None:
            raise NoFreeBlockError
        await self._reclaim(reclaimable)
        raise ConflictError("there is a free block now")

    def _reclaimable(self, entry: Entry, at: int) -> bool:
        owner = entry.value["affinity"]
        if owner is None or not owner.startswith("host:") or owner == self._affinity:
            return False
        return blocks.empty(entry.value) and (blocks.age(entry.value, at) or 0) > RECLAIM_AGE

    async def _reclaim(self, entry: Entry) -> None:
        """Delete another node's empty block and its affinity."""
        owner = entry.value["affinity"].removeprefix("host:")
        affinity = await self.datastore.get(affinity_key(owner, entry.value["cidr"]))
        await self.datastore.delete(entry)
        if affinity is not None:
            await self.datastore.delete(affinity)

    async def _claim_block(self, cidr: str) -> None:
        """The three writes; raises ConflictError if the block is another node's."""
        affinity = await self._pending(cidr)
        try:
            await self.datastore.create(block_key(cidr), blocks.new(cidr, self._affinity, self._now()))
        except ConflictError:
            entry = await self._block(cidr)
            if entry is None or entry.value["affinity"] != self._affinity:
                await self.datastore.delete(affinity)
                raise
        affinity.value["state"] = "confirmed"
        await self.datastore.update(affinity)

    async def _pending(self, cidr: str) -> Entry:
        key = affinity_key(self.node, cidr)
        found = await self.datastore.get(key)
        if found is None:
            return await self.datastore.create(key, {"state": "pending", "deleted": False})
        found.value.update(state="pending", deleted=False)
        return await self.datastore.update(found)

    async def _confirmed(self, cidr: str) -> Entry | None:
        """An affine block, its claim completed if a crash left it half done; None: it is not this node's after all."""
        affinity = await self.datastore.get(affinity_key(self.node, cidr))
        if affinity is None:
            return None
        if affinity.value.get("state", "confirmed") == "pendingDeletion":
            return None
        entry = await self._block(cidr)
        if entry is None:
            await self._claim_block(cidr)
            return await self._block(cidr)
        if entry.value["affinity"] != self._affinity:
            await self.datastore.delete(affinity)
            return None
        if affinity.value.get("state", "confirmed") != "confirmed":
            affinity.value["state"] = "confirmed"
            await self.datastore.update(affinity)
        return entry

    async def _affine_blocks(self, family: int, pools: Sequence[Pool], labels: Mapping[str, str]) -> list[str]:
        """The blocks this node has an affinity to; empty ones of pools that do not select it are given up."""
        prefix = f"{IPAM}host/{self.node}/ipv{family}/block/"
        kept = []
        for affinity in await self.datastore.list(prefix):
            cidr = "/".join(affinity.key.removeprefix(prefix).rsplit("-", 1))
            pool = of_address(pools, cidr.partition("/")[0])
            if pool is None or selects(pool.selector, labels):
                kept.append(cidr)
            else:
                await self.release_affinity(cidr, must_be_empty=True)
        return kept

    def _walk(self, pool: Pool) -> Iterator[str]:
        start = self._start(self.node, pool.blocks)
        return (pool.block((start + step) % pool.blocks) for step in range(pool.blocks))
