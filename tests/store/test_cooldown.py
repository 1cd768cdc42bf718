"""Cooldown, at the store: what a DEL writes, and when the address is handed out again."""

import json
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.errors import Code, RefusedError
from ipamd.core.reserve import ReservePolicy
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record
from tests.store.cases import Case

CIDR = "10.0.0.0/30"
KEY = keys.block_key(parse_cidr(CIDR))
SMALL = ReservePolicy(minimum=1, maximum=1)


def config(cooldown: int, **more: object) -> bytes:
    """The IPAM configuration, as calicoctl writes it."""
    fields = {"strict_affinity": False, "auto_allocate_blocks": True, **more, "ipCooldownSeconds": cooldown}
    return json.dumps(fields).encode()


def store_of_four(cooldown: int = 60, **more: object) -> MemoryStore:
    """A pool of four addresses in one block."""
    store = MemoryStore(delay=0.001)
    store.put(keys.CONFIG, config(cooldown, **more))
    store.put(*pool_record("p", CIDR, blockSize=30))
    return store


def owners(store: MemoryStore) -> list[dict[str, object] | None]:
    """The attribute of each ordinal of the block, None: free."""
    block = json.loads(store.records[KEY].value)
    return [None if index is None else block["attributes"][index] for index in block["allocations"]]


# --- one transaction ------------------------------------------------------------------------------------------


def case_of_four(cooldown: int = 60) -> Case:
    """A node with one block of four, all in reserve."""
    case = Case(ReservePolicy(minimum=4, maximum=4))
    case.put(keys.CONFIG, config(cooldown))
    case.pool("p", CIDR, blockSize=30)
    case.claim("p")
    return case


def test_a_del_lets_the_address_cool_and_ends_its_handle() -> None:
    """One transaction: the attribute is a time and nothing else, the handle is gone, the ordinal stays allocated."""
    case = case_of_four()
    place = case.add("a").places[0]
    case.flush()
    sequences = case.cluster.block(CIDR).sequences[str(place.ordinal)]
    case.delete("a")
    assert case.flush() == 1
    block = json.loads(case.cluster.records[KEY].value)
    assert block["attributes"][block["allocations"][place.ordinal]] == {"releasedAt": "2026-11-20T23:47:41Z"}
    assert place.ordinal not in block["unallocated"]
    assert case.cluster.block(CIDR).sequences[str(place.ordinal)] == sequences
    assert case.cluster.handles() == {"ipamd-reserve-n1": {CIDR: 3}}


def test_an_address_given_up_before_the_store_heard_of_it_cools_too() -> None:
    """It goes from the reserve to cooling, and the reserve's handle counts one less."""
    case = case_of_four()
    place = case.add("a").places[0]
    case.delete("a")
    assert case.flush() == 1
    assert case.cluster.block(CIDR).owner(place.ordinal).released_at == "2026-11-20T23:47:41Z"
    assert case.cluster.handles() == {"ipamd-reserve-n1": {CIDR: 3}}
    assert place.ordinal not in case.ledger.blocks[CIDR].line()


def test_whoever_next_writes_the_block_frees_what_has_cooled() -> None:
    """Calico's rule, ours too: a flush for another pod frees it on the way, and may reserve it."""
    case = case_of_four()
    place = case.add("a").places[0]
    case.flush()
    case.delete("a")
    case.flush()
    case.boot += 62_000_000_000
    case.add("b")
    assert case.flush() == 1
    owner = case.cluster.block(CIDR).owner(place.ordinal)
    assert owner is None or owner.handle == "ipamd-reserve-n1"
    assert case.cluster.handles() == case.cluster.counted()


def test_without_a_cooldown_what_still_cools_is_free_at_once() -> None:
    """The setting was turned off: nothing is kept back for it any more."""
    case = case_of_four()
    for name in "ab":
        case.add(name)
    case.flush()
    for name in "ab":
        case.delete(name)
    case.flush()
    assert case.ledger.available("p") == 2
    case.put(keys.CONFIG, config(0))
    case.flush()
    assert case.ledger.available("p") == 4


def test_a_living_pods_address_is_written_back_over_a_release() -> None:
    """An operator released the address of a living pod, and it cools: the next flush makes it the pod's again."""
    case = case_of_four()
    place = case.add("a").places[0]
    case.flush()
    case.cluster.cool(place, case.now.unix)
    case.hear()
    case.flush()
    assert case.cluster.allocations()[place][0] == "k8s-pod-network.a"
    assert case.cluster.handles() == case.cluster.counted()


