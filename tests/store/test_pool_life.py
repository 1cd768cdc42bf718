"""The life of a pool beneath running pods: disabled, changed, deleted, made anew, its affinities released.

Whatever happens to the pool, a pod keeps its address; what no pod uses goes back at once.
"""

import json

import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.check import check
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Assigned
from ipamd.core.reserve import ReservePolicy
from ipamd.store.writer import SETTLE, TICK
from tests.calico.releasing import Releasing
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, now, pool_record
from tests.store.truth import at_rest, view

OLD, OTHER = "192.168.0.0/16", "10.0.0.0/16"
POLICY = ReservePolicy(minimum=40, maximum=80)
"""So large that a node has a second block, which no pod uses."""


@pytest.fixture
def store() -> MemoryStore:
    """A pool, and a second that comes after it in name order."""
    made = MemoryStore(delay=0.001)
    made.put(*pool_record("a-pool", OLD))
    made.put(*pool_record("b-pool", OTHER, disabled=True))
    return made


def change(store: MemoryStore, name: str, cidr: str, **spec: object) -> None:
    """An operator applies a pool."""
    store.put(*pool_record(name, cidr, **spec))


def blocks(store: MemoryStore, pool: str) -> list[str]:
    """The blocks in a CIDR."""
    return sorted(cidr for cidr in view(store).blocks() if parse_cidr(pool).contains(parse_cidr(cidr)))


def reserved(store: MemoryStore, pool: str) -> int:
    """How many addresses of a CIDR are in somebody's reserve."""
    return sum(
        handle.startswith("ipamd-reserve-") and place.block in blocks(store, pool)
        for place, (handle, _node, _kind) in view(store).allocations().items()
    )


async def delete_pool(store: MemoryStore, name: str, node: str) -> None:
    """As calicoctl does: disable, release the affinities of its blocks, delete."""
    record = json.loads(store.records[keys.POOLS + name].value)
    record["spec"]["disabled"] = True
    store.put(keys.POOLS + name, json.dumps(record).encode())
    for cidr in blocks(store, record["spec"]["cidr"]):
        await Releasing(store, node, lambda: now().unix).release_affinity(cidr, must_be_empty=False)
    store.put(keys.POOLS + name, None)


async def pods(node: Node, count: int) -> list[Assigned]:
    """So many pods, their addresses in the store."""
    given = [await node.add(add_request(f"old{number}")) for number in range(count)]
    await node.flushed()
    await trio.sleep(1)
    return given


def keeps(node: Node, store: MemoryStore, given: list[Assigned]) -> None:
    """Every pod still has its address: asked again, it gets the same; in the store it is the pod's."""
    allocations = view(store).allocations()
    for assigned in given:
        assert node.ledger.holdings[assigned.attachment] == assigned
        assert allocations[assigned.places[0]][0] == assigned.handle
    assert check(node.ledger) == []


@pytest.mark.parametrize("how", [{"disabled": True}, {"nodeSelector": "rack == '1'"}, {"allowedUses": ["Tunnel"]}])
async def test_a_pool_that_no_longer_serves_gets_back_what_no_pod_uses(
    autojump_clock: MockClock, store: MemoryStore, how: dict[str, object]
) -> None:
    """Reserve and empty blocks go at once, not after a minute; the pods' block stays until the last of them goes."""
    async with Node("n1", store, POLICY).running() as node:
        given = await pods(node, 2)
        assert len(blocks(store, OLD)) == 2
        change(store, "a-pool", OLD, **how)
        change(store, "b-pool", OTHER)
        await trio.sleep(1)
        assert (blocks(store, OLD), reserved(store, OLD)) == ([given[0].places[0].block], 0)
        assert reserved(store, OTHER) >= 40
        keeps(node, store, given)
        at_rest(store, [node])
        node.delete("old0")
        node.delete("old1")
        await trio.sleep(1)
        assert blocks(store, OLD) == []
        at_rest(store, [node])


