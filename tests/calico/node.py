"""Calico's IPAM on one node, as a foreign writer: what its CNI plugin and its node agent do to the datastore.

A second implementation of the algorithm, from its description, that shares nothing with the code under test. An address
is taken from the node's own blocks first, then from one that it claims, then from other nodes' blocks; the handle is
counted in a write of its own before the block's, and taken back if the block was changed meanwhile.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from tests.calico import block as blocks
from tests.calico.claiming import Claiming, NoFreeBlockError
from tests.calico.datastore import IPAM, ConflictError, Entry
from tests.calico.pools import NODES, CalicoError, choose, of_address, read_pools, read_reserved

TUNNELS = {
    "ipip-tunnel-addr": "ipipTunnelAddress",
    "vxlan-tunnel-addr": "vxlanTunnelAddress",
    "vxlan-v6-tunnel-addr": "vxlanV6TunnelAddress",
    "wireguard-tunnel-addr": "wireguardTunnelAddress",
    "wireguard-v6-tunnel-addr": "wireguardV6TunnelAddress",
}
"""What a node's tunnel handles begin with, and the type of the address."""


class Calico(Claiming):
    """One node's plugin and agent. Every await is one call of the store."""

    async def add(
        self, handle: str, pod: Mapping[str, str], families: Sequence[int] = (4,), named: Sequence[str] = ()
    ) -> list[str]:
        """The plugin's ADD: one address a family under one handle; half a success is given back.

        ``pod``: the attributes ``namespace`` and ``pod``. Raises CalicoError.
        """
        attributes = {**pod, "node": self.node, "timestamp": self._timestamp()}
        try:
            return [await self._auto_assign(handle, attributes, family, named, "Workload") for family in families]
        except CalicoError:
            await self.release_by_handle(handle)
            raise

    async def add_address(self, handle: str, pod: Mapping[str, str], address: str) -> str:
        """The plugin's ADD with ``IP=``; raises CalicoError."""
        attributes = {**pod, "node": self.node, "timestamp": self._timestamp()}
        await self._assign_address(handle, attributes, address, "Workload")
        return address

    async def delete(self, handle: str, old_handle: str) -> None:
        """The plugin's DEL: releases under the handle of today and that of old versions."""
        await self.release_by_handle(handle)
        await self.release_by_handle(old_handle)

    async def tunnel_address(self, kind: str, named: Sequence[str] = ()) -> str:
        """The node agent's tunnel address of a kind (``vxlan-tunnel-addr``): the one it has, else a new one."""
        handle = f"{kind}-{self.node}"
        found = await self.datastore.get(f"{IPAM}handle/{handle}")
        for cidr in found.value["block"] if found else ():
            entry = await self._block(cidr)
            for ordinal in blocks.held_by(entry.value, handle) if entry else ():
                assert entry is not None
                return blocks.address(entry.value, ordinal)
        attributes = {"node": self.node, "type": TUNNELS[kind]}
        return await self._auto_assign(handle, attributes, 6 if "-v6-" in kind else 4, named, "Tunnel")

    # --- assigning --------------------------------------------------------------------------------------------

    async def _auto_assign(
        self, handle: str, attributes: Mapping[str, str], family: int, named: Sequence[str], use: str
    ) -> str:
        config = await self._config()
        node = await self.datastore.get(NODES + self.node)
        labels = node.value["metadata"].get("labels", {}) if node else {}
        everything = await read_pools(self.datastore)
        pools = choose([pool for pool in everything if pool.family == family], named, use, labels)
        reserved = await read_reserved(self.datastore)
        owner = {"handle_id": handle, "secondary": dict(sorted(attributes.items()))}
        affine = await self._affine_blocks(family, everything, labels)
        usable = [cidr for cidr in affine if any(pool.has(cidr.partition("/")[0]) for pool in pools)]

        def taker(cidr: str, *, affine: bool) -> Callable[[], Awaitable[str | None]]:
            return lambda: self._take_one(cidr, owner, reserved, affine=affine)

        for cidr in usable:
            if await self._again(lambda cidr=cidr: self._confirmed(cidr)) is None:
                continue
            if address := await self._again(taker(cidr, affine=True)):
                return address
        owned = len(usable)
        try:
            while True:
                cidr = await self._again(lambda owned=owned: self._claim(config, pools, family, reserved, owned))
                if address := await self._again(taker(cidr, affine=True)):
                    return address
                owned += 1
        except NoFreeBlockError:
            pass
        prefix = f"failed to request IPv{family} addresses: Assigned 0 out of 1 requested IPv{family} addresses; "
        if config.strict:
            raise CalicoError(prefix + "No more free affine blocks and strict affinity enabled")
        for pool in pools:
            for cidr in self._walk(pool):
                if address := await self._again(taker(cidr, affine=False)):
                    return address
        raise CalicoError(prefix + f"No IPs available in pools: [{' '.join(pool.cidr for pool in pools)}]")

    async def _take_one(
        self, cidr: str, owner: dict[str, Any], reserved: Callable[[str], bool], *, affine: bool
    ) -> str | None:
        """Take the head of a block's free ordinals, the handle counted first; None: there is none to take."""
        entry = await self._block(cidr)
        if entry is None or (affine and entry.value["affinity"] != self._affinity):
            return None
        ordinals = blocks.free(entry.value, reserved)
        if not ordinals:
            return None
        await self._take(entry, ordinals[0], owner)
        return blocks.address(entry.value, ordinals[0])

    async def _take(self, entry: Entry, ordinal: int, owner: dict[str, Any]) -> None:
        """Count the handle, then write the block; on conflict the count is taken back. Raises ConflictError."""
        handle, cidr = owner["handle_id"], entry.value["cidr"]
        await self._again(lambda: self._count(handle, cidr, 1))
        blocks.give(entry.value, ordinal, owner)
        try:
            await self.datastore.update(entry, blocks.finished(entry.value))
        except ConflictError:
            await self._again(lambda: self._count(handle, cidr, -1))
            raise

    async def _assign_address(self, handle: str, attributes: Mapping[str, str], address: str, use: str) -> None:
        pool = of_address(await read_pools(self.datastore), address)
        if pool is None:
            raise CalicoError("The provided IP address is not in a configured pool\n")
        if use not in pool.uses:
            raise CalicoError(
                f'IP address {address} is in IP pool "{pool.name}", which is not allowed for use "{use}" '
                f"(allowedUses: [{' '.join(pool.uses)}])"
            )
        config = await self._config()
        owner = {"handle_id": handle, "secondary": dict(sorted(attributes.items()))}
        await self._again(lambda: self._take_wanted(pool.block_of(address), address, owner, strict=config.strict))

    async def _take_wanted(self, cidr: str, address: str, owner: dict[str, Any], *, strict: bool) -> None:
        entry = await self._block(cidr)
        if entry is None:
            await self._claim_block(cidr)
            raise ConflictError(cidr)  # there is a block now: read it
        if strict and entry.value["affinity"] != self._affinity:
            raise CalicoError(f"cannot assign {address}: its block is not affine to this host")
        ordinal = blocks.ordinal_of(entry.value, address)
        if blocks.attribute_of(entry.value, ordinal) is not None:
            raise CalicoError(f"resource already exists: {address} with error: Address already assigned in block")
        await self._take(entry, ordinal, owner)
