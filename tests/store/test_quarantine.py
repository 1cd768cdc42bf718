"""What another instance of this node had in reserve: nobody's for a while, because some of it may be living pods'."""

import pytest
import trio
import trio.testing

from ipamd.core import keys, supply
from ipamd.core.address import parse_cidr
from ipamd.core.check import check
from ipamd.core.facts import Committed
from ipamd.core.ledger import Ledger
from ipamd.core.reserve import ReservePolicy
from ipamd.store.base import Change
from tests.core.blocks import image
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record
from tests.store.truth import view

HOUR = 3600


@pytest.fixture
async def store() -> MemoryStore:
    """A store with a pool of one block."""
    made = MemoryStore()
    await made.commit([Change(*pool_record("four", "10.0.0.0/27", blockSize=27), 0)])
    return made


def with_reserve(name: str, store: MemoryStore, instance: str) -> Node:
    """A node that keeps four addresses in reserve, with the state file of this name."""
    return Node(name, store, ReservePolicy(minimum=4), instance=instance)


async def settled(node: Node) -> None:
    """Wait until the node has what it wants in reserve."""
    while node.ledger.available("four") < 4:
        await trio.sleep(0.01)


async def test_what_a_lost_state_file_promised_is_handed_to_nobody(
    store: MemoryStore, autojump_clock: trio.testing.MockClock
) -> None:
    """An ADD was acknowledged, and the state file lost before the flush: its successor gives others other addresses."""
    first = with_reserve("n1", store, "aaaaaaaa")
    async with first.running():
        await settled(first)
        promised = {first.ledger.blocks["10.0.0.0/27"].line()[number] for number in range(4)}
    second = with_reserve("n1", store, "bbbbbbbb")
    async with second.running():
        await settled(second)
        block = second.ledger.blocks["10.0.0.0/27"]
        assert set(block.stranded) == promised
        got = [(await second.add(add_request(f"c{number}"))).places[0].ordinal for number in range(20)]
        assert not promised & set(got)
        await trio.sleep(HOUR - 60)
        assert set(block.stranded) == promised
        assert not promised & set(block.record.unallocated if block.record else ())
        assert check(second.ledger) == []


async def test_after_the_quarantine_it_is_free(store: MemoryStore, autojump_clock: trio.testing.MockClock) -> None:
    """An hour later it is given back, its handle goes, and nothing of it is left."""
    async with with_reserve("n1", store, "aaaaaaaa").running() as first:
        await settled(first)
    second = with_reserve("n1", store, "bbbbbbbb")
    async with second.running():
        await settled(second)
        assert len(second.ledger.quarantine["ipamd-reserve-n1.aaaaaaaa"].places) == 4
        await trio.sleep(HOUR + 10)
        block = second.ledger.blocks["10.0.0.0/27"]
        assert block.stranded == {}
        assert second.ledger.quarantine == {}
        assert keys.handle_key("ipamd-reserve-n1.aaaaaaaa") not in store.records
        assert keys.handle_key("ipamd-reserve-n1.bbbbbbbb") in store.records


def test_the_quarantine_begins_anew_when_it_changes() -> None:
    """A reserve that changes is another host's, and alive: what is left of it is not given back."""
    ledger = Ledger("n1", ReservePolicy(), None, "bbbbbbbb")
    block = ledger._block("10.0.0.0/27")
    block.stranded = {1: "ipamd-reserve-n1.aaaaaaaa", 2: "ipamd-reserve-n1.aaaaaaaa"}
    assert supply.outlived(ledger, 100, 0) == []
    assert supply.outlived(ledger, 100, 99) == []
    block.stranded.pop(1)
    assert supply.outlived(ledger, 100, 100) == []
    assert supply.outlived(ledger, 100, 199) == []
    (released,) = supply.outlived(ledger, 100, 200)
    assert [place.ordinal for place in released.places] == [2]
    block.releasing[2] = "ipamd-reserve-n1.aaaaaaaa"
    assert supply.outlived(ledger, 100, 201) == []


@pytest.mark.parametrize(
    ("handle", "stranded"),
    [
        ("ipamd-reserve-n1", True),
        ("ipamd-reserve-n1.aaaaaaaa", True),
        ("ipamd-reserve-n1.bbbbbbbb", False),
        ("ipamd-reserve-n2.aaaaaaaa", False),
        ("ipamd-reserve-n1.x.aaaaaaaa", False),
        ("ipamd-reserve-n", False),
    ],
)
def test_only_this_nodes_name_counts(handle: str, stranded: bool) -> None:
    """Another node's reserve is its own affair, also where one name begins like the other."""
    ledger = Ledger("n1", ReservePolicy(), None, "bbbbbbbb")
    value = image("10.0.0.0/29", {1: handle, 2: "ipamd-reserve-n1.bbbbbbbb"})
    ledger.apply(Committed(keys.block_key(parse_cidr("10.0.0.0/29")), 1, value))
    assert set(ledger.blocks["10.0.0.0/29"].stranded) == ({1} if stranded else set())


async def test_what_a_lost_state_file_had_borrowed_goes_back_too(autojump_clock: trio.testing.MockClock) -> None:
    """Its reserve in another node's block is found by its handle, kept from everybody for an hour, and then freed.

    That of a node whose name begins with this one's is not touched.
    """
    store = MemoryStore()
    store.put(*pool_record("four", "10.0.0.0/27", blockSize=27))
    lender, first = with_reserve("n2", store, "cccccccc"), with_reserve("n1", store, "aaaaaaaa")
    async with lender.running():
        await settled(lender)
        async with first.running():
            place = (await first.add(add_request("a"))).places[0]
            await first.flushed()
        neighbour = with_reserve("n10", store, "dddddddd")
        async with neighbour.running():
            await neighbour.add(add_request("b"))
            second = with_reserve("n1", store, "bbbbbbbb")
            async with second.running():
                await trio.sleep(1)
                (block,) = second.ledger.blocks.values()
                assert set(block.stranded.values()) == {"ipamd-reserve-n1.aaaaaaaa"}
                await trio.sleep(HOUR + 10)
                assert not block.stranded
                record = view(store).block("10.0.0.0/27")
                assert record is not None
                assert record.count("ipamd-reserve-n1.aaaaaaaa") == 0
                assert keys.handle_key("ipamd-reserve-n1.aaaaaaaa") not in store.records
                assert view(store).allocations()[place][0] == "k8s-pod-network.a"
                assert view(store).handles() == view(store).counted()