async def test_a_claim_that_was_given_up_finds_the_block_that_it_expects_not_to_be(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """For ten seconds after a restart no block is deleted: what a daemon that died had sent would make it anew."""
    async with Node("n1", store, POLICY).running() as first:
        await pods(first, 1)
        before = blocks(store, OLD)
    async with Node("n1", store, POLICY, first.journal).running() as node:
        node.delete("old0")
        change(store, "a-pool", OLD, disabled=True)
        await trio.sleep(SETTLE / 1e9 - 1)
        assert blocks(store, OLD) == before
        await trio.sleep(TICK + 1)
        assert blocks(store, OLD) == []


async def test_a_pool_that_serves_again_has_its_reserve_again(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Disabled by mistake, enabled again: the next pod's address comes from its old block."""
    async with Node("n1", store).running() as node:
        (given,) = await pods(node, 1)
        change(store, "a-pool", OLD, disabled=True)
        await trio.sleep(1)
        with pytest.raises(RefusedError) as refusal:
            await node.add(add_request("none"))
        assert refusal.value.code is Code.NO_POOL
        change(store, "a-pool", OLD)
        assigned = await node.add(add_request("new"))
        assert assigned.places[0].block == given.places[0].block


async def test_a_deleted_record_of_a_pool_strands_its_blocks(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The pool's record alone is deleted: the reserve and empty blocks go, the pods' block when they have gone."""
    async with Node("n1", store, POLICY).running() as node:
        given = await pods(node, 2)
        store.put(keys.POOLS + "a-pool", None)
        await trio.sleep(1)
        assert (blocks(store, OLD), reserved(store, OLD)) == ([given[0].places[0].block], 0)
        with pytest.raises(RefusedError):
            await node.add(add_request("none"))
        keeps(node, store, given)
        node.delete("old0")
        await trio.sleep(1)
        assert reserved(store, OLD) == 0
        keeps(node, store, given[1:])
        node.delete("old1")
        await trio.sleep(1)
        assert view(store).blocks() == view(store).handles() == {}
        assert node.ledger.blocks == {}


async def test_a_pool_deleted_by_calicoctl(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Its blocks are no node's: they get no new pod, the old ones stay, and the last takes the block along."""
    async with Node("n1", store, POLICY).running() as node:
        given = await pods(node, 2)
        await delete_pool(store, "a-pool", "n1")
        await trio.sleep(1)
        (left,) = blocks(store, OLD)
        assert view(store).blocks()[left].affinity is None
        assert reserved(store, OLD) == 0
        keeps(node, store, given)
        at_rest(store, [node])
        change(store, "b-pool", OTHER)
        assert (await node.add(add_request("new"))).places[0].block in blocks(store, OTHER)
        for name in ("old0", "old1"):
            assert blocks(store, OLD) == [left]
            node.delete(name)
            await trio.sleep(1)
        assert blocks(store, OLD) == []
        at_rest(store, [node])


async def test_a_restart_between_the_deletion_and_the_last_pod(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A daemon started meanwhile knows the block only by its pods: it ends the same."""
    first = Node("n1", store)
    async with first.running() as node:
        given = await pods(node, 1)
        await delete_pool(store, "a-pool", "n1")
    async with Node("n1", store, facts=first.journal).running() as node:
        await trio.sleep(1)
        assert reserved(store, OLD) == 0
        keeps(node, store, given)
        node.delete("old0")
        await trio.sleep(1)
        assert view(store).blocks() == view(store).handles() == {}


async def test_a_node_deleted_by_calicoctl_while_its_daemon_runs(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Its blocks are taken away, the pool still serves: new pods are in a new block, the old block goes at last."""
    async with Node("n1", store).running() as node:
        (given,) = await pods(node, 1)
        old = given.places[0].block
        await Releasing(store, "n1", lambda: now().unix).release_affinity(old, must_be_empty=False)
        assigned = await node.add(add_request("new"))
        assert assigned.places[0].block != old
        await trio.sleep(1)
        keeps(node, store, [given, assigned])
        node.delete("old0")
        await trio.sleep(1)
        assert old not in blocks(store, OLD)
        at_rest(store, [node])


async def test_an_ownerless_block_goes_when_its_last_address_has_cooled(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """With a cooldown it stays as long as the address cools, also over a restart; then nobody is left to remove it."""
    store.put(keys.CONFIG, b'{"strict_affinity":false,"auto_allocate_blocks":true,"ipCooldownSeconds":60}')
    first = Node("n1", store)
    async with first.running() as node:
        (given,) = await pods(node, 1)
        await delete_pool(store, "a-pool", "n1")
        node.delete("old0")
        await trio.sleep(30)
        assert blocks(store, OLD) == [given.places[0].block]
        assert view(store).handles() == {}
    async with Node("n1", store, facts=first.journal).running() as node:
        await trio.sleep(25)
        assert blocks(store, OLD) == [given.places[0].block]
        await trio.sleep(12)
        assert blocks(store, OLD) == []
        assert node.ledger.blocks == {}


async def test_a_pool_made_anew_with_another_block_size(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Its record is replaced beneath the pods: no new block overlaps an old one, which goes with its last pod."""
    change(store, "a-pool", "192.168.0.0/24")
    async with Node("n1", store, ReservePolicy(minimum=100, maximum=100)).running() as node:
        given = await pods(node, 1)
        old = parse_cidr(given[0].places[0].block)
        for size in (27, 25):
            change(store, "a-pool", "192.168.0.0/24", blockSize=size)
            await trio.sleep(1)
            cut = [parse_cidr(cidr) for cidr in blocks(store, "192.168.0.0/24") if cidr != str(old)]
            assert {cidr.prefix for cidr in cut} == {size}
            assert not any(cidr.overlaps(old) for cidr in cut)
            new = await node.add(add_request(f"new{size}"))
            assert parse_cidr(new.places[0].block).prefix == size
            keeps(node, store, given)
            node.delete(f"new{size}")
            await trio.sleep(1)
        node.delete("old0")
        await trio.sleep(1)
        assert str(old) not in view(store).blocks()
        at_rest(store, [node])
