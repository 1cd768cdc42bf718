"""Everybody else who writes to the store: nodes with Calico's own plugin, calicoctl, the collector, an administrator.

Calico's programs are the model of them (``tests.calico``): one record at a time, so that others come in between. Its
nodes are ``calico-a`` and ``calico-b``; the node agent of each of our own nodes takes tunnel addresses.
"""

import json
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from random import Random

import trio

from ipamd.core import keys
from tests.calico.cluster import Calicoctl, Collector
from tests.calico.datastore import ConflictError
from tests.calico.node import Calico
from tests.calico.pools import CalicoError
from tests.nodes import pool_record
from tests.simulation.judge import Judge
from tests.simulation.network import Client, Server

NODES = ("calico-a", "calico-b")
GRACE = 3_000_000_000


class _Any:
    """The addresses of a pod that is being made: whatever it has is not the collector's."""

    def __contains__(self, _address: object) -> bool:
        return True


class Strangers:
    """See the module. ``handles`` are those of what they made, by the name under which the judge knows it."""

    def __init__(self, server: Server, client: Client, judge: Judge, random: Random, now: Callable[[], int]) -> None:
        self._server, self._client, self._judge, self._random, self._now = server, client, judge, random, now
        self._collector = Collector(client, now, GRACE)
        self._calicoctl = Calicoctl(client, now)
        self._guests: list[str] = []
        self._staying: set[str] = set()
        self._made = 0
        self._agents: dict[str, trio.Lock] = {}
        self.handles: dict[str, str] = {}

    def _node(self, name: str) -> Calico:
        return Calico(self._client, name, self._now)

    async def arrive(self, families: tuple[int, ...]) -> None:
        """A pod of a Calico node starts: from the node's blocks, a new one, or borrowed."""
        self._made += 1
        name = f"guest{self._made}"
        self.handles[name] = f"k8s-pod-network.{name}"
        self._staying.add(name)
        try:
            node = self._node(self._random.choice(NODES))
            addresses = await node.add(self.handles[name], {"namespace": "x", "pod": name}, families)
        except (CalicoError, ConflictError):  # no address left, or the datastore locked: its runtime ends it
            await self._end(name)
        else:
            self._judge.born(name, addresses)
            self._guests.append(name)

    async def leave(self) -> None:
        """A pod of a Calico node ends."""
        if self._guests:
            name = self._guests.pop(self._random.randrange(len(self._guests)))
            self._judge.dead(name)
            await self._end(name)

    async def _end(self, name: str) -> None:
        self._staying.discard(name)
        await self._insist(lambda: self._node(NODES[0]).delete(self.handles[name], f"x.{name}"))

    async def tunnel(self, node: str) -> None:
        """The agent of a node, ours or not, takes its tunnel address."""
        kind = self._random.choice(("ipip-tunnel-addr", "vxlan-tunnel-addr"))
        name = f"{kind}-{node}"
        self.handles[name] = name
        async with self._agents.setdefault(node, trio.Lock()):
            with suppress(CalicoError, ConflictError):
                self._judge.born(name, [await self._node(node).tunnel_address(kind)])

    async def delete_node(self, node: str) -> None:
        """Somebody deletes a node that lives: its tunnels and affinities go, its pods' addresses stay."""
        async with self._agents.setdefault(node, trio.Lock()):
            for name in [name for name in self.handles if name.endswith(f"tunnel-addr-{node}")]:
                self._judge.dead(name)
            await self._insist(lambda: self._calicoctl.delete_node(node))

    async def sweep(self, ours: Iterable[str], nodes: Iterable[str]) -> None:
        """The collector looks for what no pod has; ``ours`` are our pods that are, or are about to be."""
        pods = {("default", pod): _Any() for pod in ours} | {("x", name): _Any() for name in self._staying}
        with suppress(CalicoError, ConflictError):
            await self._collector.sweep(pods, {*nodes, *NODES})  # type: ignore[arg-type] # all that is asked is "in"

    @staticmethod
    async def _insist(work: Callable[[], Awaitable[None]]) -> None:
        """Do it again until it succeeds: the datastore may be locked, or everybody else quicker."""
        for _ in range(60):
            with suppress(CalicoError, ConflictError):
                await work()
                return
            await trio.sleep(1)

    # --- the administrator ------------------------------------------------------------------------------------

    def disable(self, name: str, *, disabled: bool) -> None:
        """Take a pool out of use, or put it back."""
        found = self._server.records.get(keys.POOLS + name)
        if found is not None:
            value = json.loads(found.value)
            value["spec"]["disabled"] = disabled
            self._server.put(found.key, json.dumps(value).encode())

    def make_pool(self, size: int) -> None:
        """Make a second pool, or the deleted one anew; as with Calico only where blocks of that size are, or none."""
        taken = [keys.cidr_of(key) for key in self._server.records if key.startswith(keys.blocks_prefix(4) + "10.9.")]
        if all(cidr.prefix == size for cidr in taken) and keys.POOLS + "another" not in self._server.records:
            self._server.put(*pool_record("another", "10.9.0.0/26", blockSize=size))

    async def delete_pool(self) -> None:
        """Delete the second pool: its blocks stay, nobody's, as long as they hold addresses."""
        if keys.POOLS + "another" in self._server.records:
            await self._insist(lambda: self._calicoctl.delete_pool("another"))

    def reserve(self, cidr: str | None) -> None:
        """Keep a range from automatic assignment, or (None) no longer."""
        value = (
            None
            if cidr is None
            else json.dumps({"metadata": {"name": "r"}, "spec": {"reservedCIDRs": [cidr]}}).encode()
        )
        self._server.put(keys.RESERVATIONS + "r", value)

    def lock(self, *, locked: bool) -> None:
        """Lock the datastore, as for a migration, or unlock it."""
        self._server.put(keys.CLUSTER_INFORMATION, json.dumps({"spec": {"datastoreReady": not locked}}).encode())

    def configure(self, **settings: object) -> None:
        """Change the IPAM configuration: whether borrowing is forbidden, how long addresses cool (s)."""
        names = {"strict": "strict_affinity", "cooldown": "ipCooldownSeconds"}
        found = self._server.records.get(keys.CONFIG)
        config = json.loads(found.value) if found else {"strict_affinity": False, "auto_allocate_blocks": True}
        config |= {names[name]: value for name, value in settings.items()}
        self._server.put(keys.CONFIG, json.dumps(config).encode())
