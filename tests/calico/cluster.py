"""What Calico's programs off the nodes do to the datastore: ``calicoctl`` and kube-controllers' collector."""

import ipaddress
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ipamd.store.base import Store
from tests.calico import block as blocks
from tests.calico.block import SECOND
from tests.calico.datastore import CONFIG, IPAM, RESOURCES, ConflictError, Datastore
from tests.calico.node import TUNNELS
from tests.calico.pools import NODES, POOLS, CalicoError
from tests.calico.releasing import Releasing, blocks_prefix

LEAK_GRACE = 900 * SECOND
_FOLDERS = {"IPPool": "ippools", "IPReservation": "ipreservations", "Node": "nodes"}


class Calicoctl:
    """The commands that change what IPAM reads or holds."""

    def __init__(self, store: Store, now: Callable[[], int]) -> None:
        self._store = store
        self._datastore = Datastore(store)
        self._now = now

    async def apply(self, resource: Mapping[str, Any]) -> None:
        """``calicoctl apply``: create a resource, or change its spec."""
        name = resource["metadata"]["name"]
        key = f"{RESOURCES}{_FOLDERS[resource['kind']]}/{name}"
        value = {**resource, "spec": _filled(resource)}
        found = await self._datastore.get(key)
        if found is None:
            await self._datastore.create(key, value)
        else:
            found.value["spec"] = value["spec"]
            await self._datastore.update(found)

    async def patch_pool(self, name: str, spec: Mapping[str, Any]) -> None:
        """``calicoctl patch ippool``."""
        pool = await self._datastore.get(POOLS + name)
        if pool is None:
            raise CalicoError(f"resource does not exist: IPPool({name}) with error: <nil>")
        pool.value["spec"].update(spec)
        await self._datastore.update(pool)

    async def delete_pool(self, name: str) -> None:
        """``calicoctl delete ippool``: disable it, give the affinities of its blocks up, delete it."""
        await self.patch_pool(name, {"disabled": True})
        pool = await self._datastore.get(POOLS + name)
        assert pool is not None
        network = ipaddress.ip_network(pool.value["spec"]["cidr"])
        for entry in await self._datastore.list(blocks_prefix(network.version)):
            owner = (entry.value["affinity"] or "").removeprefix("host:")
            if owner and ipaddress.ip_address(entry.value["cidr"].partition("/")[0]) in network:
                await Releasing(self._store, owner, self._now).release_affinity(
                    entry.value["cidr"], must_be_empty=False
                )
        await self._datastore.delete(pool)

    async def configure(self, **changes: bool | int) -> None:
        """``calicoctl ipam configure``: the record's own names."""
        found = await self._datastore.get(CONFIG)
        if found is None:
            value = {"strict_affinity": False, "auto_allocate_blocks": True, "kubeVirtVMAddressPersistence": "Enabled"}
            await self._datastore.create(CONFIG, {**value, **changes})
        else:
            found.value.update(changes)
            await self._datastore.update(found)

    async def release(self, address: str) -> bool:
        """``calicoctl ipam release --ip``: whoever has it."""
        return await Releasing(self._store, "", self._now).release_address(address)

    async def delete_node(self, node: str) -> None:
        """``calicoctl delete node``: its tunnel addresses and affinities go; blocks in use stay without an owner."""
        programs = Releasing(self._store, node, self._now)
        for kind in TUNNELS:
            await programs.release_by_handle(f"{kind}-{node}")
        for family in (4, 6):
            prefix = f"{IPAM}host/{node}/ipv{family}/block/"
            for affinity in await self._datastore.list(prefix):
                cidr = "/".join(affinity.key.removeprefix(prefix).rsplit("-", 1))
                await programs.release_affinity(cidr, must_be_empty=False)
        found = await self._datastore.get(NODES + node)
        if found is not None:
            await self._datastore.delete(found)


class Collector:
    """kube-controllers' collector: releases what no living pod or node has, if it stays so for the grace time."""

    def __init__(self, store: Store, now: Callable[[], int], grace: int = LEAK_GRACE) -> None:
        self._store = store
        self._datastore = Datastore(store)
        self._now = now
        self._grace = grace
        self._suspects: dict[tuple[str, str, int], int] = {}

    async def sweep(self, pods: Mapping[tuple[str, str], Collection[str]], nodes: Collection[str]) -> list[str]:
        """Look once; returns the addresses released.

        ``pods``: the addresses of each living pod by (namespace, name). ``nodes``: the names of those that exist.
        """
        by_handle: dict[str, list[tuple[str, int, bool]]] = {}
        owners: dict[str, set[str]] = {}
        for family in (4, 6):
            for entry in await self._datastore.list(blocks_prefix(family)):
                block = entry.value
                owner = (block["affinity"] or "").removeprefix("host:")
                if owner and owner not in nodes:
                    owners.setdefault(owner, set()).add(block["cidr"])
                for ordinal in range(len(block["allocations"])):
                    attribute = blocks.attribute_of(block, ordinal) or {}
                    if handle := attribute.get("handle_id"):
                        address = blocks.address(block, ordinal)
                        sequence = block["sequenceNumberForAllocation"].get(str(ordinal), 0)
                        leaked = _leaked(attribute.get("secondary") or {}, address, pods, nodes)
                        by_handle.setdefault(handle, []).append((address, sequence, leaked))
        released = await self._release(by_handle)
        for owner, cidrs in owners.items():
            for cidr in cidrs:
                await Releasing(self._store, owner, self._now).release_affinity(cidr, must_be_empty=True)
        return released

    async def _release(self, by_handle: Mapping[str, list[tuple[str, int, bool]]]) -> list[str]:
        at = self._now()
        suspects = {
            (handle, address, sequence): self._suspects.get((handle, address, sequence), at)
            for handle, held in by_handle.items()
            if all(leaked for _, _, leaked in held)
            for address, sequence, _ in held
        }
        self._suspects = suspects
        released = []
        for (handle, address, sequence), since in list(suspects.items()):
            if at - since < self._grace:
                continue
            try:
                if await Releasing(self._store, "", self._now).release_address(
                    address, handle=handle, sequence=sequence
                ):
                    released.append(address)
            except (CalicoError, ConflictError):  # it has a new owner
                continue
        return released


def _leaked(
    secondary: Mapping[str, str],
    address: str,
    pods: Mapping[tuple[str, str], Collection[str]],
    nodes: Collection[str],
) -> bool:
    if "pod" in secondary and "namespace" in secondary:
        return address not in pods.get((secondary["namespace"], secondary["pod"]), ())
    if secondary.get("type") in TUNNELS.values():
        return secondary.get("node") not in nodes
    return False


def _filled(resource: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with the defaults that calicoctl writes into it."""
    if resource["kind"] != "IPPool":
        return dict(resource["spec"])
    defaults = {
        "vxlanMode": "Never",
        "ipipMode": "Never",
        "blockSize": 122 if ":" in resource["spec"]["cidr"] else 26,
        "nodeSelector": "all()",
        "allowedUses": ["Workload", "Tunnel"],
        "assignmentMode": "Automatic",
    }
    return {**defaults, **resource["spec"]}