# --- a node, over time ----------------------------------------------------------------------------------------


async def test_an_address_is_not_handed_out_before_it_has_cooled(autojump_clock: MockClock) -> None:
    """Pods that come and go, faster than flushes: no address is used twice within the cooldown."""
    store = store_of_four(cooldown=60)
    store.put(*pool_record("p", "10.0.0.0/26", blockSize=30))
    given: dict[str, list[float]] = {}
    async with Node("n1", store, ReservePolicy(minimum=2, maximum=4)).running() as node:
        for number in range(40):
            assigned = await node.add(add_request(f"c{number}"))
            (address,) = node.addresses(assigned)
            given.setdefault(address, []).append(trio.current_time())
            await trio.sleep((number % 3) * 5)
            given[address].append(trio.current_time())
            node.delete(f"c{number}")
    reused = [times for times in given.values() if len(times) > 2]
    assert reused, "the pool is too large to show anything"
    for times in reused:
        for released, again in list(pairwise(times))[1::2]:
            assert again - released >= 60


async def test_a_pool_that_cools_refuses_and_then_serves_again(autojump_clock: MockClock) -> None:
    """All four addresses cool: an ADD is refused as exhausted; a minute later the next one has an address."""
    store = store_of_four()
    async with Node("n1", store, SMALL).running() as node:
        for name in "abcd":
            await node.add(add_request(name))
        for name in "abcd":
            node.delete(name)
        await node.flushed()
        assert all(list(owner) == ["releasedAt"] for owner in owners(store))
        with pytest.raises(RefusedError) as refusal:
            await node.add(add_request("e"))
        assert refusal.value.code is Code.EXHAUSTED
        await trio.sleep(55)
        with pytest.raises(RefusedError):
            await node.add(add_request("e"))
        await trio.sleep(8)
        await node.add(add_request("e"))


async def test_what_has_cooled_fills_the_reserve_by_itself(autojump_clock: MockClock) -> None:
    """Nobody asks: within a tick of the writer the reserve has an address again."""
    store = store_of_four()
    async with Node("n1", store, SMALL).running() as node:
        for name in "abcd":
            await node.add(add_request(name))
        for name in "abcd":
            node.delete(name)
        await node.flushed()
        released = store.records[KEY]
        await trio.sleep(59)
        assert store.records[KEY] == released, "nothing is written while they cool"
        await trio.sleep(8)
        assert node.ledger.available("p") == 1


async def test_a_restart_does_not_shorten_or_forget_a_cooldown(autojump_clock: MockClock) -> None:
    """The store holds when it began: a daemon started in between goes on from there, also without its state file."""
    store = store_of_four()
    for facts in (None, []):
        first = Node("n1", store, SMALL)
        async with first.running() as node:
            for name in "abcd":
                await node.add(add_request(name))
            for name in "abcd":
                node.delete(name)
            await node.flushed()
            await trio.sleep(30)
        async with Node("n1", store, SMALL, first.journal if facts is None else facts).running() as node:
            await trio.sleep(25)
            assert node.ledger.available("p") == 0
            await trio.sleep(12)
            assert node.ledger.available("p") == 1


async def test_a_del_that_the_store_did_not_hear_of_cools_after_a_restart(autojump_clock: MockClock) -> None:
    """The daemon died before its flush: the released address does not come back into the reserve."""
    store = store_of_four()
    first = Node("n1", store, ReservePolicy(minimum=4, maximum=4))
    async with first.running() as node:
        await trio.sleep(1)
        assert node.ledger.available("p") == 4
        store.away = True
        (address,) = node.addresses(await node.add(add_request("a")))
        node.delete("a")
    store.away = False
    async with Node("n1", store, ReservePolicy(minimum=4, maximum=4), first.journal).running() as node:
        others = {address for name in "bcd" for address in node.addresses(await node.add(add_request(name)))}
        assert address not in others
        await node.flushed()
        ordinal = int(address.rpartition(".")[2])
        assert list(owners(store)[ordinal]) == ["releasedAt"]


async def test_a_refusal_says_that_addresses_cool(autojump_clock: MockClock) -> None:
    """Who finds a pool exhausted because its addresses cool is told so, and that waiting helps."""
    async with Node("n1", store_of_four(), SMALL).running() as node:
        for name in "abcd":
            await node.add(add_request(name))
        for name in "abc":
            node.delete(name)
        await node.flushed()
        with pytest.raises(
            RefusedError, match=r"3 of this node's addresses cool \(ipCooldownSeconds\), .* wait, add a pool"
        ):
            await node.add(add_request("e"))
