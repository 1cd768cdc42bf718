"""What goes wrong between a node and its store: lost replies, outages, conflicts, crashes; the end is always right."""

import json
from collections.abc import Sequence

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.check import check
from ipamd.core.errors import Code, NotDurableError, RefusedError
from ipamd.core.facts import Attachment, Committed, Fact, Place
from ipamd.core.records import BlockRecord, attribute
from ipamd.core.reserve import ReservePolicy
from ipamd.store.base import ChangeSet, KeyRange, Outcome, Snapshot, StoreUnavailableError
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record
from tests.store.truth import at_rest, nobody_shares, view


def make_store() -> MemoryStore:
    """A store that takes a millisecond a call and has one pool of each IP version, of four blocks of 16."""
    store = MemoryStore(delay=0.001)
    store.put(*pool_record("four", "10.0.0.0/26", blockSize=28))
    store.put(*pool_record("six", "fd00::/122", blockSize=124))
    return store


@pytest.fixture
def store() -> MemoryStore:
    """See make_store."""
    return make_store()


POLICY = ReservePolicy(minimum=6, maximum=12)
FAR = "k8s-pod-network.far"


async def history(node: Node) -> None:
    """ADDs and DELs of both IP versions, singly and together, with a burst that needs another block."""
    await node.add(add_request("a", 4, 6))
    await node.flushed()
    for number in range(9):
        await node.add(add_request(f"b{number}"))
    node.delete("a")
    await node.add(add_request("c", 6))
    await node.flushed()
    for number in range(0, 9, 2):
        node.delete(f"b{number}")
    await trio.sleep(0.001)  # a container of the same name, made after the other was deleted
    await node.add(add_request("b0", 4, 6))
    await trio.sleep(1)
    await node.flushed()


