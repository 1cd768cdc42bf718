"""Requested addresses that are not in the reserve: reserved, claimed, borrowed or refused by the writer."""

import json
import random
import re
from collections.abc import Callable

import msgspec
import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.address import parse_address, parse_cidr
from ipamd.core.errors import RefusedError
from ipamd.core.facts import Assigned, Place
from ipamd.core.records import BlockRecord, pressure_record
from ipamd.core.request import AddRequest
from ipamd.store.base import Change
from tests.core.snapshot import differences, replay, snapshot
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, now, pool_record
from tests.store.truth import at_rest, nobody_shares, view


@pytest.fixture
def store() -> MemoryStore:
    """A store that takes a millisecond a call and has a pool of sixteen IPv4 blocks, and one of IPv6."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("four", "10.0.0.0/22", blockSize=26))
    store.put(*pool_record("six", "fd00::/112", blockSize=122))
    return store


def asking(container: str, *addresses: str) -> AddRequest:
    """An ADD that asks for addresses."""
    return msgspec.structs.replace(add_request(container), addresses=dict(map(parse_address, addresses)))


def place_of(address: str) -> Place:
    """The place of an address in a block of 64."""
    family, value = parse_address(address)
    cidr = parse_cidr(f"{address.rpartition('.')[0]}.{value & 0xC0}/26" if family == 4 else "fd00::/122")
    return Place(str(cidr), value & 63)


async def refusal(node: Node, request: AddRequest) -> tuple[int, str]:
    """Code and text with which an ADD is refused."""
    with pytest.raises(RefusedError) as caught:
        await node.add(request)
    return int(caught.value.code), caught.value.msg


def free_address(node: Node, *, family: int = 4) -> str:
    """An address of this node's own block that is not in reserve."""
    block = next(block for block in node.ledger.blocks.values() if block.net.family == family)
    assert block.record is not None
    return block.address(block.record.unallocated[-1])


def reserve_cidr(store: MemoryStore, cidr: str) -> None:
    """Make an IPReservation."""
    store.put(keys.RESERVATIONS + "r", json.dumps({"spec": {"reservedCIDRs": [cidr]}}).encode())


