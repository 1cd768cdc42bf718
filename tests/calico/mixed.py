"""Daemons and Calico's programs on one small pool, at once: who does what, and what must be true meanwhile and after.

Daemons are spoken to as the plugin speaks to them, Calico's programs are the model. Pods, tunnels, releases by handle
and by address, crashes of Calico's programs between any two calls, deleted nodes, the collector; Calico's clocks are
two minutes ahead, so that any empty block of another node is old enough to be reclaimed.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence

import trio
from msgspec import Struct

from ipamd.store.base import Store
from tests.calico.block import SECOND
from tests.calico.cluster import Calicoctl, Collector
from tests.calico.datastore import CrashedError, Fuse
from tests.calico.node import TUNNELS, Calico
from tests.calico.pools import CalicoError
from tests.calico_state import State, differences
from tests.daemon_process import Daemon, addresses_of
from tests.etcd_process import EtcdProcess

AHEAD = 120 * SECOND
GRACE = 2 * SECOND
MOST = 14
"""Pods that a worker has at most: all together want far more than the pool has addresses."""
FULL = 40
"""Addresses in use from which a refusal is believed: the rest is being given, released, or left to the collector."""
LEAD = 20
"""Operations by which the daemons or Calico's programs may be ahead of the others."""
REFUSED = {101}
"""Codes with which a daemon may refuse a pod because the pool is full."""


class Holder(Struct, frozen=True):
    """Who was told that an address is its own."""

    name: str
    handle: str
    node: str


class Living:
    """Who holds which address at this moment. Fails at the first address that is held twice."""

    def __init__(self) -> None:
        self.held: dict[str, Holder] = {}
        self.most = 0

    def take(self, address: str, holder: Holder) -> None:
        """The holder was told that the address is its own."""
        other = self.held.setdefault(address, holder)
        assert other == holder, f"{address} was given to {holder} and is {other}'s"
        self.most = max(self.most, len(self.held))

    def drop(self, address: str) -> None:
        """It is about to be released: from now on it may be another's."""
        del self.held[address]

    def pods(self) -> dict[tuple[str, str], set[str]]:
        """The living pods as kube-controllers knows them."""
        return {("default", f"pod-{holder.name}"): {address} for address, holder in self.held.items()}


