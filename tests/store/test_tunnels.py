"""Tunnel addresses in the store: Calico's own records, and its node agent as a stranger who takes what it wants."""

import json
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys, tunnel
from ipamd.core.address import parse_cidr
from ipamd.core.facts import Place
from tests.core.captured import captured
from tests.core.cluster import Cluster
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, now, pool_record
from tests.store.test_requested import strange
from tests.store.truth import at_rest, nobody_shares, view

TAKEN_BY_CALICO = "/calico/ipam/v2/assignment/ipv4/block/10.10.2.160-28"
VXLAN = "vxlan-tunnel-addr-node-a"


@pytest.fixture
def store() -> MemoryStore:
    """The captured cluster's pool for tunnels alone, and one for pods."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("tunnels", "10.10.2.0/24", blockSize=28, allowedUses=["Tunnel"]))
    store.put(*pool_record("workloads", "10.20.0.0/24", blockSize=28, allowedUses=["Workload"]))
    return store


async def test_the_records_are_calicos(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Attributes and handle are, but for sequence numbers, what Calico's node agent wrote; nothing else stays."""
    async with Node("node-a", store).running() as node:
        await trio.sleep(1)
        await node.add(tunnel.request("node-a", "vxlanTunnelAddress", (), now().boot))
        await node.flushed()
        await trio.sleep(60)
        at_rest(store, [node])
        (cidr,) = (cidr for cidr in view(store).blocks() if cidr.startswith("10.10.2."))
        block = json.loads(store.records[keys.block_key(parse_cidr(cidr))].value)
        theirs = next(json.loads(v) for f, k, v in captured(keys.Kind.BLOCK) if (f, k) == ("pools", TAKEN_BY_CALICO))
        assert block["attributes"] == theirs["attributes"]
        assert [index for index in block["allocations"] if index is not None] == [0]
        handle = json.loads(store.records[keys.handle_key(VXLAN)].value)
        assert handle == {"block": {cidr: 1}, "deleted": False}


async def test_released_the_block_goes_too(autojump_clock: MockClock, store: MemoryStore) -> None:
    """After a release nothing is left of it, and the idle block is given back."""
    async with Node("node-a", store).running() as node:
        await trio.sleep(1)
        request = tunnel.request("node-a", "vxlanTunnelAddress", (), now().boot)
        await node.add(request)
        await node.flushed()
        node.journal.extend(node.ledger.delete(request.attachment, "", now().boot).facts)
        await node.flushed()
        await trio.sleep(200)
        at_rest(store, [node])
        assert not [cidr for cidr in view(store).blocks() if cidr.startswith("10.10.2.")]


async def test_what_the_agent_borrowed_is_found(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Its address lies in another node's block: the handle tells, and it is the answer; a release frees it."""
    cluster = view(store)
    cluster.make("10.10.2.0/28", "host:other", 1)
    cluster.take(Place("10.10.2.0/28", 7), VXLAN, {"node": "node-a", "type": "vxlanTunnelAddress"})
    async with Node("node-a", store).running() as node:
        await trio.sleep(1)
        await node.sync.look_up(VXLAN)
        request = tunnel.request("node-a", "vxlanTunnelAddress", (), now().boot)
        assert node.addresses(await node.add(request)) == ["10.10.2.7"]
        node.journal.extend(node.ledger.delete(request.attachment, "", now().boot).facts)
        await node.flushed()
        at_rest(store, [node])
        assert not view(store).handles().get(VXLAN)


async def test_a_release_of_what_only_the_store_knows(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Nothing here knows of the agent's address in another node's block: the release finds it by its handle."""
    cluster = view(store)
    cluster.make("10.10.2.0/28", "host:other", 1)
    cluster.take(Place("10.10.2.0/28", 7), VXLAN, {"node": "node-a", "type": "vxlanTunnelAddress"})
    async with Node("node-a", store).running() as node:
        await trio.sleep(1)
        attachment = tunnel.attachment("node-a", "vxlanTunnelAddress")
        node.journal.extend(node.ledger.delete(attachment, "", now().boot).facts)
        node.writer.wake(hurry=True)
        await trio.sleep(1)
        assert not view(store).handles().get(VXLAN)
        assert Place("10.10.2.0/28", 7) not in view(store).allocations()


async def test_the_agent_takes_from_our_block_at_any_time(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Between any two of our transactions the agent takes and frees addresses of our block: no pod ever has one."""
    async with Node("node-a", store).running() as node:
        await trio.sleep(1)
        block = next(iter(node.ledger.blocks))
        taken = 0
        for number in range(60):
            if number % 4 < 3:
                await node.add(add_request(f"c{number}"))
            if number % 5 == 4:
                node.delete(f"c{number - 4}")
            record = view(store).block(block)
            assert record is not None
            mine = [o for o in range(16) if (owner := record.owner(o)) is not None and owner.handle == VXLAN]
            if mine:
                strange(store, partial(Cluster.free, place=Place(block, mine[0])))
            elif record.unallocated:
                place, kind = Place(block, record.unallocated[0]), {"node": "node-a", "type": "vxlanTunnelAddress"}
                strange(store, partial(Cluster.take, place=place, handle=VXLAN, secondary=kind))
                taken += 1
            nobody_shares(store, [node])
            await trio.sleep(0.003 * (number % 7))
        assert taken > 5
        await node.flushed()
        await trio.sleep(1)
        at_rest(store, [node], strangers=[VXLAN])