async def test_an_unreserved_address_of_our_own_block_is_reserved(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """One transaction reserves exactly that ordinal, without a look; then the pod has it, in store and state file."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        wanted, reads = free_address(node), store.calls["read"]
        assigned = await node.add(asking("a", wanted))
        assert node.addresses(assigned) == [wanted]
        assert store.calls["read"] == reads
        await node.flushed()
        at_rest(store, [node])
        assert not node.ledger.wanted
        assert not differences(snapshot(replay("n1", node.ledger.policy, node.journal)), snapshot(node.ledger))


async def test_a_reservation_does_not_stop_it(autojump_clock: MockClock, store: MemoryStore) -> None:
    """An IPReservation keeps an address from automatic assignment only; released, it is kept from others again."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        block = next(iter(node.ledger.blocks.values()))
        reserve_cidr(store, str(block.net))
        await trio.sleep(1)
        assert block.available == 0
        wanted = block.address(5)
        assert node.addresses(await node.add(asking("a", wanted))) == [wanted]
        replayed = replay("n1", node.ledger.policy, node.journal)
        assert not differences(snapshot(replayed), snapshot(node.ledger))
        assert not replayed.blocks[block.cidr].withdrawn
        await node.flushed()
        nobody_shares(store, [node])
        node.delete("a")
        await node.flushed()
        await trio.sleep(1)
        assert view(store).allocations().keys().isdisjoint(block.place(o) for o in range(64))


async def test_a_block_that_does_not_exist_is_claimed(autojump_clock: MockClock, store: MemoryStore) -> None:
    """That very block, in one transaction, with this ordinal alone in reserve; the limit on blocks does not count."""
    store.put(keys.CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":false,"maxBlocksPerHost":1}')
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        assigned = await node.add(asking("a", "10.0.2.77"))
        assert node.addresses(assigned) == ["10.0.2.77"]
        claimed = view(store).block("10.0.2.64/26")
        assert claimed is not None
        assert claimed.affinity == "host:n1"
        assert set(view(store).allocations()) == {Place("10.0.2.64/26", 13)}
        await node.flushed()
        at_rest(store, [node])


async def test_both_ip_versions_of_blocks_that_do_not_exist(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Both are supplied, and assigned in one step."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        assigned = await node.add(asking("a", "10.0.3.3", "fd00::1234"))
        assert node.addresses(assigned) == ["10.0.3.3", "fd00::1234"]
        await node.flushed()
        at_rest(store, [node])


async def test_two_addresses_of_one_new_block(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Two pods at once: one claim has both ordinals."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        got = []

        async def ask(container: str, address: str) -> None:
            got.extend(node.addresses(await node.add(asking(container, address))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "a", "10.0.2.77")
            nursery.start_soon(ask, "b", "10.0.2.78")
        assert sorted(got) == ["10.0.2.77", "10.0.2.78"]
        await node.flushed()
        at_rest(store, [node])


async def test_an_address_of_another_nodes_block_is_borrowed(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Without strict affinity: the other node keeps its block, this pod the address, until its DEL."""
    async with Node("n1", store).running() as one, Node("n2", store).running() as two:
        await trio.sleep(1)
        wanted = free_address(two)
        assert one.addresses(await one.add(asking("a", wanted))) == [wanted]
        await one.flushed()
        assert view(store).allocations()[place_of(wanted)] == ("k8s-pod-network.a", "n1", "")
        at_rest(store, [one, two])
        one.delete("a")
        await one.flushed()
        at_rest(store, [one, two])
        assert place_of(wanted) not in view(store).allocations()
        assert place_of(wanted).block not in one.ledger.blocks


def reserved_address(node: Node) -> str:
    """An address of this node's own block that it has in reserve, in the middle of the line."""
    block = next(block for block in node.ledger.blocks.values() if block.net.family == 4)
    return block.address(block.line()[3])


async def test_another_node_gives_an_address_out_of_its_reserve(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A pod moves with its address: the node whose reserve has it is asked for this one, and keeps all others."""
    async with Node("n1", store).running() as one, Node("n2", store).running() as two:
        await trio.sleep(1)
        wanted, others = reserved_address(two), two.ledger.available("four")
        began = trio.current_time()
        assert one.addresses(await one.add(asking("a", wanted))) == [wanted]
        assert trio.current_time() - began < 0.2
        await one.flushed()
        await trio.sleep(1)
        at_rest(store, [one, two])
        assert two.ledger.available("four") == others
        assert not any(node.ledger.reserve("four", 0).pressed_until for node in (one, two))
        assert not differences(snapshot(replay("n2", two.ledger.policy, two.journal)), snapshot(two.ledger))
        assert not [key for key in store.records if key.startswith(keys.PRESSURE)], "what was asked is taken back"


async def test_a_node_that_is_away_keeps_its_reserve(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Nobody answers for a second and a half: code 104 names the node; what was asked is taken back."""
    async with Node("n2", store).running() as two:
        await trio.sleep(1)
        wanted = reserved_address(two)
    async with Node("n1", store).running() as one:
        await trio.sleep(1)
        for container in ("a", "b"):
            began = trio.current_time()
            assert await refusal(one, asking(container, wanted)) == (
                104,
                (
                    f"cannot assign {wanted} to default/pod-{container}: the reserve of node n2 has it; request another "
                    "address, or release this one first"
                ),
            )
            assert 1.5 <= trio.current_time() - began < 1.6
        await trio.sleep(1)
        assert not one.ledger.wanted
        assert not [key for key in store.records if key.startswith(keys.PRESSURE)]
        store.put(keys.asked_key(wanted), pressure_record("n3", now().unix))  # by a node that was killed then
        await trio.sleep(1)
    async with Node("n2", store, facts=two.journal).running() as two, Node("n1", store).running() as one:
        await trio.sleep(1)
        assert one.addresses(await one.add(asking("c", wanted))) == [wanted]


async def test_a_reserved_address_goes_to_a_pod_of_its_node_first(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """Promised there before the question arrives: who asked is told whose it is, at once when the store knows."""
    async with Node("n1", store).running() as one, Node("n2", store).running() as two:
        await trio.sleep(1)
        wanted = reserved_address(two)
        await two.add(asking("b", wanted))
        began = trio.current_time()
        code, msg = await refusal(one, asking("a", wanted))
        assert (code, "default/pod-b on node n2 has it" in msg) == (104, True)
        assert trio.current_time() - began < 0.2
        await two.flushed()
        at_rest(store, [one, two])


@pytest.mark.parametrize("name", ["10.0.0.999", "a/b", "fd00::1", ""])
@pytest.mark.parametrize("value", [b"", b"{}", b"null", b'{"time":"yesterday"}', b'{"time":"2026-01-01T00:00:00Z"}'])
async def test_a_question_that_cannot_be_understood_is_not_heeded(
    autojump_clock: MockClock, store: MemoryStore, name: str, value: bytes
) -> None:
    """Nor one that is long over: nothing is given back."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        before = dict(store.records)
        store.put(keys.ASKED + name, value)
        store.put(keys.asked_key(reserved_address(node)), value)
        await trio.sleep(1)
        assert {key: store.records[key] for key in before} == before


async def test_what_a_lost_state_file_promised_is_not_waited_for(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The reserve of this node's last instance is in quarantine: nobody gives it, so the refusal is at once."""
    async with Node("n1", store, instance="lost").running() as node:
        await trio.sleep(1)
        wanted = reserved_address(node)
    async with Node("n1", store, instance="new").running() as node:
        await trio.sleep(1)
        began = trio.current_time()
        assert (await refusal(node, asking("a", wanted)))[0] == 104
        assert trio.current_time() - began < 0.2


async def test_a_block_without_a_node_gives_its_address(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Its node was deleted and it still holds addresses: a free one may be had."""
    cluster = view(store)
    cluster.make("10.0.2.64/26", "host:gone", 1)
    cluster.take(Place("10.0.2.64/26", 0), "net.old", {"node": "gone", "pod": "p", "namespace": "ns"})
    unaffine(store, "10.0.2.64/26")
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        assert node.addresses(await node.add(asking("a", "10.0.2.65"))) == ["10.0.2.65"]
        await node.flushed()
        nobody_shares(store, [node])


def unaffine(store: MemoryStore, cidr: str) -> None:
    """What calicoctl makes of the blocks of a node that it deletes."""
    key = keys.block_key(parse_cidr(cidr))
    record = BlockRecord(store.records[key].value)
    record.affinity = None
    store.put(key, record.encode())
    store.put(keys.affinity_key("gone", parse_cidr(cidr)), None)


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handle", "secondary", "holder"),
    [
        ("net.c", {"node": "n2", "pod": "other", "namespace": "shop"}, "shop/other on node n2"),
        ("net.c", {"node": "n2"}, "handle net.c on node n2"),
        ("net.c", {}, "handle net.c"),
        (
            "vxlan-tunnel-addr-n2",
            {"node": "n2", "type": "vxlanTunnelAddress"},
            "handle vxlan-tunnel-addr-n2 (vxlanTunnelAddress) on node n2",
        ),
    ],
)
async def test_taken_in_another_nodes_block(
    autojump_clock: MockClock, store: MemoryStore, handle: str, secondary: dict[str, str], holder: str
) -> None:
    """Code 104, after one look at the store, and who has it as far as the record says."""
    cluster = view(store)
    cluster.make("10.0.2.64/26", "host:n2", 1)
    cluster.take(Place("10.0.2.64/26", 1), handle, secondary)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        for number in range(2):  # the second look tells nothing new, and counts
            reads = store.calls["read"]
            assert await refusal(node, asking(f"a{number}", "10.0.2.65")) == (
                104,
                (
                    f"cannot assign 10.0.2.65 to default/pod-a{number}: {holder} has it; request another address, or release this one "
                    "first"
                ),
            )
            assert store.calls["read"] == reads + 1
        assert not node.ledger.wanted
        assert "10.0.2.64/26" not in node.ledger.blocks


async def test_taken_in_our_own_block_by_a_stranger(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Calico's node agent on this host has it."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        wanted = free_address(node)
        agent = {"node": "n1", "type": "vxlanTunnelAddress"}
        strange(store, lambda cluster: cluster.take(place_of(wanted), "vxlan-tunnel-addr-n1", agent))
        await trio.sleep(1)
        assert await refusal(node, asking("a", wanted)) == (
            104,
            (
                f"cannot assign {wanted} to default/pod-a: handle vxlan-tunnel-addr-n1 (vxlanTunnelAddress) on node n1 has "
                "it; request another address, or release this one first"
            ),
        )


def strange(store: MemoryStore, act: Callable[..., None]) -> None:
    """Let a stranger write to the store."""
    cluster = view(store)
    cluster.records = dict(store.records)
    before = dict(cluster.records)
    act(cluster)
    for key in before.keys() | cluster.records.keys():
        if before.get(key) != cluster.records.get(key):
            record = cluster.records.get(key)
            store.put(key, record.value if record else None)


async def test_an_address_freed_a_moment_ago_can_be_had(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The watch has not told yet that a stranger released it: the look finds out."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        place = place_of(free_address(node))
        strange(store, lambda cluster: cluster.take(place, "net.x", {"node": "n2"}))
        await trio.sleep(1)
        node.sync.follow = lambda _revision: None  # type: ignore[method-assign]
        strange(store, lambda cluster: cluster.free(place))
        address = node.ledger.blocks[place.block].address(place.ordinal)
        assert node.addresses(await node.add(asking("a", address))) == [address]


async def test_strict_affinity_lends_nothing(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Code 105 for a free address of another node's block, or of one without a node."""
    store.put(keys.CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":true}')
    cluster = view(store)
    cluster.make("10.0.2.64/26", "host:n2", 1)
    cluster.make("10.0.2.128/26", "host:gone", 1)
    cluster.take(Place("10.0.2.128/26", 0), "net.old", {"node": "gone"})
    unaffine(store, "10.0.2.128/26")
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        cure = (
            "and strict affinity forbids to borrow; request an address of this node's blocks, or of a block that does "
            "not exist yet"
        )
        assert await refusal(node, asking("a", "10.0.2.65")) == (
            105,
            f"cannot assign 10.0.2.65 to default/pod-a: its block 10.0.2.64/26 belongs to host n2, {cure}",
        )
        assert await refusal(node, asking("b", "10.0.2.129")) == (
            105,
            f"cannot assign 10.0.2.129 to default/pod-b: its block 10.0.2.128/26 belongs to no node, {cure}",
        )


@pytest.mark.parametrize("other", ["10.0.2.64/28", "10.0.2.0/24"])
async def test_a_block_of_another_size_is_in_the_way(autojump_clock: MockClock, store: MemoryStore, other: str) -> None:
    """Code 105: blocks never overlap."""
    view(store).make(other, "host:n2", 1)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        assert await refusal(node, asking("a", "10.0.2.99")) == (
            105,
            (
                "cannot assign 10.0.2.99 to default/pod-a: its block 10.0.2.64/26 overlaps a block of another size, "
                "made before its pool had this block size; request an address that lies in no such block"
            ),
        )


async def test_a_record_that_cannot_be_understood(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Code 105: nobody can tell what is free in it."""
    store.put(keys.block_key(parse_cidr("10.0.2.64/26")), b"{}")
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        code, msg = await refusal(node, asking("a", "10.0.2.99"))
        assert code == 105
        assert msg == (
            "cannot assign 10.0.2.99 to default/pod-a: the record of its block 10.0.2.64/26 cannot be understood (not an "
            "allocation block: Object missing required field `cidr`); correct or delete it"
        )


async def test_the_store_is_away(autojump_clock: MockClock, store: MemoryStore) -> None:
    """What is in reserve is given, the rest waits for the store and then says code 11."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        block = next(iter(node.ledger.blocks.values()))
        reserved, other = block.address(block.line()[3]), free_address(node)
        store.away = True
        assert node.addresses(await node.add(asking("a", reserved))) == [reserved]
        assert (await refusal(node, asking("b", other)))[0] == 11
        store.away = False
        assert node.addresses(await node.add(asking("b", other))) == [other]


# --- races ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["10.0.2.65", "fd00::7777"])
async def test_two_nodes_race_for_one_address(autojump_clock: MockClock, store: MemoryStore, address: str) -> None:
    """Exactly one gets it, whether the block exists or not; the other is told whose it is."""
    outcomes: list[Assigned | RefusedError] = []

    async def ask(node: Node) -> None:
        try:
            outcomes.append(await node.add(asking(node.ledger.node, address)))
        except RefusedError as error:
            outcomes.append(error)

    async with Node("n1", store).running() as one, Node("n2", store).running() as two:
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, one)
            nursery.start_soon(ask, two)
        (lost,) = (outcome for outcome in outcomes if isinstance(outcome, RefusedError))
        (won,) = (outcome for outcome in outcomes if isinstance(outcome, Assigned))
        assert lost.code == 104
        assert won.attachment.container in ("n1", "n2")
        await one.flushed()
        await two.flushed()
        at_rest(store, [one, two])


@pytest.mark.parametrize("seed", range(10))
async def test_two_nodes_race_for_twenty_addresses(autojump_clock: MockClock, store: MemoryStore, seed: int) -> None:
    """Addresses of a few blocks that do not exist yet, at random moments: one winner each, and nobody waits in vain."""
    choose = random.Random(seed)  # noqa: S311 - a repeatable interleaving
    outcomes: dict[tuple[str, str], list[str] | int] = {}

    async def ask(node: Node, address: str) -> None:
        await trio.sleep(choose.random() * 0.02)
        name = node.ledger.node
        try:
            outcomes[address, name] = node.addresses(await node.add(asking(f"{name}-{address}", address)))
        except RefusedError as error:
            outcomes[address, name] = int(error.code)

    addresses = [f"10.0.2.{number * 7}" for number in range(20)]
    async with Node("n1", store).running() as one, Node("n2", store).running() as two:
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(ask, one, address)
                nursery.start_soon(ask, two, address)
        for address in addresses:
            pair = [outcomes[address, "n1"], outcomes[address, "n2"]]
            assert pair in ([[address], 104], [104, [address]])
        await one.flushed()
        await two.flushed()
        at_rest(store, [one, two])


async def test_two_pods_of_one_node_race(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The first in the line gets it, the second hears of the first."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        outcomes = {}

        async def ask(container: str) -> None:
            try:
                outcomes[container] = node.addresses(await node.add(asking(container, "10.0.2.65")))
            except RefusedError as error:
                outcomes[container] = [error.msg]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "a")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, "b")
        assert outcomes == {
            "a": ["10.0.2.65"],
            "b": [
                (
                    "cannot assign 10.0.2.65 to default/pod-b: default/pod-a on this node has it; request another address, "
                    "or release this one first"
                )
            ],
        }


async def test_a_pod_that_comes_back_gets_its_address_again(autojump_clock: MockClock, store: MemoryStore) -> None:
    """DEL, and an ADD of the next container that asks for the same address: it waits until the store knows."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        wanted = free_address(node)
        await node.add(asking("a", wanted))
        await node.flushed()
        node.delete("a")
        assert node.addresses(await node.add(asking("b", wanted))) == [wanted]
        await node.flushed()
        at_rest(store, [node])


async def test_who_gave_up_leaves_nothing_behind(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Cancelled while its block is being claimed: the block is given back in time, and nothing leaks."""
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        with trio.move_on_after(0.0025):
            await node.add(asking("a", "10.0.2.65"))
        assert not node.ledger.wanted
        await trio.sleep(200)
        at_rest(store, [node])
        assert view(store).block("10.0.2.64/26") is None


async def test_somebody_takes_it_between_look_and_transaction(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The transaction is refused, and a second look says who was faster."""
    view(store).make("10.0.2.64/26", "host:n2", 1)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        commit = store.commit

        async def late(*sets: list[Change], **options: object) -> object:
            if (
                Place("10.0.2.64/26", 1) in node.ledger.wanted
                and Place("10.0.2.64/26", 1) not in view(store).allocations()
            ):
                strange(store, lambda cluster: cluster.take(Place("10.0.2.64/26", 1), "net.fast", {"node": "n2"}))
            return await commit(*sets, **options)

        store.commit = late  # type: ignore[method-assign,assignment]
        code, msg = await refusal(node, asking("a", "10.0.2.65"))
        assert (code, "handle net.fast on node n2" in msg) == (104, True)


async def test_a_cooling_address_is_taken(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Within ipCooldownSeconds of its release nobody gets it, not even who asks for it; then it can be had."""
    store.put(keys.CONFIG, b'{"strict_affinity":false,"auto_allocate_blocks":true,"ipCooldownSeconds":60}')
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        await node.add(asking("a", "10.0.2.65"))
        await node.flushed()
        node.delete("a")
        code, msg = await refusal(node, asking("b", "10.0.2.65"))
        assert code == 104
        assert re.fullmatch(
            r"cannot assign 10\.0\.2\.65 to default/pod-b: it was released at 2026-[0-9T:-]+Z and cools "
            r"\(ipCooldownSeconds\); wait, or request another address",
            msg,
        )
        await trio.sleep(62)
        assert node.addresses(await node.add(asking("b", "10.0.2.65"))) == ["10.0.2.65"]
        await node.flushed()
        at_rest(store, [node])
