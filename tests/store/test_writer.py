"""Claim, reserve and flush on a store in memory, under a virtual clock."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.records import BlockRecord, attribute
from ipamd.core.reserve import ReservePolicy
from ipamd.store import batch
from ipamd.store.base import ChangeSet, KeyRange, Outcome
from ipamd.store.draft import PORTION, Draft
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record


@pytest.fixture
def store() -> MemoryStore:
    """A store that takes a millisecond a call and has one IPv4 and one IPv6 pool."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("default-ipv4-ippool", "192.168.0.0/16", blockSize=26))
    store.put(*pool_record("default-ipv6-ippool", "fd00:10:244::/64", blockSize=122))
    return store


def block_of(store: MemoryStore, cidr: str) -> dict[str, Any]:
    """A block's record as it is in the store."""
    return json.loads(store.records[keys.block_key(keys.parse_cidr(cidr))].value)


async def test_a_node_claims_a_block_of_each_version_before_the_first_pod(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """A node that just started has one block of each IP version, with a reserve in it, in one transaction each."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        assert [block.available for block in node.ledger.blocks.values()] == [16, 16]
        assert store.calls["commit"] == 2


async def test_an_add_from_the_reserve_makes_no_call_to_the_store(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """An ADD is answered while the store is away, from what it already gave the node."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        store.away = True
        calls = dict(store.calls)
        assigned = await node.add(add_request("a", 4, 6))
        assert len(assigned.places) == 2
        assert store.calls == calls


async def test_a_flush_writes_block_and_handles_together(autojump_clock: MockClock, store: MemoryStore) -> None:
    """After a flush the block names the pod, and its handle counts the address; the reserve is full again."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        assigned = await node.add(add_request("a"))
        await node.flushed()
        block = block_of(store, assigned.places[0].block)
        index = block["allocations"][assigned.places[0].ordinal]
        assert block["attributes"][index]["handle_id"] == "k8s-pod-network.a"
        handle = json.loads(store.records[keys.handle_key("k8s-pod-network.a")].value)
        assert handle == {"block": {assigned.places[0].block: 1}, "deleted": False}
        assert node.ledger.available("default-ipv4-ippool") >= 15


class Turns(trio.abc.Instrument):
    """Counts the turns of the event loop: in each whoever has a request is answered."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, _timeout: float) -> None:
        self.count += 1


async def test_requests_are_answered_while_a_transaction_is_written(
    autojump_clock: MockClock, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of a full transaction are made in portions, and others have a turn after each of them."""
    turns, decided, written = Turns(), [], []

    def gather(*arguments: Any) -> Draft | None:
        decided.append(turns.count)
        return original(*arguments)

    async def sync() -> None:
        written.append(turns.count)  # it is about to be sent

    original = batch.gather
    monkeypatch.setattr(batch, "gather", gather)
    async with Node("n1", store, ReservePolicy(64, 64), durable=sync).running() as node:
        await trio.sleep(1)
        trio.lowlevel.add_instrument(turns)
        for index in range(60):
            await node.add(add_request(f"c{index}"))
        decided.clear()
        written.clear()
        await node.flushed()
    assert written[0] - decided[0] > 60 // PORTION


@pytest.mark.parametrize("syncing", [False, True])
async def test_what_was_written_as_the_store_was_set_back_is_not_sent(
    autojump_clock: MockClock, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, syncing: bool
) -> None:
    """A transaction that expects revisions of a history that is no more is not sent; after a full look a new one is.

    Be it noticed while it is written, or while the state file is synced.
    """
    believed: list[bool] = []
    distrusted = True

    def distrust() -> None:
        nonlocal distrusted
        if not distrusted:
            distrusted = True
            node.sync.distrust()

    def write(draft: Draft) -> Iterator[None]:
        for portion in original(draft):
            if not syncing:
                distrust()
            yield portion

    async def sync() -> None:
        await trio.lowlevel.checkpoint()
        if syncing:
            distrust()

    async def commit(*sets: ChangeSet, window: KeyRange | None = None) -> Outcome:
        believed.append(node.ledger.synced)
        return await MemoryStore.commit(store, *sets, window=window)

    original = Draft.write
    async with Node("n1", store, durable=sync).running() as node:
        await trio.sleep(1)
        monkeypatch.setattr(Draft, "write", write)
        monkeypatch.setattr(store, "commit", commit)
        distrusted = False
        await node.add(add_request("a"))
        await node.flushed()
    assert distrusted
    assert believed
    assert all(believed)


async def test_what_is_given_up_while_its_transaction_is_written_is_handed_to_nobody(
    autojump_clock: MockClock, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DEL between two portions: the transaction gives the address to the dead pod, so it is not in reserve again."""
    settled: list[bool] = []

    def write(draft: Draft) -> Iterator[None]:
        for portion in original(draft):
            if node.ledger.holdings:
                node.delete("a")
                settled.append(node.ledger.settle())
            yield portion

    original = Draft.write
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        monkeypatch.setattr(Draft, "write", write)
        await node.add(add_request("a"))
        await node.flushed()
    assert settled == [False]


@pytest.mark.parametrize(("pods", "least", "most"), [(7, 0.1, 0.11), (8, 0.02, 0.03)])
async def test_a_reserve_that_is_half_used_up_is_filled_sooner(
    autojump_clock: MockClock, store: MemoryStore, pods: int, least: float, most: float
) -> None:
    """Changes are gathered for a tenth of a second, but not while few addresses are left for the pods to come."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        commits, began = store.calls["commit"], trio.current_time()
        for index in range(pods):
            await node.add(add_request(f"c{index}"))
        await node.flushed()
        assert least <= trio.current_time() - began <= most
        assert store.calls["commit"] == commits + 1


async def test_a_deleted_pod_leaves_no_record(autojump_clock: MockClock, store: MemoryStore) -> None:
    """After DEL and flush the ordinal is free, or in reserve, and the handle is gone."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        await node.add(add_request("a", 4, 6))
        await node.flushed()
        node.delete("a")
        await node.flushed()
        assert keys.handle_key("k8s-pod-network.a") not in store.records
        assert all(b"k8s-pod-network.a" not in record.value for record in store.records.values())


async def test_a_burst_is_served_from_new_blocks_in_few_transactions(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """1,000 ADDs at once get 1,000 addresses, with at most 80 transactions."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        before = store.calls["commit"]
        got: list[str] = []

        async def one(index: int) -> None:
            got.extend(node.addresses(await node.add(add_request(f"c{index}"))))

        async with trio.open_nursery() as nursery:
            for index in range(1000):
                nursery.start_soon(one, index)
        await node.flushed()
        assert len(set(got)) == 1000
        assert store.calls["commit"] - before <= 80


async def test_a_lost_reply_is_one_more_look(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A commit that took effect although its reply was lost neither repeats nor loses anything."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        store.lose_replies = 1
        assigned = await node.add(add_request("a"))
        await node.flushed()
        block = block_of(store, assigned.places[0].block)
        assert sum(1 for attribute in block["attributes"] if attribute["handle_id"] == "k8s-pod-network.a") == 1
        assert json.loads(store.records[keys.handle_key("k8s-pod-network.a")].value)["block"] == {
            assigned.places[0].block: 1
        }


async def test_a_deleted_pod_with_a_borrowed_address_is_found_by_its_handle(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """A DEL of a pod to which Calico's plugin gave an address of another node's block releases it there."""
    async with Node("n2", store).running() as lender:
        await trio.sleep(1)
        foreign = next(b for b in lender.ledger.blocks.values() if b.net.family == 4)
        record = BlockRecord(foreign.value)
        ordinal = record.unallocated[0]
        record.take({ordinal}, attribute("k8s-pod-network.guest", {"node": "n1", "pod": "p", "namespace": "default"}))
        store.put(keys.block_key(foreign.net), record.encode())
        store.put(keys.handle_key("k8s-pod-network.guest"), json.dumps({"block": {foreign.cidr: 1}}).encode())
        async with Node("n1", store).running() as node:
            await trio.sleep(1)
            node.delete("guest")
            await trio.sleep(1)
            assert keys.handle_key("k8s-pod-network.guest") not in store.records
            assert block_of(store, foreign.cidr)["allocations"][ordinal] is None


async def test_a_dual_stack_pod_of_two_pools_that_only_it_names(autojump_clock: MockClock, store: MemoryStore) -> None:
    """What was reserved of the one pool is kept while the other is asked for, also when nobody else uses either."""
    store.put(*pool_record("z-four", "10.21.0.0/24", blockSize=32, assignmentMode="Manual"))
    store.put(*pool_record("z-six", "fd01::/64", blockSize=128, assignmentMode="Manual"))
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        request = replace(add_request("a", 4, 6), named={4: ("z-four",), 6: ("z-six",)})
        began = trio.current_time()
        four, six = node.addresses(await node.add(request))
        assert (four.rpartition(".")[0], six.partition("::")[0]) == ("10.21.0", "fd01")
        assert trio.current_time() - began < 1
        assert [node.ledger.reserve(name, 0).waiting for name in ("z-four", "z-six")] == [0, 0]
