"""The search for a free block: the walk, the windows, and when a pool may be called exhausted."""

from collections.abc import Iterable
from functools import partial
from random import Random
from statistics import mean

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ipamd.core import keys
from ipamd.core.address import Cidr, parse_cidr
from ipamd.core.errors import Code, RefusedError
from ipamd.core.pool import Pool
from ipamd.core.records import affinity_record, new_block
from ipamd.store.base import Change, Outcome
from ipamd.store.claim import TRIES, WINDOW, Search, walk
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record
from tests.store.cases import Case


def pool(cidr: str, size: int) -> Pool:
    """A pool named p."""
    return Pool("p", parse_cidr(cidr), size)


def of_blocks(count: int) -> Pool:
    """An IPv4 pool of so many blocks of 64."""
    return pool(f"10.0.0.0/{26 - count.bit_length() + 1}", 26)


# --- the walk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1 << power for power in range(13)])
def test_the_walk_visits_every_block_once(blocks: int) -> None:
    """For pools of 1 to 4,096 blocks and several nodes: all blocks, none twice, all of the pool."""
    for node in ("n1", "n2", "worker-17.example"):
        seen = list(walk(node, of_blocks(blocks)))
        assert len(seen) == len(set(seen)) == blocks
        assert all(of_blocks(blocks).cuts(cidr) for cidr in seen)


def test_nodes_start_at_different_blocks() -> None:
    """A hundred nodes that start at once hardly meet: their first three candidates are nearly all different."""
    big = of_blocks(4096)
    firsts = [
        cidr for number in range(100) for _step, cidr in zip(range(TRIES), walk(f"node-{number}", big), strict=False)
    ]
    assert len(set(firsts)) > 280
    paths = {
        tuple(cidr for _step, cidr in zip(range(8), walk(f"node-{number}", big), strict=False)) for number in range(100)
    }
    assert len(paths) == 100


def test_the_walk_is_the_nodes_own_and_always_the_same() -> None:
    """The order depends on node and pool only."""
    assert list(walk("n1", of_blocks(64))) == list(walk("n1", of_blocks(64)))
    assert list(walk("n1", of_blocks(64))) != list(walk("n2", of_blocks(64)))


def test_the_walk_of_an_endless_pool_is_lazy() -> None:
    """An IPv6 pool of 2**58 blocks gives its first candidates at once."""
    first = [cidr for _step, cidr in zip(range(3), walk("n1", pool("fd00::/64", 122)), strict=False)]
    assert len(set(first)) == 3


# --- the search -----------------------------------------------------------------------------------------------


class Taken:
    """The keys of the blocks that exist, answering as a store would."""

    def __init__(self, blocks: Iterable[Cidr]) -> None:
        self.keys = sorted(keys.block_key(block) for block in blocks)
        self.transactions = 0

    def look(self, search: Search) -> Cidr | None:
        """Search until a free block is found, or none is left to try."""
        while True:
            tried = search.candidates()
            if not tried:
                return None
            self.transactions += 1
            free = [cidr for cidr in tried if keys.block_key(cidr) not in self.keys]
            if free:
                return free[0]
            search.learn(tried, self.answer(search, tried))

    def answer(self, search: Search, tried: Iterable[Cidr]) -> Outcome:
        """What a transaction says of which no candidate was free."""
        window = search.window
        found = tuple(key for key in self.keys if window.start <= key < window.end)[: window.limit]
        return Outcome(None, 1, {keys.block_key(cidr): None for cidr in tried}, found)  # type: ignore[dict-item,misc] # only the keys count


POOLS = st.sampled_from(
    [
        pool("10.0.0.0/26", 26),
        pool("10.0.8.0/22", 26),
        pool("10.0.0.0/23", 30),
        pool("192.168.96.0/19", 26),
        pool("10.255.255.0/27", 32),
        pool("fd00::/120", 122),
        pool("fd00:0:0:1::/112", 121),
        pool("fd00:1:0:0:1::/115", 122),
        pool("::/121", 128),
        pool("fe00:0:0:1:0:0:0:0/113", 122),
    ]
)


@settings(max_examples=300, deadline=None)
@given(POOLS, st.sampled_from(["n1", "n2", "n3"]), st.data())
def test_a_pool_is_exhausted_exactly_when_every_block_is_taken(target: Pool, node: str, data: st.DataObject) -> None:
    """Whatever is taken, in it and around it: a free block is found if there is one, and only then."""
    free = data.draw(st.sets(st.integers(0, target.blocks - 1), max_size=3))
    taken = [target.block(index) for index in range(target.blocks) if index not in free]
    around = [Cidr(target.family, (target.cidr.base ^ bit) >> 6 << 6, target.block_size) for bit in (1 << 13, 1 << 17)]
    found = Taken([*taken, *(cidr for cidr in around if not target.cidr.overlaps(cidr))]).look(Search(node, target))
    assert (found is None) == (not free)
    assert found is None or found in {target.block(index) for index in free}


