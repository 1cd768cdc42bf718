"""IPReservations: addresses that nobody gets by himself, also when made while pods run, also whole blocks and pools."""

import json

import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.errors import Code, RefusedError
from ipamd.core.reserve import ReservePolicy
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record
from tests.store.truth import at_rest, view

SMALL = ReservePolicy(minimum=2, maximum=4)


def reserve(store: MemoryStore, *cidrs: str) -> None:
    """``calicoctl apply`` of an IPReservation; without CIDRs it is deleted."""
    value = {"metadata": {"name": "resv"}, "spec": {"reservedCIDRs": cidrs}}
    store.put(keys.RESERVATIONS + "resv", json.dumps(value).encode() if cidrs else None)


@pytest.fixture
def store() -> MemoryStore:
    """A pool of 32 addresses, in two blocks."""
    made = MemoryStore(delay=0.001)
    made.put(*pool_record("p", "10.10.0.0/27", blockSize=28))
    return made


async def test_a_wholly_reserved_pool_gives_nothing_until_the_reservation_goes(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """As captured, it is refused, in words that name the cause; without the reservation the next ADD is served."""
    reserve(store, "10.10.0.0/24")
    async with Node("n1", store, SMALL).running() as node:
        with pytest.raises(RefusedError) as refusal:
            await node.add(add_request("a"))
        assert (refusal.value.code, refusal.value.msg) == (
            Code.EXHAUSTED,
            (
                "cannot assign an IPv4 address to default/pod-a: pool p (10.10.0.0/27): an IPReservation keeps all of "
                "its addresses, and no other node's has an address; add a pool, or change the IPReservation"
            ),
        )
        assert view(store).blocks() == {}
        reserve(store)
        await trio.sleep(0.1)
        await node.add(add_request("a"))


async def test_a_wholly_reserved_pool_is_passed_over_for_the_next(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """The second pool in name order serves."""
    store.put(*pool_record("q", "10.11.0.0/24"))
    reserve(store, "10.10.0.0/27")
    async with Node("n1", store, SMALL).running() as node:
        (address,) = node.addresses(await node.add(add_request("a")))
        assert address.startswith("10.11.0.")


async def test_a_reserved_block_is_never_claimed(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The other block serves, and when it is full the pool is."""
    reserve(store, "10.10.0.16/28")
    async with Node("n1", store, SMALL).running() as node:
        for number in range(16):
            await node.add(add_request(f"c{number}"))
        assert list(view(store).blocks()) == ["10.10.0.0/28"]
        with pytest.raises(RefusedError) as refusal:
            await node.add(add_request("full"))
        assert refusal.value.code is Code.EXHAUSTED


async def test_a_reservation_made_while_pods_run(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Pods keep what they have; what was in reserve is given to nobody and goes back; nothing of it comes again."""
    async with Node("n1", store, SMALL).running() as node:
        given = [await node.add(add_request(f"old{number}")) for number in range(6)]
        await node.flushed()
        reserve(store, "10.10.0.0/29", "10.10.0.16/29")
        await trio.sleep(1)
        for assigned in given:
            assert view(store).allocations()[assigned.places[0]][0] == assigned.handle
        at_rest(store, [node])
        node.delete("old0")
        await node.flushed()
        for number in range(10):
            (address,) = node.addresses(await node.add(add_request(f"new{number}")))
            assert int(address.rpartition(".")[2]) % 16 >= 8
        await node.flushed()
        reserved = {
            place.ordinal
            for place, (handle, _node, _kind) in view(store).allocations().items()
            if handle == "ipamd-reserve-n1"
        }
        assert not any(ordinal % 16 < 8 for ordinal in reserved)
        at_rest(store, [node])


async def test_an_ipv6_address_alone_is_reserved(autojump_clock: MockClock) -> None:
    """A single address, in a block of one and in a larger one."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("s", "fd00::/127", blockSize=128))
    reserve(store, "fd00::1")
    async with Node("n1", store, SMALL).running() as node:
        assert node.addresses(await node.add(add_request("a", 6))) == ["fd00::"]
        with pytest.raises(RefusedError):
            await node.add(add_request("b", 6))
