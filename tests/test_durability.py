"""What a reply waits for with ``durability = "etcd"``, where the store answers otherwise than hoped."""

import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.errors import RefusedError
from ipamd.core.facts import Committed, Fact, Place, RangeAssigned, RangeReleased, Released
from ipamd.durability import Durability
from tests.core.blocks import RESERVE, assigned, attachment, image
from tests.memory_store import MemoryStore
from tests.nodes import Node

CIDR = "10.0.0.0/29"
KEY = keys.block_key(parse_cidr(CIDR))


@pytest.fixture
def node() -> Node:
    """One that gave an address to a container, of which the store does not know yet."""
    node = Node("n1", MemoryStore())
    node.ledger.apply(Committed(KEY, 5, image(CIDR, {0: RESERVE})))
    node.ledger.apply(assigned("a", (CIDR, 0)))
    return node


async def refused(node: Node, news: Fact) -> list[str]:
    """What an ADD and its repetition are told that wait for the store when ``news`` come."""
    durability = Durability(node.ledger, node.journal.extend, trio.lowlevel.checkpoint, lambda: None)
    durability.writer = node.writer
    words: list[str] = []

    async def wait() -> None:
        with pytest.raises(RefusedError) as refusal:
            await durability.flushed([assigned("a", (CIDR, 0))])
        words.append(str(refusal.value))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        node.ledger.apply(news)
    return words


async def test_an_address_that_turns_out_to_be_another_pods_is_given_to_nobody(
    autojump_clock: MockClock, node: Node
) -> None:
    """Neither the ADD nor its repetition, which waited as well, is answered with it."""
    words = await refused(node, Committed(KEY, 6, image(CIDR, {0: "k8s-pod-network.other"})))
    assert len(words) == 2
    assert node.ledger.holdings == {}


async def test_an_address_given_up_while_the_store_is_told_is_no_answer(autojump_clock: MockClock, node: Node) -> None:
    """A DEL overtook the ADD: nobody may be told of an address that the next pod may have."""
    gone = Released(attachment("a"), attachment("a").handle, assigned("a", (CIDR, 0)).places, 7)
    words = await refused(node, gone)
    assert all("given up before it was durable; the runtime will try again" in each for each in words)
    assert len(words) == 2


@pytest.mark.parametrize("ranges", [False, True])
async def test_an_address_given_up_while_the_disk_is_told_is_no_answer(node: Node, ranges: bool) -> None:
    """The same with ``durability = "fsync"``, also of host-local ranges."""
    given: Fact = assigned("a", (CIDR, 0))
    gone: Fact = Released(attachment("a"), attachment("a").handle, (Place(CIDR, 0),), 7)
    if ranges:
        given, gone = RangeAssigned(attachment("a"), ("10.9.0.2",), {}, 0), RangeReleased(attachment("a"))
        node.ledger.apply(given)

    async def sync() -> None:
        node.ledger.apply(gone)

    durability = Durability(node.ledger, node.journal.extend, sync, lambda: None)
    with pytest.raises(RefusedError, match="given up before it was durable"):
        await durability.synced([given])
    await durability.synced([gone])