@pytest.mark.parametrize("node", ["n1", "n2", "n3", "n4"])
def test_the_only_free_block_of_a_thousand_is_found(node: str) -> None:
    """One hole among 1,024 blocks is found within as many transactions as the pool has windows, and one."""
    big = of_blocks(1024)
    for hole in (0, 1, 511, 777, 1023):
        taken = Taken(big.block(index) for index in range(1024) if index != hole)
        assert taken.look(Search(node, big)) == big.block(hole)
        assert taken.transactions <= 1024 // WINDOW + 2


def test_the_only_free_block_beyond_the_look_ahead_is_found() -> None:
    """One hole among 16,384 blocks, at the very end of the walk, is found too: the pool is not called exhausted."""
    huge = of_blocks(16384)
    last = list(walk("n1", huge))[-1]
    taken = Taken(block for block in (huge.block(index) for index in range(16384)) if block != last)
    assert taken.look(Search("n1", huge)) == last


def test_nodes_that_met_only_taken_blocks_go_on_at_different_ones() -> None:
    """Of nodes that search a large pool at once nearly all try a block of their own next: each sees other holes."""
    big = of_blocks(8192)
    taken = Taken(big.block(index) for index in range(8192) if index % 5)
    there, second = set(taken.keys), []
    for number in range(300):
        search = Search(f"node-{number}", big)
        tried = search.candidates()
        if there.issuperset(map(keys.block_key, tried)):
            search.learn(tried, taken.answer(search, tried))
            second.append(search.candidates()[0])
    assert len(second) > 100
    assert len(set(second)) > len(second) * 0.9


