"""What the cluster's IPAM configuration allows a node: strict affinity, the number of blocks, any block at all, a lock."""

import json
from collections.abc import Sequence

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.errors import Code, RefusedError
from ipamd.core.reserve import ReservePolicy
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record
from tests.store.truth import at_rest, view

SMALL = ReservePolicy(minimum=1, maximum=1)


def configure(store: MemoryStore, **fields: object) -> None:
    """As calicoctl ipam configure writes it."""
    store.put(keys.CONFIG, json.dumps({"strict_affinity": False, "auto_allocate_blocks": True, **fields}).encode())


async def refusal_of(node: Node, name: str, *families: int, pools: Sequence[str] = ()) -> RefusedError:
    """How an ADD is refused."""
    request = replace(add_request(name, *families), named=dict.fromkeys(families or (4,), tuple(pools)))
    with pytest.raises(RefusedError) as refusal:
        await node.add(request)
    return refusal.value


@pytest.fixture
def store() -> MemoryStore:
    """The captured pool: 256 addresses in blocks of four."""
    made = MemoryStore(delay=0.001)
    made.put(*pool_record("p", "10.40.0.0/24", blockSize=30))
    return made


async def test_two_blocks_a_host_are_eight_pods(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The captured history: eight pods fit, the ninth is told of the limit; when it is raised, it gets an address."""
    configure(store, strict_affinity=True, maxBlocksPerHost=2)
    async with Node("node-a", store).running() as node:
        for number in range(8):
            await node.add(add_request(f"m{number}"))
        refused = await refusal_of(node, "m8")
        assert (refused.code, refused.msg) == (
            Code.BLOCK_LIMIT,
            (
                "cannot assign an IPv4 address to default/pod-m8: pool p (10.40.0.0/24): this node has 2 blocks, the limit "
                "(maxBlocksPerHost), and strictAffinity forbids addresses of other nodes' blocks; raise it or use larger "
                "blocks"
            ),
        )
        await node.flushed()
        at_rest(store, [node])
        configure(store, strict_affinity=True, maxBlocksPerHost=3)
        await trio.sleep(0.1)
        await node.add(add_request("m8"))
        assert len(view(store).blocks()) == 3


async def test_the_limit_is_twenty_when_nothing_is_set(autojump_clock: MockClock, store: MemoryStore) -> None:
    """As with Calico: 0, or no configuration at all, is 20."""
    async with Node("node-a", store, SMALL).running() as node:
        for number in range(80):
            await node.add(add_request(f"m{number}"))
        refused = await refusal_of(node, "m80")
        assert refused.code is Code.BLOCK_LIMIT
        assert "this node has 20 blocks, the limit (maxBlocksPerHost)" in refused.msg


async def test_the_versions_are_limited_apart(autojump_clock: MockClock, store: MemoryStore) -> None:
    """As many IPv6 blocks as IPv4 ones."""
    store.put(*pool_record("six", "fd00::/64", blockSize=128))
    configure(store, maxBlocksPerHost=1)
    async with Node("node-a", store, SMALL).running() as node:
        await node.add(add_request("a", 4, 6))
        refused = await refusal_of(node, "b", 4, 6)
        assert refused.code is Code.BLOCK_LIMIT
        assert refused.msg.startswith("cannot assign an IPv6 address to default/pod-b: pool six (fd00::/64): this node")
        await node.add(add_request("c", 4))


async def test_blocks_of_pools_that_the_request_cannot_use_do_not_count(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """A named pool is counted alone; the blocks of a disabled one do not count at all."""
    store.put(*pool_record("named", "10.41.0.0/24", blockSize=32, assignmentMode="Manual"))
    configure(store, maxBlocksPerHost=1)
    async with Node("node-a", store, SMALL).running() as node:
        for name in "abcd":
            await node.add(add_request(name))
        named = replace(add_request("n"), named={4: ("named",)})
        assert node.addresses(await node.add(named))[0].startswith("10.41.0.")
        assert (await refusal_of(node, "o", pools=["named"])).code is Code.BLOCK_LIMIT
        store.put(*pool_record("p", "10.40.0.0/24", blockSize=30, disabled=True))
        store.put(*pool_record("q", "10.42.0.0/24", blockSize=30))
        await trio.sleep(1)
        assert node.addresses(await node.add(add_request("e")))[0].startswith("10.42.0.")


async def test_pools_that_serve_together_are_counted_together(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A request that may use both gets no second block for being sent on to the second pool."""
    store.put(*pool_record("q", "10.42.0.0/24", blockSize=30))
    configure(store, strict_affinity=True, maxBlocksPerHost=1)
    async with Node("node-a", store, SMALL).running() as node:
        for name in "abcd":
            await node.add(add_request(name))
        refused = await refusal_of(node, "e")
        assert refused.code is Code.BLOCK_LIMIT
        assert "pool p (10.40.0.0/24): this node has 1 blocks" in refused.msg
        assert "pool q (10.42.0.0/24): this node has 1 blocks" in refused.msg


async def test_no_block_is_claimed_when_that_is_turned_off(autojump_clock: MockClock, store: MemoryStore) -> None:
    """With autoAllocateBlocks false a node without a block is told so; one that has a block serves from it alone."""
    configure(store, strict_affinity=True, auto_allocate_blocks=False)
    async with Node("node-a", store).running() as node:
        refused = await refusal_of(node, "a")
        assert (refused.code, refused.msg) == (
            Code.BLOCK_LIMIT,
            (
                "cannot assign an IPv4 address to default/pod-a: pool p (10.40.0.0/24): autoAllocateBlocks is false, and "
                "strictAffinity forbids addresses of other nodes' blocks; set it, or give the node a block"
            ),
        )
        assert view(store).blocks() == {}
        configure(store, strict_affinity=True)
        await trio.sleep(1)
        before = len(view(store).blocks())
        configure(store, strict_affinity=True, auto_allocate_blocks=False)
        await trio.sleep(1)
        for number in range(4 * before):
            await node.add(add_request(f"p{number}"))
        assert (await refusal_of(node, "last")).code is Code.BLOCK_LIMIT
        assert len(view(store).blocks()) == before


async def test_an_absent_field_of_a_present_configuration_is_false(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """Calico's reading: without the record blocks are allocated, with a record that does not say so they are not."""
    store.put(keys.CONFIG, b'{"strict_affinity":true}')
    async with Node("node-a", store).running() as node:
        assert "autoAllocateBlocks is false" in (await refusal_of(node, "a")).msg


async def test_with_strict_affinity_all_of_a_block_is_reserved(autojump_clock: MockClock) -> None:
    """Nobody may borrow, so that it costs the others nothing; what the node agent may need for tunnels stays free."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.40.0.0/24"))
    configure(store, strict_affinity=True)
    async with Node("node-a", store).running() as node:
        await trio.sleep(1)
        assert node.ledger.available("p") == 62


async def test_a_lock_refuses_adds_and_writes_what_was_promised(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Locked: nothing new is reserved or claimed, an ADD is told to come back; a pod given before is still flushed."""
    async with Node("node-a", store, SMALL).running() as node:
        await trio.sleep(1)
        assigned = await node.add(add_request("before"))
        store.put(keys.CLUSTER_INFORMATION, b'{"metadata":{"name":"default"},"spec":{"datastoreReady":false}}')
        await trio.sleep(1)
        assert view(store).allocations()[assigned.places[0]][0] == assigned.handle
        blocks = len(view(store).blocks())
        refused = await refusal_of(node, "during")
        assert (refused.code, refused.msg) == (
            Code.TRY_AGAIN_LATER,
            (
                "cannot assign an address to default/pod-during: the datastore is locked (ClusterInformation datastoreReady "
                "is false: an upgrade or a migration is under way); try again when it is unlocked"
            ),
        )
        node.delete("before")
        await trio.sleep(30)
        assert assigned.places[0] not in {
            place for place, (handle, _n, _k) in view(store).allocations().items() if handle == assigned.handle
        }
        assert len(view(store).blocks()) == blocks
        store.put(keys.CLUSTER_INFORMATION, b'{"metadata":{"name":"default"},"spec":{"datastoreReady":true}}')
        await trio.sleep(0.1)
        await node.add(add_request("after"))


# --- block sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cidr", "size"),
    [
        ("10.0.0.0/16", 26),
        ("10.0.0.0/16", 20),
        ("10.0.0.0/20", 20),
        ("10.0.0.0/24", 32),
        ("fd00::/64", 122),
        ("fd00::/64", 116),
        ("fd00::/116", 116),
        ("fd00::/64", 128),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
async def test_every_block_size_serves(autojump_clock: MockClock, cidr: str, size: int, *, strict: bool) -> None:
    """Claim, reserve, ADD, flush, release and giving back, with one address a block and with 4,096."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", cidr, blockSize=size))
    configure(store, strict_affinity=strict)
    family = parse_cidr(cidr).family
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        given = {node.addresses(await node.add(add_request(f"c{number}", family)))[0] for number in range(20)}
        assert len(given) == 20
        await node.flushed()
        at_rest(store, [node])
        assert {parse_cidr(block).prefix for block in view(store).blocks()} == {size}
        for number in range(20):
            node.delete(f"c{number}")
        await node.flushed()
        at_rest(store, [node])
        await trio.sleep(600)
        at_rest(store, [node])
        assert len(view(store).blocks()) <= (16 if size in (32, 128) else 1)


@pytest.mark.parametrize(("strict", "size"), [(False, 45_000), (True, 130_000)])
async def test_a_flush_in_a_block_of_4096_writes_its_record_once(
    autojump_clock: MockClock, *, strict: bool, size: int
) -> None:
    """What a flush costs there: the whole record, once for many pods.

    41 kB with a reserve of 16; 125 kB with strict affinity, where nearly all is reserved and has a sequence number.
    """
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/16", blockSize=20))
    configure(store, strict_affinity=strict)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        (cidr,) = view(store).blocks()
        for number in range(16):
            await node.add(add_request(f"c{number}"))
        before = len(store.commits)
        await node.flushed()
        written = [change for (changes,) in store.commits[before:] for change in changes if "/block/" in change.key]
        assert [change.key for change in written] == [keys.block_key(parse_cidr(cidr))]
        assert len(written[0].value or b"") < size
