"""Handles that no block knows are removed, slowly; no handle that anybody might be about to use."""

import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.records import BlockRecord, attribute, new_block
from ipamd.store import handles
from tests.memory_store import MemoryStore
from tests.nodes import EPOCH, Node, add_request, pool_record

MINUTE = 60
GRACE = handles.GRACE / 1e9
ROUND = 5 * MINUTE
"""Enough for the walk to come by twice, in a store with few handles."""


@pytest.fixture
def store() -> MemoryStore:
    """A store with one IPv4 pool of four blocks."""
    made = MemoryStore(delay=0.001)
    made.put(*pool_record("p", "10.0.0.0/24"))
    return made


def leak(store: MemoryStore, handle: str, *cidrs: str) -> str:
    """Write a handle that says that it has an address of each of these blocks; returns its key."""
    blocks = ",".join(f'"{cidr}":1' for cidr in cidrs)
    store.put(keys.handle_key(handle), f'{{"block":{{{blocks}}},"deleted":false}}'.encode())
    return keys.handle_key(handle)


def other_block(store: MemoryStore, cidr: str, *known: str) -> None:
    """A block of another node, that knows these handles."""
    record = new_block(parse_cidr(cidr), "host:n2", EPOCH)
    for ordinal, handle in enumerate(known):
        record.take({ordinal}, attribute(handle, {"node": "n2"}))
    store.put(keys.block_key(parse_cidr(cidr)), record.encode())


async def test_a_handle_that_no_block_knows_goes(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Not before it has been so for a quarter of an hour; what pods and the reserve hold by stays as it is."""
    async with Node("n1", store).running() as node:
        await node.add(add_request("lives"))
        await node.flushed()
        (own,) = node.ledger.blocks
        before = set(store.records)
        key = leak(store, "k8s-pod-network.gone", own)
        await trio.sleep(2 * GRACE - ROUND)  # the walk begins after as long
        assert key in store.records
        await trio.sleep(2 * ROUND)
        assert set(store.records) == before
        assert node.writer.progress.leaked_handles == 1
        assert "removed a handle that no block knows" in node.reports


@pytest.mark.parametrize(
    "value",
    [
        b'{"block":{"10.0.9.0/26":1},"deleted":false}',
        b'{"block":{"10.0.0.128/26":1},"deleted":false}',
        b'{"block":{},"deleted":false}',
        b"nonsense",
    ],
    ids=["a block that is gone", "another node's block", "no block", "nonsense"],
)
async def test_a_handle_that_this_node_cannot_judge_is_left_alone(
    autojump_clock: MockClock, store: MemoryStore, value: bytes
) -> None:
    """Its blocks are other nodes' or gone, or it cannot be understood."""
    other_block(store, "10.0.0.128/26")
    async with Node("n1", store).running() as node:
        await node.add(add_request("lives"))
        key = keys.handle_key("k8s-pod-network.other")
        store.put(key, value)
        await trio.sleep(4 * GRACE)
        assert key in store.records
        assert node.writer.progress.leaked_handles == 0


async def test_a_handle_that_one_of_its_blocks_knows_is_kept(autojump_clock: MockClock, store: MemoryStore) -> None:
    """It counts an address of this node's block that is gone, and one of another's that is there."""
    other_block(store, "10.0.0.128/26", "k8s-pod-network.half")
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        (own,) = node.ledger.blocks
        key = leak(store, "k8s-pod-network.half", own, "10.0.0.128/26")
        await trio.sleep(4 * GRACE)
        assert key in store.records


async def test_a_handle_that_changes_is_somebodys(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Who allocates writes the handle first: with each change the time begins anew."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        (own,) = node.ledger.blocks
        for _ in range(20):
            key = leak(store, "k8s-pod-network.busy", own)
            await trio.sleep(GRACE - ROUND)
            assert key in store.records


async def test_a_handle_that_is_taken_in_the_last_moment_is_kept(
    autojump_clock: MockClock, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calico's plugin counts up the handle between the look and the removal: the removal is refused."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        (own,) = node.ledger.blocks
        key = leak(store, "k8s-pod-network.late", own)
        commit, refused = store.commit, []

        async def taken_first(*alternatives: object, **options: object) -> object:
            if [change.key for change in alternatives[0]] == [key]:  # type: ignore[attr-defined]
                leak(store, "k8s-pod-network.late", own)
                refused.append(key)
            return await commit(*alternatives, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "commit", taken_first)
        await trio.sleep(3 * GRACE)
        assert refused
        assert key in store.records
        assert node.writer.progress.leaked_handles == 0


async def test_a_block_that_cannot_be_read_may_know_every_handle(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Nothing is removed that names it."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        (own,) = node.ledger.blocks
        key = leak(store, "k8s-pod-network.unclear", own, "10.0.0.128/26")
        store.put(keys.block_key(parse_cidr("10.0.0.128/26")), b"nonsense")
        await trio.sleep(4 * GRACE)
        assert key in store.records


async def test_many_handles_cost_a_node_a_few_calls_a_minute(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A thousand leaked ones go at no more than ten a minute, for at most three reads and ten transactions."""
    async with Node("n1", store).running() as node:
        await node.add(add_request("lives"))
        await node.flushed()
        (own,) = node.ledger.blocks
        before = set(store.records)
        for number in range(1000):
            leak(store, f"k8s-pod-network.gone{number}", own)
        await trio.sleep(2 * GRACE)
        removed = 0
        while set(store.records) != before:
            calls = dict(store.calls)
            await trio.sleep(MINUTE)
            assert store.calls["read"] + store.calls["list"] - calls["read"] - calls["list"] <= 6
            assert store.calls["commit"] - calls["commit"] <= 2 * handles.REMOVALS
            assert node.writer.progress.leaked_handles - removed <= 2 * handles.REMOVALS
            removed = node.writer.progress.leaked_handles
        assert removed == 1000
        assert BlockRecord(store.records[keys.block_key(parse_cidr(own))].value).count("k8s-pod-network.lives") == 1
