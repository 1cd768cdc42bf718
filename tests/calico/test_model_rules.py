"""The model of Calico's algorithm by its rules: crashes and their repair, races, reclaiming, releasing, collecting."""

from collections import Counter

import pytest
import trio

from tests.calico.block import SECOND
from tests.calico.cluster import Calicoctl, Collector
from tests.calico.datastore import CrashedError, Fuse
from tests.calico.node import Calico
from tests.calico.pools import CalicoError
from tests.calico_state import State
from tests.memory_store import MemoryStore
from tests.nodes import pool_record

EPOCH = 1_795_218_460_000_000_000
BLOCK = "/calico/ipam/v2/assignment/ipv4/block/"


class World:
    """A pool of two blocks of four addresses in memory, and programs on it; ``at`` is the time (Unix ns)."""

    def __init__(self, cidr: str = "10.8.0.0/29", **spec: object) -> None:
        self.store = MemoryStore()
        self.at = EPOCH
        key, value = pool_record("small", cidr, **{"blockSize": 30, **spec})
        self.store.put(key, value)
        self.calicoctl = Calicoctl(self.store, self.now)

    def now(self) -> int:
        """The time."""
        return self.at

    def node(self, name: str, calls: int | None = None) -> Calico:
        """The programs of a node; with ``calls``, they die after so many calls of the store."""
        return Calico(self.store if calls is None else Fuse(self.store, calls), name, self.now)

    @property
    def state(self) -> State:
        """The records."""
        return State({key: record.value for key, record in self.store.records.items()})


def pod(name: str) -> dict[str, str]:
    """The attributes of a pod."""
    return {"namespace": "default", "pod": name}


async def test_whatever_a_crash_leaves_of_a_claim_is_repaired_by_the_next_add() -> None:
    """An ADD dies before each of its calls in turn: the next one of the node completes the claim, or finds it done."""
    for calls in range(100):
        world = World()
        try:
            await world.node("node-a", calls).add("crashed", pod("p"))
        except CrashedError:
            await world.node("node-a").add("next", pod("q"))
            leaked = [problem for problem in world.state.problems() if not problem.startswith("handle crashed")]
            assert leaked == []
            assert "next" in world.state.pods().values()
        else:
            assert calls > 10
            return
    raise AssertionError("it never ended")


async def test_a_stale_affinity_to_another_nodes_block_is_dropped() -> None:
    """A node that has an affinity, perhaps pending, to a block that is another's takes nothing of it as its own."""
    world = World()
    (address,) = await world.node("node-b").add("b", pod("b"))
    cidr = next(iter(world.state.blocks))
    world.store.put(f"/calico/ipam/v2/host/node-a/ipv4/block/{cidr.replace('/', '-')}", b'{"state":"pending"}')
    (mine,) = await world.node("node-a").add("a", pod("a"))
    assert world.state.problems() == []
    assert mine.rpartition(".")[0] == address.rpartition(".")[0]
    assert len(world.state.blocks) == 2


async def test_nodes_that_race_never_get_one_address_and_lose_no_count(autojump_clock: trio.testing.MockClock) -> None:
    """Three nodes fill the pool, and empty it, all at once: each address once, and every handle right."""
    world = World("10.8.0.0/27")
    world.store.delay = 0.01
    given: list[str] = []

    async def one(node: str, number: int) -> None:
        given.extend(await world.node(node).add(f"{node}.{number}", pod(f"{node}-{number}")))

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(one, f"node-{number % 3}", number)
    assert max(Counter(given).values()) == 1
    assert len(given) == 30
    assert world.state.problems() == []
    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(world.node("any").release_by_handle, f"node-{number % 3}.{number}")
    assert world.state.problems() == []
    assert world.state.pods() == {}


@pytest.mark.parametrize(("age", "reclaims"), [(60, False), (61, True)])
async def test_an_empty_block_of_another_node_is_reclaimed_when_none_is_free_and_it_is_a_minute_old(
    age: int, reclaims: bool
) -> None:
    """A younger one is borrowed from; an older one is deleted with its affinity and claimed anew."""
    world = World()
    for node in ("node-b", "node-c"):
        await world.node(node).add(node, pod(node))
    await world.node("node-c").release_by_handle("node-c")
    world.at += age * SECOND
    await world.node("node-a").add("a", pod("a"))
    owners = {block["affinity"] for block in world.state.blocks.values()}
    assert world.state.problems() == []
    assert owners == ({"host:node-a", "host:node-b"} if reclaims else {"host:node-b", "host:node-c"})