class Mix:
    """One run of so many operations. ``done`` counts what happened, by kind; ``leaky`` are handles of crashed calls."""

    def __init__(self, etcd: EtcdProcess, store: Store, daemons: Sequence[Daemon], operations: int, seed: int) -> None:
        self.etcd, self.store, self.daemons = etcd, store, daemons
        self.living = Living()
        self.done: Counter[str] = Counter()
        self.leaky: set[str] = set()
        self._left = {"ipamd": operations // 2, "calico": operations // 2}
        self._seed = seed
        self._collector = Collector(store, self.now, GRACE)
        self._calico_nodes = [f"calico-{number}" for number in range(4)]

    @staticmethod
    def now() -> int:
        """The time by Calico's clocks (Unix ns)."""
        return time.time_ns() + AHEAD

    def programs(self, node: str, calls: int | None = None) -> Calico:
        """Calico's programs on a node; with ``calls``, they crash after so many calls of the store."""
        return Calico(self.store if calls is None else Fuse(self.store, calls), node, self.now)

    async def run(self) -> None:
        """All operations; then everybody rests, with pods still living."""
        agents = [Agent(self, node) for node in (*(daemon.node for daemon in self.daemons), *self._calico_nodes)]
        async with trio.open_nursery() as background:
            background.start_soon(self._collect)
            background.start_soon(self._watch_promises)
            async with trio.open_nursery() as workers:
                for daemon in self.daemons:
                    for number in range(2):
                        workers.start_soon(
                            self._work, "ipamd", Kubelet(self, daemon, number).step, f"{daemon.node}/{number}"
                        )
                for agent in agents:
                    if agent.node in self._calico_nodes:
                        workers.start_soon(self._work, "calico", CalicoNode(self, agent).step, agent.node)
                    else:
                        workers.start_soon(self._work, "calico", agent.step, f"agent of {agent.node}")
            for agent in agents:  # whatever a crash left is now seen to
                await agent.take()
            background.cancel_scope.cancel()

    async def _work(self, whose: str, step: Callable[[random.Random], Awaitable[str]], name: str) -> None:
        choose = random.Random(f"{self._seed} {name}")  # noqa: S311 - repeatable choices
        while self._left[whose] > 0:
            if self._left[whose] < max(self._left.values()) - LEAD:  # so that they meet: the daemons are faster
                await trio.sleep(0.001)
                continue
            self._left[whose] -= 1
            self.done[await step(choose)] += 1

    async def _collect(self) -> None:
        while True:
            await self._sweep()
            await trio.sleep(0.2)

    async def _sweep(self) -> None:
        nodes = [*self._calico_nodes, *(daemon.node for daemon in self.daemons)]
        self.done["collected"] += len(await self._collector.sweep(self.living.pods(), nodes))

    async def _watch_promises(self) -> None:
        """Time and again: what lives is in the store the holder's own, or in the reserve of its node."""
        while True:
            before = dict(self.living.held)
            state = await self.state()
            owners = {address: handle for address, handle, _ in state.allocations()}
            self.done["borrowed"] += sum(1 for _ in _borrowed(state))
            for address, holder in before.items():
                if self.living.held.get(address) == holder:
                    owner = owners.get(address, "nobody")
                    promised = owner.rpartition(".")[0] == f"ipamd-reserve-{holder.node}"
                    assert promised or owner == holder.handle, f"{address}: {holder}, in the store {owner}"
            await trio.sleep(0.05)

    async def state(self) -> State:
        """The records, at one revision."""
        return await trio.to_thread.run_sync(State.of, self.etcd)

    # --- the end ----------------------------------------------------------------------------------------------

    async def settled(self, within: float = 30.0) -> State:
        """Wait until the store has exactly what lives; fails, in words, if that does not come about."""
        found = ["?"]
        with trio.move_on_after(within):
            while found:
                await self._sweep()
                state = await self.state()
                found = [*self.wrong(state), *await trio.to_thread.run_sync(self._differences, state)]
                await trio.sleep(0.05)
        assert found == [], "\n".join([f"not within {within} s:", *found, str(self.done)])
        return state

    def wrong(self, state: State) -> Iterator[str]:
        """Where the records contradict one another, or what lives; a handle that crashed calls leaked may stay."""
        tunnels = {address: handle for address, handle, _ in state.allocations() if handle.startswith(tuple(TUNNELS))}
        mine = {address: holder.handle for address, holder in self.living.held.items()}
        theirs = {**state.pods(), **tunnels}
        for address in sorted(mine.keys() | theirs.keys()):
            if mine.get(address) != theirs.get(address):
                yield f"{address} is {mine.get(address)}'s, in the store {theirs.get(address)}'s"
        for problem in state.problems():
            if not (problem.startswith("handle ") and problem.split()[1] in self.leaky):
                yield problem

    def _differences(self, state: State) -> list[str]:
        return [problem for problem in differences(state, self.daemons) if problem not in state.problems()]

    async def empty(self) -> None:
        """End all pods and tunnels, and delete the nodes that have no daemon."""
        by_node = {daemon.node: daemon for daemon in self.daemons}
        for address, holder in list(self.living.held.items()):
            self.living.drop(address)
            if holder.node in by_node and not holder.handle.startswith(tuple(TUNNELS)):
                await trio.to_thread.run_sync(by_node[holder.node].post, "DEL", holder.name)
            else:
                await self.programs(holder.node).release_by_handle(holder.handle)
        for node in self._calico_nodes:
            await Calicoctl(self.store, self.now).delete_node(node)


def _borrowed(state: State) -> Iterator[str]:
    """Who uses addresses of another node's block."""
    for block in state.blocks.values():
        for attribute in block["attributes"]:
            node = attribute["secondary"]["node"]
            if block["affinity"] not in (None, f"host:{node}"):
                yield node


class Kubelet:
    """Pods of a node whose plugin is ipamd's: each step adds or deletes one."""

    def __init__(self, mix: Mix, daemon: Daemon, number: int) -> None:
        self._mix, self._daemon = mix, daemon
        self._prefix = f"{daemon.node}-{number}"
        self._pods: list[tuple[str, str]] = []
        self._count = 0

    async def step(self, choose: random.Random) -> str:
        """One ADD or DEL; says what happened. A pod that is refused gets its DEL, as from any kubelet."""
        if self._pods and (len(self._pods) >= MOST or choose.random() < 0.45):
            container, address = self._pods.pop(choose.randrange(len(self._pods)))
            self._mix.living.drop(address)
            await self._delete(container)
            return "ipamd DEL"
        self._count += 1
        container = f"{self._prefix}-{self._count}"
        living = len(self._mix.living.held)
        status, body = await trio.to_thread.run_sync(self._daemon.post, "ADD", container)
        if status != 200:
            code = json.loads(body)["code"]
            assert code in REFUSED, body
            assert max(living, len(self._mix.living.held)) >= FULL, f"{living} in use: {body!r}"
            await self._delete(container)
            return f"ipamd ADD refused with {code}"
        (address,) = addresses_of(body)
        self._mix.living.take(address, Holder(container, f"k8s-pod-network.{container}", self._daemon.node))
        self._pods.append((container, address))
        return "ipamd ADD"

    async def _delete(self, container: str) -> None:
        assert await trio.to_thread.run_sync(self._daemon.post, "DEL", container) == (200, b"")


class Agent:
    """Calico's node agent: takes a node's tunnel address and gives it back; now and then it crashes over that."""

    def __init__(self, mix: Mix, node: str) -> None:
        self._mix, self.node = mix, node
        self._handle = f"vxlan-tunnel-addr-{node}"
        self._address = ""

    async def step(self, choose: random.Random) -> str:
        """Take the address if there is none, else give it back, or look at it."""
        calls = choose.randrange(20) if choose.random() < 0.1 else None
        release = bool(self._address) and choose.random() < 0.8
        if release:
            self.forget()
        try:
            return await self._release(calls) if release else await self.take(calls)
        except CrashedError:
            self._mix.leaky.add(self._handle)
            return "tunnel crashed"

    async def _release(self, calls: int | None) -> str:
        await self._mix.programs(self.node, calls).release_by_handle(self._handle)
        return "tunnel released"

    async def take(self, calls: int | None = None) -> str:
        """Take the address; if there is one already, perhaps from before a crash, it is that one."""
        try:
            address = await self._mix.programs(self.node, calls).tunnel_address("vxlan-tunnel-addr")
        except CalicoError:
            return "tunnel refused"
        assert address == self._address or not self._address
        self._mix.living.take(address, Holder(f"tunnel-{self.node}", self._handle, self.node))
        self._address = address
        return "tunnel"

    def forget(self) -> None:
        """The node is about to be deleted, and its tunnel with it."""
        if self._address:
            self._mix.living.drop(self._address)
            self._address = ""


class CalicoNode:
    """A node that runs Calico's programs only: pods, a tunnel, crashes; now and then it is deleted, and is back."""

    def __init__(self, mix: Mix, agent: Agent) -> None:
        self._mix, self._node = mix, agent.node
        self._agent = agent
        self._pods: list[tuple[Holder, str]] = []
        self._count = 0

    async def step(self, choose: random.Random) -> str:
        """One operation; says what happened."""
        lot = choose.random()
        if lot < 0.1:
            return await self._agent.step(choose)
        if lot < 0.14:
            return await self._deleted()
        if self._pods and (len(self._pods) >= MOST or lot < 0.57):
            return await self._delete(choose, *self._pods.pop(choose.randrange(len(self._pods))))
        return await self._add(choose)

    def _programs(self, calls: int | None = None) -> Calico:
        return self._mix.programs(self._node, calls)

    async def _add(self, choose: random.Random) -> str:
        self._count += 1
        name = f"{self._node}-{self._count}"
        holder = Holder(name, f"k8s-pod-network.{name}", self._node)
        calls = choose.randrange(30) if choose.random() < 0.25 else None
        try:
            (address,) = await self._programs(calls).add(
                holder.handle, {"namespace": "default", "pod": f"pod-{holder.name}"}
            )
        except CrashedError:
            self._mix.leaky.add(holder.handle)
            if choose.random() < 0.5:  # else nobody ever sends a DEL: it is the collector's
                await self._programs().release_by_handle(holder.handle)
            return "calico ADD crashed"
        except CalicoError:
            await self._programs().release_by_handle(holder.handle)
            return "calico ADD refused"
        self._mix.living.take(address, holder)
        self._pods.append((holder, address))
        return "calico ADD"

    async def _delete(self, choose: random.Random, holder: Holder, address: str) -> str:
        self._mix.living.drop(address)
        lot = choose.random()
        if lot < 0.2:
            await self._programs().release_address(address, handle=holder.handle)
            return "calico release by address"
        if lot < 0.5:
            self._mix.leaky.add(holder.handle)
            try:
                await self._programs(choose.randrange(12)).release_by_handle(holder.handle)
            except CrashedError:
                return "calico DEL crashed"  # and is never repeated: the collector's
        await self._programs().release_by_handle(holder.handle)
        return "calico DEL"

    async def _deleted(self) -> str:
        """``calicoctl delete node``: the tunnel goes, the pods stay in blocks without affinity."""
        self._agent.forget()
        await Calicoctl(self._mix.store, self._mix.now).delete_node(self._node)
        return "calico node deleted"