@pytest.mark.parametrize("node", ["n1", "n2", "n3", "n4"])
def test_blocks_that_others_claim_meanwhile_are_not_tried_one_by_one(node: str) -> None:
    """All holes of a pool are taken after a search saw them: it learns so from a few windows, not by trying each."""
    big, search = of_blocks(1024), Search(node, of_blocks(1024))
    some, full = Taken(big.block(index) for index in range(1024) if index % 4), Taken(map(big.block, range(1024)))
    for _ in range(1024 // WINDOW + 2):
        search.learn([], some.answer(search, []))
    transactions = 0
    while tried := search.candidates():
        search.learn(tried, full.answer(search, tried))
        transactions += 1
    assert transactions <= 1024 // WINDOW + 2


def test_a_barred_block_is_never_tried() -> None:
    """A block with nothing to give is left out, and a pool of such blocks is exhausted."""
    small = of_blocks(4)
    search = Search("n1", small)
    for index in range(3):
        search.bar(small.block(index))
    assert search.candidates() == [small.block(3)]
    search.bar(small.block(3))
    assert search.candidates() == []


TABLE = {0: 1.0, 50: 1.5, 90: 2.1, 99: 3.5}
"""Per cent of the pool that is taken, and the mean number of transactions a claim may cost."""


@pytest.mark.parametrize("fill", TABLE)
def test_how_many_transactions_a_claim_costs(fill: int) -> None:
    """The means over nodes and random fills of a pool of 1,024 blocks stay under the table's."""
    big, random = of_blocks(1024), Random(fill)  # noqa: S311 - a seed, not a secret
    costs = []
    for number in range(60):
        taken = Taken(big.block(index) for index in random.sample(range(1024), 1024 * fill // 100))
        assert taken.look(Search(f"node-{number}", big)) is not None
        costs.append(taken.transactions)
    assert mean(costs) <= TABLE[fill]


# --- the change set -------------------------------------------------------------------------------------------


def test_a_claim_is_affinity_handle_and_block_with_a_share_of_the_reserve() -> None:
    """One change set, in an order of which each prefix is safe; the block is only made, never overwritten."""
    case = Case()
    case.pool("p", "10.0.0.0/16")
    from ipamd.store.claim import claim

    changes = claim(case.ledger, case.known, case.ledger.settings.pools["p"], parse_cidr("10.0.0.0/26"), case.now)
    kinds = [keys.kind_of(change.key) for change in changes]
    assert kinds[:3] == [keys.Kind.AFFINITY, keys.Kind.HANDLE, keys.Kind.BLOCK]
    assert all(change.value is None and not change.expected for change in changes[3:]), "larger blocks must be absent"
    assert changes[0].value == affinity_record("confirmed")
    assert changes[2].expected == 0
    assert case.cluster.commit(changes).chosen == 0
    assert case.cluster.handles() == case.cluster.counted() == {"ipamd-reserve-n1": {"10.0.0.0/26": 16}}


def test_a_block_whose_every_address_is_reserved_is_not_claimed() -> None:
    """A block inside an IPReservation has nothing to give: there is no change set."""
    from ipamd.store.claim import claim

    case = Case()
    case.pool("p", "10.0.0.0/16")
    case.put(keys.RESERVATIONS + "r", b'{"spec":{"reservedCIDRs":["10.0.0.0/26"]}}')
    assert claim(case.ledger, case.known, case.ledger.settings.pools["p"], parse_cidr("10.0.0.0/26"), case.now) == ()


# --- by the writer --------------------------------------------------------------------------------------------


def taken_block(cidr: Cidr) -> tuple[str, bytes]:
    """The record of a block of another node."""
    return keys.block_key(cidr), new_block(cidr, "host:other", 1).encode()


async def test_a_claim_never_lists_values(autojump_clock: trio.testing.MockClock) -> None:
    """A claim reads no values but its own records', and lists only keys beside its candidates."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/16"))
    target = of_blocks(1024)
    for index in range(1024):
        if index != 600:
            store.put(*taken_block(target.block(index)))
    async with Node("n1", store).running() as node:
        reads = store.calls["read"]
        await trio.sleep(1)
        assert list(node.ledger.blocks) == [str(target.block(600))]
        assert store.calls["read"] == reads
        assert store.calls["list"] <= 3 * node.writer.progress.transactions
        assert node.writer.progress.transactions <= 5


async def test_a_stale_affinity_of_this_node_does_not_stop_its_claim(autojump_clock: trio.testing.MockClock) -> None:
    """An affinity that this node already has for a block that is not there costs a conflict, not the block."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/26"))
    async with Node("n1", store).running() as node:
        store.put(keys.affinity_key("n1", parse_cidr("10.0.0.0/26")), affinity_record("pending"))
        await trio.sleep(1)
        assert node.ledger.available("p") == 16
        assert store.records[keys.affinity_key("n1", parse_cidr("10.0.0.0/26"))].value == affinity_record("confirmed")


async def test_the_only_block_of_a_pool_goes_to_one_of_many_nodes(autojump_clock: trio.testing.MockClock) -> None:
    """Ten nodes, one block: one gets it, the others, who may not borrow, find the pool exhausted, in words."""
    store = MemoryStore(delay=0.001)
    store.put(keys.CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":true}')
    store.put(*pool_record("p", "10.0.0.0/26"))
    nodes = [Node(f"n{number}", store) for number in range(10)]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(partial(_run, node))
        await trio.sleep(2)
        owners = [node for node in nodes if node.ledger.blocks]
        assert len(owners) == 1
        refused = [node for node in nodes if node.ledger.reserve("p", 0).refusal]
        assert len(refused) == 9
        with pytest.raises(RefusedError) as refusal:
            await refused[0].add(add_request("a"))
        assert refusal.value.code is Code.EXHAUSTED
        assert refusal.value.msg == (
            "cannot assign an IPv4 address to default/pod-a: pool p (10.0.0.0/26): none of its 1 blocks is free, "
            "and strictAffinity forbids addresses of other nodes' blocks; add a pool, or free addresses"
        )
        nursery.cancel_scope.cancel()


async def _run(node: Node) -> None:
    async with node.running():
        await trio.sleep_forever()


async def test_a_block_freed_in_an_exhausted_pool_is_found(autojump_clock: trio.testing.MockClock) -> None:
    """An ADD that comes after a refusal makes the node look again; what came free meanwhile is claimed and given."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("p", "10.0.0.0/25"))
    for cidr in ("10.0.0.0/26", "10.0.0.64/26"):
        store.put(*taken_block(parse_cidr(cidr)))
    async with Node("n1", store).running() as node:
        await trio.sleep(5)
        assert node.ledger.reserve("p", 0).closed is not None
        outcome = await store.commit(
            [
                Change(
                    keys.block_key(parse_cidr("10.0.0.64/26")),
                    None,
                    store.records[keys.block_key(parse_cidr("10.0.0.64/26"))].revision,
                )
            ]
        )
        assert outcome.chosen == 0
        assigned = await node.add(add_request("a"))
        assert assigned.places[0].block == "10.0.0.64/26"
