"""What once broke the promise, or ended a node's tasks: each an attack of its own, on a store in memory."""

from collections.abc import Sequence

import pytest
import trio
import trio.lowlevel

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.check import check
from ipamd.core.errors import RefusedError
from ipamd.core.facts import Attachment, Released
from ipamd.core.ledger import Ledger
from ipamd.core.records import BlockRecord, attribute, new_block
from ipamd.core.reserve import ReservePolicy
from ipamd.store.base import ChangeSet, KeyRange, Outcome, StoreUnavailableError
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, now, pool_record
from tests.store.truth import at_rest


class LateStore(MemoryStore):
    """A store to which a transaction may arrive after its sender gave it up: ``hold`` the next, ``arrive`` later."""

    def __init__(self) -> None:
        super().__init__(delay=0.001)
        self.hold = False
        self._held: tuple[ChangeSet, ...] = ()

    async def commit(self, *alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        """Commit, or keep it on its way and time out."""
        if self.hold:
            self.hold, self._held = False, alternatives
            raise StoreUnavailableError("memory: timed out")
        return await super().commit(*alternatives, window=window)

    async def arrive(self) -> Outcome:
        """Let the transaction that was held arrive now."""
        return await super().commit(*self._held)


def pool(store: MemoryStore, cidr: str = "10.0.0.0/26", size: int = 26) -> None:
    """Make, or make anew, a pool of this CIDR and block size."""
    store.put(*pool_record("p", cidr, blockSize=size))


async def addresses(node: Node, containers: Sequence[str]) -> list[str]:
    """What these containers get; the first refusal ends it."""
    got: list[str] = []
    for container in containers:
        try:
            got += node.addresses(await node.add(add_request(container)))
        except RefusedError:
            break
    return got


@pytest.mark.parametrize(("before", "after"), [(26, 28), (28, 26)])
@pytest.mark.parametrize("name", ["n1", "n2"])
async def test_a_block_that_overlaps_one_of_another_size_is_never_claimed(
    autojump_clock: trio.testing.MockClock, before: int, after: int, name: str
) -> None:
    """A pool made anew with another block size while old blocks hold addresses: nobody gets these a second time."""
    store = MemoryStore(delay=0.001)
    pool(store, size=before)
    async with Node("n1", store).running() as first:
        held = await addresses(first, ["old"])
        await first.flushed()
        store.put(keys.POOLS + "p", None)
        await trio.sleep(1)
        pool(store, size=after)
        if name == "n1":
            later = await addresses(first, [f"c{index}" for index in range(70)])
        else:
            async with Node(name, store).running() as second:
                later = await addresses(second, [f"c{index}" for index in range(70)])
        assert not set(held) & set(later)
        assert len(set(later)) == len(later)


@pytest.mark.parametrize("restart", [False, True])
async def test_a_transaction_that_arrives_late_gives_nobody_a_second_holder(
    autojump_clock: trio.testing.MockClock, restart: bool
) -> None:
    """ADD, its flush times out, DEL: the address is not reused until the store has moved past that transaction."""
    store = LateStore()
    pool(store, "10.0.0.0/29", 29)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        store.hold = True
        first = await node.add(add_request("a"))
        while store.hold:
            await trio.sleep(0.001)
        node.delete("a")
        if not restart:
            await trio.sleep(1)
            second = await node.add(add_request("b"))
            await store.arrive()
            await node.flushed()
            assert store.records[keys.block_key(parse_cidr("10.0.0.0/29"))].value.count(b"k8s-pod-network.a") == 0
            assert check(node.ledger) == []
            return
        facts = list(node.journal)
    async with Node("n1", store, facts=facts).running() as again:
        assert again.ledger.add(add_request("b"), now()).assigned.places != first.places  # type: ignore[union-attr]
        await store.arrive()
        await trio.sleep(1)
        second = again.ledger.holdings[Attachment("k8s-pod-network", "b", "eth0")]
        assert second.places != first.places
        assert check(again.ledger) == []
        assert b"k8s-pod-network.a" not in store.records[keys.block_key(parse_cidr("10.0.0.0/29"))].value


async def test_a_stray_address_of_a_container_does_not_end_what_it_got_since(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """DEL of an unknown container, ADD of the same, and only then its old borrowed address is found: the new one stays."""
    store = MemoryStore(delay=0.001)
    pool(store, "10.0.0.0/25")
    foreign = new_block(parse_cidr("10.0.0.64/26"), "host:other", 1)
    foreign.take({5}, attribute("k8s-pod-network.a", {"node": "n1", "pod": "pod-a", "namespace": "default"}))
    store.put(keys.block_key(foreign.cidr), foreign.encode())
    store.put(keys.handle_key("k8s-pod-network.a"), b'{"block":{"10.0.0.64/26":1},"deleted":false}')
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        store.away = True
        node.delete("a")
        await trio.sleep(1)
        held = await node.add(add_request("a"))
        store.away = False
        await trio.sleep(3)
        assert (await node.add(add_request("a"))).places == held.places
        assert BlockRecord(store.records[keys.block_key(foreign.cidr)].value).owner(5) is None
        assert check(node.ledger) == []


async def test_a_living_pods_address_that_somebody_frees_is_written_again_and_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """``calicoctl ipam release`` of it, or a deleted block: one line of the log each time, with address and pod."""
    store = MemoryStore(delay=0.001)
    pool(store)
    async with Node("n1", store).running() as node:
        assigned = await node.add(add_request("a"))
        (place,), (address,) = assigned.places, node.addresses(assigned)
        for number in range(6):
            await node.add(add_request(f"b{number}"))
        await node.flushed()
        key = keys.block_key(parse_cidr(place.block))
        event = "somebody freed addresses of living pods in the store; writing them again"
        for times in (1, 2):
            freed = BlockRecord(store.records[key].value)
            freed.free(place.ordinal)
            store.put(key, freed.encode())
            await trio.sleep(7)
            assert node.told == [(event, {"addresses": f"{address} of default/pod-a on this node"})] * times
            at_rest(store, [node])
        node.told.clear()
        store.put(key, None)
        await trio.sleep(7)
        ((told, values),) = node.told
        assert (told, values["addresses"].count("default/pod-"), values["addresses"][-6:]) == (event, 5, "2 more")
        at_rest(store, [node])


async def test_a_pod_that_goes_meanwhile_is_not_told_of(autojump_clock: trio.testing.MockClock) -> None:
    """Its address was freed in the store just before its DEL: nothing is written again, and nothing said."""
    store = MemoryStore(delay=0.001)
    pool(store)
    async with Node("n1", store).running() as node:
        (place,) = (await node.add(add_request("a"))).places
        await node.flushed()
        key = keys.block_key(parse_cidr(place.block))
        freed = BlockRecord(store.records[key].value)
        freed.free(place.ordinal)
        store.put(key, freed.encode())
        store.put(keys.handle_key("k8s-pod-network.a"), None)
        node.delete("a")
        await trio.sleep(7)
        assert node.told == []
        at_rest(store, [node])


async def test_a_reserved_address_is_not_handed_out_from_the_moment_the_reservation_is_known(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An IPReservation of what is in reserve: the next ADD gets another address, even before the store is told."""
    store = MemoryStore(delay=0.001)
    pool(store)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        head = node.ledger.blocks["10.0.0.0/26"].head()
        spec = b'{"metadata":{"name":"r"},"spec":{"reservedCIDRs":["10.0.0.0/30"]}}'
        store.put(keys.RESERVATIONS + "r", spec)
        while not node.ledger.settings.reservations:
            await trio.lowlevel.checkpoint()
        assert head == 0
        assert await addresses(node, ["a"]) == ["10.0.0.4"]


async def test_a_block_that_became_unreadable_gives_no_more_addresses(autojump_clock: trio.testing.MockClock) -> None:
    """What cannot be understood cannot be written to: its reserve is not handed out, and the finding is told."""
    store = MemoryStore(delay=0.001)
    pool(store, "10.0.0.0/25")
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        (cidr,) = node.ledger.blocks
        store.put(keys.block_key(parse_cidr(cidr)), b'{"cidr":"' + cidr.encode() + b'","allocations":"?"}')
        await trio.sleep(1)
        assert (await node.add(add_request("a"))).places[0].block != cidr
        assert any(cidr.replace("/", "-") in finding for finding in check(node.ledger))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (keys.affinity_key("n1", parse_cidr("10.0.0.0/26")), b"not JSON"),
        (keys.affinities_prefix("n1") + "ipv4/block/nonsense", b'{"state":"confirmed"}'),
        (keys.handle_key("ipamd-reserve-n1"), b"[]"),
        (keys.handle_key("k8s-pod-network.a"), b'{"block":{"nonsense":1}}'),
        (keys.handle_key("k8s-pod-network.b"), b"[]"),
        (keys.POOLS + "another-name", pool_record("p2", "10.9.0.0/24")[1]),
        (keys.POOLS + "bad", b"{}"),
        (keys.RESERVATIONS + "bad", b'{"spec":{"reservedCIDRs":["x"]}}'),
        (keys.CONFIG, b"?"),
    ],
)
async def test_a_record_that_cannot_be_understood_stops_nobody(
    autojump_clock: trio.testing.MockClock, key: str, value: bytes
) -> None:
    """One broken record, whatever its kind and whenever it comes, leaves the node serving and flushing."""
    for early in (True, False):
        store = MemoryStore(delay=0.001)
        pool(store, "10.0.0.0/24")
        if early:
            store.put(key, value)
        async with Node("n1", store).running() as node:
            await trio.sleep(1)
            if not early:
                store.put(key, value)
                await trio.sleep(1)
            node.delete("a")
            node.delete("b")
            await trio.sleep(1)
            await addresses(node, ["a", "b"])
            await node.flushed()
            assert len(node.ledger.holdings) == 2


async def test_a_pool_that_is_wholly_reserved_is_told_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """An IPReservation over a pool of 2**58 blocks does not keep the node searching."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("six", "fd00::/64", blockSize=122))
    store.put(keys.RESERVATIONS + "r", b'{"spec":{"reservedCIDRs":["fd00::/64"]}}')
    async with Node("n1", store).running() as node:
        with pytest.raises(RefusedError, match="pool six"):
            await node.add(add_request("a", 6))


async def test_nothing_is_repaired_while_the_datastore_is_locked(autojump_clock: trio.testing.MockClock) -> None:
    """A half-done claim stays as it is during a migration."""
    store = MemoryStore(delay=0.001)
    pool(store)
    store.put(keys.CLUSTER_INFORMATION, b'{"spec":{"datastoreReady":false}}')
    store.put(keys.affinity_key("n1", parse_cidr("10.0.0.0/26")), b'{"state":"pending","deleted":false}')
    before = dict(store.records)
    async with Node("n1", store).running():
        await trio.sleep(5)
        assert store.records == before


async def test_an_add_that_comes_between_shortage_and_supply_is_not_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Addresses that arrive just before an ADD joins the line are given to it, not to its deadline."""
    store = MemoryStore(delay=0.001)
    pool(store)
    node = Node("n1", store)
    request = add_request("a")
    node.ledger.synced = True
    node.ledger.settings.apply(*pool_record("p", "10.0.0.0/26", blockSize=26))
    shortage = node.ledger.add(request, now())
    async with node.running():
        await trio.sleep(1)
        store.away = True
        began = trio.current_time()
        await node.waiting.join(request, shortage)  # type: ignore[arg-type]
        assert trio.current_time() - began < 1


async def test_a_store_rolled_back_beneath_a_node_is_written_again(autojump_clock: trio.testing.MockClock) -> None:
    """A block restored from a backup, with an older revision than the known one: what the pods hold is put back."""
    store = MemoryStore(delay=0.001)
    pool(store)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        key = keys.block_key(parse_cidr("10.0.0.0/26"))
        backup = store.records[key]
        held = await node.add(add_request("a"))
        await node.flushed()
        store.records[key] = backup
        await node.add(add_request("b"))
        await node.flushed()
        record = BlockRecord(store.records[key].value)
        assert [record.owner(place.ordinal).handle for place in held.places] == ["k8s-pod-network.a"]  # type: ignore[union-attr]


class BackedUpStore(MemoryStore):
    """A store that can be set back to how it was when it was made, or last backed up."""

    def __init__(self) -> None:
        super().__init__(delay=0.001)
        self.back_up()

    def back_up(self) -> None:
        """Make a backup."""
        self._backup = dict(self.records), self.revision

    def restore(self) -> None:
        """Go on from the backup."""
        records, self.revision = self._backup
        self.records = dict(records)
        self.history = [event for event in self.history if event.revision <= self.revision]


def allocated(store: MemoryStore) -> set[str]:
    """The handles that the store's blocks give addresses to, but for the reserves."""
    blocks = [BlockRecord(r.value) for r in store.records.values() if keys.kind_of(r.key) is keys.Kind.BLOCK]
    return {owner.handle for block in blocks for owner in block.owners if "ipamd-reserve" not in owner.handle}


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_what_a_backup_gives_to_deleted_containers_is_freed_again(
    autojump_clock: trio.testing.MockClock, restarted: bool
) -> None:
    """Their DELs are remembered: the addresses are released as by a DEL, in this node's block and another's alike."""
    store = BackedUpStore()
    pool(store, "10.0.0.0/28", 29)
    async with Node("n2", store).running() as other:
        await addresses(other, ["x"])
        await trio.sleep(1)
        async with Node("n1", store).running() as node:
            names = [f"a{number}" for number in range(8)]
            assert len(await addresses(node, names)) == len(names), "one of them is borrowed"
            await node.flushed()
            store.back_up()
            for name in names[1:]:
                node.delete(name)
            await node.flushed()
            assert allocated(store) == {"k8s-pod-network.x", "k8s-pod-network.a0"}
            if not restarted:
                store.restore()
                await node.sync.look()
                await trio.sleep(10)
                facts = node.journal
        if restarted:
            store.restore()
            async with Node("n1", store, facts=node.journal).running() as node:
                await trio.sleep(10)
                facts = node.journal
    assert allocated(store) == {"k8s-pod-network.x", "k8s-pod-network.a0"}
    assert not any(key.startswith(keys.handle_key("k8s-pod-network.a1")) for key in store.records)
    assert {fact.handle for fact in facts if isinstance(fact, Released)} >= {f"k8s-pod-network.{n}" for n in names[1:]}
    assert check(node.ledger) == []


async def test_a_backup_takes_no_address_from_who_came_after_a_del(autojump_clock: trio.testing.MockClock) -> None:
    """A container that was deleted and added again lives; a container of which no DEL is known is somebody's pod."""
    store = BackedUpStore()
    pool(store)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        block = BlockRecord(store.records[keys.block_key(parse_cidr("10.0.0.0/26"))].value)
        block.take({60}, attribute("k8s-pod-network.calico", {"node": "n1", "pod": "c", "namespace": "default"}))
        store.put(keys.block_key(block.cidr), block.encode())
        store.put(keys.handle_key("k8s-pod-network.calico"), b'{"block":{"10.0.0.0/26":1},"deleted":false}')
        await addresses(node, ["a"])
        await node.flushed()
        store.back_up()
        node.delete("a")
        await node.flushed()
        held = await node.add(add_request("a"))
        await node.flushed()
        store.restore()
        await node.sync.look()
        await trio.sleep(10)
        record = BlockRecord(store.records[keys.block_key(block.cidr)].value)
        assert [record.owner(place.ordinal).handle for place in held.places] == ["k8s-pod-network.a"]  # type: ignore[union-attr]
        assert record.owner(60).handle == "k8s-pod-network.calico"  # type: ignore[union-attr]
        node.delete("a")
        await node.flushed()
        assert allocated(store) == {"k8s-pod-network.calico"}


async def test_a_successor_keeps_an_address_that_a_backup_gives_to_the_deleted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Of two containers of this node the one that was deleted has it by the store, and does not contest it for long."""
    store = BackedUpStore()
    pool(store, "10.0.0.0/30", 30)
    async with Node("n1", store).running() as node:
        await trio.sleep(1)
        assert len(await addresses(node, ["a0", "a1", "a2", "a3"])) == 4
        await node.flushed()
        store.back_up()
        for number in range(4):
            node.delete(f"a{number}")
        await node.flushed()
        assert len(await addresses(node, ["b0", "b1", "b2", "b3"])) == 4
        await node.flushed()
        store.restore()
        await node.sync.look()
        await trio.sleep(10)
        assert check(node.ledger) == []
        assert allocated(store) == {f"k8s-pod-network.b{number}" for number in range(4)}
        assert not any(key.startswith(keys.handle_key("k8s-pod-network.a")) for key in store.records)


async def test_while_a_restored_store_is_locked_pods_are_written_again_and_nobody_claims(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """So the slowest node has its block back before another may have it: the way that docs/operations.md tells."""
    store = BackedUpStore()
    pool(store, "10.0.0.0/29", 29)
    store.back_up()
    async with Node("n1", store).running() as node:
        await addresses(node, ["a"])
        await node.flushed()
        store.restore()
        store.put(keys.CLUSTER_INFORMATION, b'{"spec":{"datastoreReady":false}}')
        async with Node("n2", store).running() as other, trio.open_nursery() as nursery:
            await trio.sleep(5)
            with pytest.raises(RefusedError, match="datastore is locked"):
                await other.add(add_request("b"))
            assert allocated(store) == set()
            await node.sync.look()
            await trio.sleep(5)
            assert allocated(store) == {"k8s-pod-network.a"}
            store.put(keys.CLUSTER_INFORMATION, b'{"spec":{"datastoreReady":true}}')
            await trio.sleep(1)
            nursery.start_soon(other.add, add_request("b"))
            await trio.sleep(5)
            assert allocated(store) == {"k8s-pod-network.a", "k8s-pod-network.b"}
            assert check(node.ledger) == check(other.ledger) == []


async def test_a_restart_without_the_store_hands_out_nothing_that_a_backup_took_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What the node learnt of a store that was set back survives its death: the older record counts, not the newer."""
    store = BackedUpStore()
    pool(store)
    async with Node("n1", store, ReservePolicy(4, 4)).running() as node:
        await trio.sleep(1)
        store.back_up()
        await addresses(node, ["a", "b"])
        await trio.sleep(1)
        store.restore()
        await node.sync.look()
        known = node.ledger.blocks["10.0.0.0/26"].line()
        facts = list(node.journal)
        again = Ledger("n1", ReservePolicy())
        again.replay(node.ledger.checkpoint())
        assert set(again.blocks["10.0.0.0/26"].line()) == set(known)
    again = Ledger("n1", ReservePolicy())
    again.replay(facts)
    assert set(again.blocks["10.0.0.0/26"].line()) == set(known)