async def run_history(store: MemoryStore, *, lose: int | None = None, refuse: int | None = None) -> set[str]:
    """Run the history, with the reply (or the whole) of one commit lost; returns the handles in the store."""
    count = 0
    commit = store.commit

    async def counted(*alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        nonlocal count
        count += 1
        if lose is not None and count == lose:
            store.lose_replies = 1
        if refuse is not None and count == refuse:
            store.away = True
            try:
                return await commit(*alternatives, window=window)
            finally:
                store.away = False
        return await commit(*alternatives, window=window)

    store.commit = counted  # type: ignore[method-assign] # the fault to inject
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        with trio.fail_after(60):
            await history(node)
        await trio.sleep(1)
        at_rest(store, [node])
        assert (lose or refuse or 0) <= count
        return {handle for handle, _node, _kind in view(store).allocations().values()}


EXPECTED = {"ipamd-reserve-n1", *(f"k8s-pod-network.{name}" for name in ("b0", "b1", "b3", "b5", "b7", "c"))}


@pytest.mark.parametrize("lose", range(1, 8))
async def test_the_loss_of_any_reply_changes_nothing_in_the_end(
    autojump_clock: MockClock, store: MemoryStore, lose: int
) -> None:
    """Whichever commit of a history took effect without an answer: the same pods, exact handles, no leak."""
    assert await run_history(store, lose=lose) == EXPECTED


@pytest.mark.parametrize("refuse", range(1, 8))
async def test_the_loss_of_any_commit_changes_nothing_in_the_end(
    autojump_clock: MockClock, store: MemoryStore, refuse: int
) -> None:
    """Whichever commit of a history never arrived: the same."""
    assert await run_history(store, refuse=refuse) == EXPECTED


async def test_a_store_that_returns_is_right_within_two_seconds(autojump_clock: MockClock, store: MemoryStore) -> None:
    """However long the store was away: two seconds after its return it holds all that was promised meanwhile."""
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        for outage in (0.1, 3, 60, 3600):
            store.away = True
            await trio.sleep(0.5)
            served = [await node.add(add_request(f"o{outage}-{number}", 4, 6)) for number in range(3)]
            node.delete(f"o{outage}-0")
            await trio.sleep(outage)
            assert node.dirty
            store.away = False
            await trio.sleep(2)
            assert not node.dirty
            at_rest(store, [node])
            assert len(served) == 3
            for number in range(3):
                node.delete(f"o{outage}-{number}")
            await trio.sleep(1)


async def test_an_add_during_an_outage_is_served_until_the_reserve_is_empty(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """Then it waits, and is told to come back after its deadline, with the words of what is wrong."""
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        store.away = True
        for number in range(6):
            await node.add(add_request(f"c{number}"))
        began = trio.current_time()
        with pytest.raises(RefusedError) as refused:
            await node.add(add_request("late"))
        assert trio.current_time() - began == pytest.approx(10)
        assert (refused.value.code, refused.value.msg) == (
            Code.TRY_AGAIN_LATER,
            (
                "cannot assign an address of pool four to default/pod-late: none could be had in 10 s; the test; "
                "the runtime will try again"
            ),
        )
        store.away = False
        await trio.sleep(2)
        at_rest(store, [node])
        assert len(node.ledger.holdings) == 6


def cut_off(store: MemoryStore, *, arrives: bool) -> None:
    """From the next transaction on the store is away; that one is still done, or not, and nobody hears of it."""
    commit = store.commit

    async def last(*alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        store.away, store.commit = True, commit  # type: ignore[method-assign]
        if arrives:
            store.apply(alternatives, window)
        raise StoreUnavailableError("test: cut off")

    store.commit = last  # type: ignore[method-assign] # the fault to inject


@pytest.mark.parametrize("arrives", [False, True])
async def test_pods_come_and_go_through_an_outage_on_what_the_store_never_heard_of(
    autojump_clock: MockClock, store: MemoryStore, arrives: bool
) -> None:
    """A reserve of six serves a hundred pods one after the other; what the last transaction gave away is left alone."""
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        cut_off(store, arrives=arrives)
        lost = await node.add(add_request("lost"))
        await trio.sleep(1)
        node.delete("lost")
        for number in range(100):
            with trio.fail_after(0.1):
                assigned = await node.add(add_request(f"c{number}"))
            assert assigned.places != lost.places
            await trio.sleep(0.6)
            node.delete(f"c{number}")
        store.away = False
        await trio.sleep(2)
        at_rest(store, [node])
        assert not node.ledger.holdings


async def test_an_add_that_waits_in_an_outage_gets_what_the_next_pod_gives_up(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """Without the store: it never heard of that pod."""
    async with Node("n1", store, POLICY).running() as node, trio.open_nursery() as nursery:
        await trio.sleep(1)
        store.away = True
        await node.add(add_request("sent"))
        await trio.sleep(1)
        served = [await node.add(add_request(f"c{number}")) for number in range(5)]
        nursery.start_soon(node.add, add_request("waits"))
        await trio.sleep(1)
        node.delete("sent")
        await trio.sleep(1)
        assert len(node.ledger.holdings) == 5
        node.delete("c3")
        assert node.ledger.holdings[Attachment("k8s-pod-network", "waits", "eth0")].places == served[3].places


async def test_what_a_collector_frees_behind_a_node_that_is_cut_off_is_not_held_twice(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """A lost transaction gave an address to a pod that is gone: Calico's controllers free it, another node takes it."""
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        cut_off(store, arrives=True)
        (place,) = (await node.add(add_request("lost"))).places
        await trio.sleep(1)
        node.delete("lost")
        key = keys.block_key(parse_cidr(place.block))
        block = BlockRecord(store.records[key].value)
        assert block.owner(place.ordinal).handle == "k8s-pod-network.lost"  # type: ignore[union-attr]
        block.free(place.ordinal)
        block.take({place.ordinal}, attribute(FAR, {"node": "n2"}))
        store.put(key, block.encode())
        store.put(keys.handle_key("k8s-pod-network.lost"), None)
        store.put(keys.handle_key(FAR), json.dumps({"block": {place.block: 1}, "deleted": False}).encode())
        for number in range(20):
            assert place not in (await node.add(add_request(f"c{number}"))).places
            await trio.sleep(0.6)
            node.delete(f"c{number}")
        store.away = False
        await trio.sleep(2)
        at_rest(store, [node], strangers=[FAR])


async def test_what_a_transaction_will_assign_is_in_doubt_before_it_is_sent(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """It is made, then the state file is synced, which takes a while: a DEL in between frees nothing for the next pod."""

    async def slow() -> None:
        await trio.sleep(0.5)

    async with Node("n1", store, POLICY, durable=slow).running() as node:
        await trio.sleep(3)
        first = await node.add(add_request("first"))
        await trio.sleep(0.2)
        node.delete("first")
        began = trio.current_time()
        for number in range(6):
            assert (await node.add(add_request(f"c{number}"))).places != first.places
        assert trio.current_time() - began > 0.4, "the last waited for the transaction"
        await node.flushed()
        at_rest(store, [node])


async def test_nothing_is_sent_that_the_disk_may_lose(autojump_clock: MockClock, store: MemoryStore) -> None:
    """While the state file cannot be synced, what was given out is served from it, and the store learns it later."""
    failing = False

    async def sync() -> None:
        await trio.lowlevel.checkpoint()
        if failing:
            raise NotDurableError("cannot sync the state file: Input/output error")

    async with Node("n1", store, POLICY, durable=sync).running() as node:
        await trio.sleep(3)
        before, failing = len(store.commits), True
        assert (await node.add(add_request("a"))).places
        await trio.sleep(10)
        assert len(store.commits) == before
        failing = False
        await node.flushed()
        at_rest(store, [node])


async def test_an_add_that_waits_when_the_store_returns_is_answered(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """A wait that the outage caused ends with its end."""
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        store.away = True
        for number in range(6):
            await node.add(add_request(f"c{number}"))

        async def back() -> None:
            await trio.sleep(4)
            store.away = False

        async with trio.open_nursery() as nursery:
            nursery.start_soon(back)
            with trio.fail_after(6):
                assert (await node.add(add_request("waits"))).places
        await node.flushed()
        await trio.sleep(1)
        at_rest(store, [node])


async def test_a_waiting_add_that_its_del_overtakes_leaves_nothing(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """The ADD is refused when the DEL comes; after the outage nothing of the pod is in memory or store."""
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        store.away = True
        for number in range(6):
            await node.add(add_request(f"c{number}"))
        async with trio.open_nursery() as nursery:

            async def doomed() -> None:
                with pytest.raises(RefusedError) as refused:
                    await node.add(add_request("doomed"))
                assert refused.value.code is Code.DELETED

            nursery.start_soon(doomed)
            await trio.sleep(1)
            node.delete("doomed")
        store.away = False
        await trio.sleep(3)
        at_rest(store, [node])
        assert "doomed" not in {who.container for who in node.ledger.holdings}


async def test_a_cancelled_add_that_waited_leaves_nothing(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A client that hangs up while the store is away gets nothing later, and leaks nothing."""
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        store.away = True
        for number in range(6):
            await node.add(add_request(f"c{number}"))
        with trio.move_on_after(2):
            await node.add(add_request("gone"))
        store.away = False
        await trio.sleep(3)
        at_rest(store, [node])
        assert "gone" not in {who.container for who in node.ledger.holdings}


async def test_a_foreign_writer_in_the_middle_costs_conflicts_and_nothing_else(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """A stranger writes this node's blocks between any two of its steps: all that both did is there in the end."""
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        strangers: list[Place] = []
        commit = store.commit

        async def after_a_stranger(*alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
            cluster = view(store)
            own = {block.cidr for block in node.ledger.blocks.values()}
            free = [Place(c, b.unallocated[0]) for c, b in cluster.blocks().items() if c in own and b.unallocated]
            if store.calls["commit"] % 2 and free and len(strangers) < 8:
                place, number = free[0], len(strangers)
                record = cluster.block(place.block)
                assert record is not None
                record.take({place.ordinal}, attribute(f"far.{number}", {"node": "n2"}))
                store.put(keys.block_key(record.cidr), record.encode())
                handle = json.dumps({"block": {place.block: 1}, "deleted": False}).encode()
                store.put(keys.handle_key(f"far.{number}"), handle)
                strangers.append(place)
            return await commit(*alternatives, window=window)

        store.commit = after_a_stranger  # type: ignore[method-assign] # whenever the node writes, somebody was faster
        for number in range(12):
            await node.add(add_request(f"c{number}", 4, 6))
            nobody_shares(store, [node])
            await trio.sleep(0.013)
        await node.flushed()
        await trio.sleep(1)
        assert len(strangers) >= 3
        allocations = view(store).allocations()
        assert all(allocations[place][0].startswith("far.") for place in strangers)
        at_rest(store, [node], strangers=[f"far.{number}" for number in range(8)])
        assert node.writer.progress.conflicts > 0


async def test_a_conflict_storm_ends(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A block that changes faster than the writer can write is written as soon as it holds still."""
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        await node.add(add_request("a"))
        (own,) = [block for block in node.ledger.blocks.values() if block.net.family == 4]
        for _ in range(300):
            record = view(store).block(own.cidr)
            assert record is not None
            store.put(keys.block_key(own.net), record.encode())
            await trio.sleep(0.0005)
        await trio.sleep(1)
        at_rest(store, [node])
        assert node.writer.progress.transactions < 400


async def test_several_nodes_share_a_pool(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Four nodes start at once, add and delete at once: no address twice at any instant, an exact store at the end."""
    store.put(*pool_record("four", "10.0.0.0/22", blockSize=28))
    nodes = [Node(f"n{number}", store, POLICY) for number in range(4)]

    async def live(node: Node, number: int) -> None:
        async with node.running():
            await trio.sleep(0.1)
            for step in range(30):
                await node.add(add_request(f"{number}-{step}", 4))
                if step % 3 == 2:
                    node.delete(f"{number}-{step - 1}")
                nobody_shares(store, nodes)
                await trio.sleep(0.003 * (number + 1))
            await node.flushed()
            await trio.sleep(3 - trio.current_time())
            at_rest(store, nodes)

    async with trio.open_nursery() as nursery:
        for number, node in enumerate(nodes):
            nursery.start_soon(live, node, number)


# --- restarts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0.0, 0.0005, 0.0015, 0.021, 0.0215, 0.03, 1.0])
async def test_a_node_restarts_from_its_journal_with_the_store_away(
    autojump_clock: MockClock, store: MemoryStore, after: float
) -> None:
    """Killed at any moment around a flush: it serves from its state file alone, and the store is right afterwards."""
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        kept = {name: await node.add(add_request(name, 4, 6)) for name in ("a", "b")}
        await node.flushed()
        kept["c"] = await node.add(add_request("c"))
        node.delete("b")
        del kept["b"]
        await trio.sleep(after)
    store.away = True
    again = Node("n1", store, POLICY, facts=node.journal)
    async with again.running(look=False):
        await trio.sleep(5)
        for name, assigned in kept.items():
            repeated = await again.add(add_request(name, *((4, 6) if len(assigned.places) == 2 else (4,))))
            assert repeated.places == assigned.places
        fresh = await again.add(add_request("fresh"))
        assert not {*fresh.places} & {place for assigned in kept.values() for place in assigned.places}
        nobody_shares(store, [again])
        store.away = False
        await trio.sleep(3)
        at_rest(store, [again])
        assert {who.container for who in again.ledger.holdings} == {"a", "c", "fresh"}


async def test_a_restart_from_a_checkpoint_is_the_same(autojump_clock: MockClock, store: MemoryStore) -> None:
    """A rewritten state file does as well as the long one."""
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        await node.add(add_request("a", 4, 6))
        await node.flushed()
        await node.add(add_request("b"))
        node.delete("a")
    store.away = True
    again = Node("n1", store, POLICY, facts=list(node.ledger.checkpoint()))
    async with again.running(look=False):
        await again.add(add_request("c"))
        store.away = False
        await trio.sleep(3)
        at_rest(store, [again])
        assert {who.container for who in again.ledger.holdings} == {"b", "c"}


async def test_a_node_without_its_journal_keeps_what_the_store_knows(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """A lost state file: the pods' addresses stay theirs, are given again to a repeated ADD, and go with their DEL."""
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        first = await node.add(add_request("a", 4, 6))
        await node.add(add_request("b"))
        await node.flushed()
    async with Node("n1", store, POLICY).running() as again:
        await trio.sleep(1)
        taken = {(await again.add(add_request(f"new{number}"))).places[0] for number in range(8)}
        assert not taken & set(first.places)
        assert (await again.add(add_request("a", 4, 6))).places == first.places
        again.delete("b")
        await trio.sleep(1)
        assert check(again.ledger) == []
        at_rest(store, [again])


async def test_a_withdrawn_address_is_not_handed_out_after_a_restart(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """Killed the moment the store has taken addresses back: the state file of before does not hand them out."""
    journals: list[list[Fact]] = []
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        node.ledger.reserve("four", 0).level = 12
        node.writer.wake(hurry=True)
        await trio.sleep(1)
        commit = store.commit

        async def remembered(*alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
            journals.append(list(node.journal))  # what a kill -9 at this moment leaves
            return await commit(*alternatives, window=window)

        store.commit = remembered  # type: ignore[method-assign] # only looked at
        before = node.ledger.available("four")
        node.ledger.reserve("four", 0).level = 2
        node.writer.wake(hurry=True)
        await trio.sleep(1)
        assert node.ledger.available("four") < before
    left = {place for place, (handle, _n, _k) in view(store).allocations().items() if handle == "ipamd-reserve-n1"}
    again = Node("n1", store, POLICY, facts=journals[0])
    line = {block.place(ordinal) for block in again.ledger.blocks.values() for ordinal in block.line()}
    assert line
    assert line <= left


@pytest.mark.parametrize("imaged", [True, False])
@pytest.mark.parametrize("answered", [0, 1])
async def test_what_a_life_gives_up_stays_given_up_when_a_transaction_of_the_last_arrives_late(
    autojump_clock: MockClock, store: MemoryStore, answered: int, imaged: bool
) -> None:
    """Killed while it assigns an address, started, told of the DEL, killed again: the release is not forgotten.

    Neither the look after a start nor an answer that refuses a transaction says that the earlier one will not arrive,
    also where the disk was too full for the images of blocks, so that the look is the first that is heard of them.
    """
    late: list[Sequence[ChangeSet]] = []
    left = [answered]
    commit = store.commit

    async def slow(*alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        late.append(alternatives)
        await trio.sleep_forever()

    async def lossy(*alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        left[0] -= 1
        if left[0] < 0:
            raise StoreUnavailableError("test: lost")
        outcome = await commit(*alternatives, window=window)
        assert outcome.chosen is None, "the new life does not know the handles yet"
        return outcome

    async with Node("n1", store, POLICY).running() as first:
        await trio.sleep(1)
        store.commit = slow  # type: ignore[method-assign]
        await first.add(add_request("a"))
        await trio.sleep(0.2)
    store.commit = lossy  # type: ignore[method-assign]
    written = [f for f in first.journal if imaged or not (isinstance(f, Committed) and keys.is_block(f.key))]
    second = Node("n1", store, POLICY, facts=written)
    second.delete("a")
    async with second.running():
        await trio.sleep(1)
    assert left[0] < 0, "it tries to overtake the transaction"
    store.commit = commit  # type: ignore[method-assign]
    assert store.apply(late[0]).chosen == 0
    third = Node("n1", store, POLICY, facts=list(second.ledger.checkpoint()))
    async with third.running():
        await trio.sleep(3)
        at_rest(store, [third])


async def test_an_unknown_outcome_is_looked_up_before_the_next_transaction(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """After a lost reply the next call is a read of the records in doubt, never another guess."""
    async with Node("n1", store, POLICY).running() as node:
        await trio.sleep(1)
        order: list[str] = []
        commit, read = store.commit, store.read

        async def committing(*alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
            order.append("commit")
            return await commit(*alternatives, window=window)

        async def reading(names: Sequence[str], prefixes: Sequence[str] = ()) -> Snapshot:
            order.append("read")
            return await read(names, prefixes)

        store.commit, store.read = committing, reading  # type: ignore[method-assign] # only looked at
        store.lose_replies = 1
        await node.add(add_request("a"))
        await trio.sleep(0.5)
        node.delete("a")
        await trio.sleep(1)
        assert order[:2] == ["commit", "read"]
        at_rest(store, [node])