async def test_a_borrowed_address_is_the_borrowers() -> None:
    """An address of another node's block says which node uses it, and that node's DEL gives it back."""
    world = World()
    for name in "pqrstu":
        await world.node("node-b").add(name, pod(name))
    (address,) = await world.node("node-a").add("a", pod("a"))
    assert world.state.pods("node-a") == {address: "a"}
    assert {block["affinity"] for block in world.state.blocks.values()} == {"host:node-b"}
    await world.node("node-a").delete("a", "default.a")
    assert world.state.pods("node-a") == {}


async def test_a_release_by_address_needs_the_right_handle_and_sequence_number() -> None:
    """An address that has been given anew since the releaser looked stays."""
    world = World()
    (address,) = await world.node("node-a").add("a", pod("a"))
    number = next(iter(world.state.blocks.values()))["sequenceNumberForAllocation"]["0"]
    with pytest.raises(CalicoError, match="sequence"):
        await world.node("node-a").release_address(address, handle="a", sequence=number + 1)
    with pytest.raises(CalicoError, match="belongs to a"):
        await world.node("node-a").release_address(address, handle="b", sequence=number)
    assert await world.node("node-a").release_address(address, handle="a", sequence=number)
    assert not await world.calicoctl.release(address)
    assert world.state.handles == {}


async def test_a_released_address_cools_for_as_long_as_the_configuration_says() -> None:
    """With a cooldown an address is nobody's and not free, until somebody reads the block for writing later on."""
    world = World()
    await world.calicoctl.configure(ipCooldownSeconds=60, strict_affinity=True, maxBlocksPerHost=1)
    for name in "abcd":
        await world.node("node-a").add(name, pod(name))
    await world.node("node-a").release_by_handle("b")
    with pytest.raises(CalicoError, match="per host block limit"):
        await world.node("node-a").add("e", pod("e"))
    world.at += 61 * SECOND
    await world.node("node-a").add("e", pod("e"))
    assert world.state.problems() == []
    assert set(world.state.pods().values()) == set("acde")


async def test_deleting_a_node_leaves_its_used_blocks_without_an_owner_until_they_are_empty() -> None:
    """Empty blocks and affinities go at once, a block in use when its last address is released."""
    world = World()
    for name in "abcde":
        await world.node("node-a").add(name, pod(name))
    await world.node("node-a").release_by_handle("e")
    await world.calicoctl.delete_node("node-a")
    assert world.state.affinities == {}
    assert [block["affinity"] for block in world.state.blocks.values()] == [None]
    for name in "abcd":
        await world.node("node-a").release_by_handle(name)
    assert world.state.blocks == {}
    assert world.state.handles == {}


async def test_the_collector_releases_what_no_pod_has_after_its_grace_time() -> None:
    """A pod's address goes when the pod is gone for long enough; a tunnel's only with its node; other types never."""
    world = World()
    (kept,) = await world.node("node-a").add("a", pod("a"))
    (leaked,) = await world.node("node-a").add("b", pod("b"))
    tunnel = await world.node("node-a").tunnel_address("vxlan-tunnel-addr")
    assert await world.node("node-a").tunnel_address("vxlan-tunnel-addr") == tunnel
    await world.node("node-a")._auto_assign("other", {"node": "node-a", "type": "special"}, 4, (), "Workload")
    collector = Collector(world.store, world.now)
    living = {("default", "a"): [kept]}
    assert await collector.sweep(living, ["node-a"]) == []
    world.at += 900 * SECOND
    assert await collector.sweep(living, ["node-a"]) == [leaked]
    await collector.sweep({}, [])
    world.at += 900 * SECOND
    assert set(await collector.sweep({}, [])) == {kept, tunnel}
    assert set(world.state.handles) == {"other"}
    assert {block["affinity"] for block in world.state.blocks.values()} == {"host:node-a"}
