"""How others have failed at this, one test each: the report is named, and the line that keeps it from happening here."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from ipamd.core import keys
from ipamd.core.check import check
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Attachment, Fact
from ipamd.core.leaks import Leaks
from ipamd.core.reserve import ReservePolicy
from ipamd.store.base import Change
from ipamd.store.cleaner import Cleaner, Cleaning
from tests.calico_state import State, agreed
from tests.daemon_process import POOLS, Daemon, wait_for
from tests.etcd_process import EtcdProcess
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, now, pool_record
from tests.real.conftest import Start
from tests.runtime.results import cached

MINUTE = 60.0
GRACE = 600 * 1_000_000_000


@pytest.fixture
async def store() -> MemoryStore:
    """A store with a pool of one block of 32 addresses."""
    made = MemoryStore()
    await made.commit([Change(*pool_record("four", "10.0.0.0/27", blockSize=27), 0)])
    return made


@pytest.mark.real
def test_nothing_is_served_before_what_is_held_is_known(etcd: EtcdProcess, start: Start) -> None:
    """aws/amazon-vpc-cni-k8s issue 711: an ADD right after the agent's start got a running pod's address.

    There the pods were still being listed. Guarded by ``Ledger.replay`` in ``Daemon.__init__``, before ``_listen``.
    """
    daemon = start("node-a", *POOLS, "--reserve-min", "40", "--etcd-timeout", "1")
    wait_for(lambda: len(daemon.get("/v1/reserve")[0]["addresses"]) >= 40)
    held = {f"c{number}": daemon.add(f"c{number}") for number in range(10)}
    etcd.pause()
    for round_ in range(3):
        daemon.kill()
        daemon.start(ready=False)
        # The plugin waits for the socket, so this is the first request that the daemon sees.
        fresh = daemon.add(f"fresh{round_}")
        assert fresh not in held.values()
        held[f"fresh{round_}"] = fresh
        assert {container: daemon.add(container) for container in held} == held
    etcd.resume()


@pytest.mark.real
@pytest.mark.parametrize("cache", [True, False], ids=["with the runtime's cache", "without"])
def test_a_restart_that_lost_the_state_gives_no_address_a_second_time(
    etcd: EtcdProcess, start: Start, tmp_path: Path, cache: bool
) -> None:
    """Azure/azure-container-networking issue 1259: after a restart several pods ran with one address.

    Guarded by the reserve's handle, which bears the state file's name (``keys.reserve_handle``), and by ``core.regain``.
    """
    results = tmp_path / "results"
    daemon = start("node-a", *POOLS, "--runtime-results-dir", str(results), "--etcd-timeout", "1")
    agreed(etcd, daemon)
    etcd.pause()
    promised = {f"c{number}": daemon.add(f"c{number}") for number in range(8)}
    for container, addresses in promised.items() if cache else ():
        cached(results, container, addresses)
    daemon.kill()
    (daemon.directory / "state" / "state").unlink()
    etcd.resume()
    daemon.start()
    if cache:
        wait_for(lambda: len(daemon.get("/v1/allocations")) == 8)
        assert {container: daemon.add(container) for container in promised} == promised
        wait_for(lambda: set(State.of(etcd).pods()) == {address for (address,) in promised.values()})
        assert State.of(etcd).problems() == []
        assert daemon.log.read_text().count("took back addresses of a living container") == 8
    fresh = [daemon.add(f"fresh{number}") for number in range(40)]
    assert not [addresses for addresses in fresh if addresses in promised.values()]


async def test_what_the_store_cannot_account_for_is_kept_and_its_record_too(
    store: MemoryStore, autojump_clock: trio.testing.MockClock
) -> None:
    """aws/amazon-vpc-cni-k8s pull request 3876: allocations of a range that one read did not show were dropped.

    And the file that knew better was overwritten at once. Guarded by ``holdings`` in ``Ledger.checkpoint``, and by
    ``_image`` in ``store.draft``, which writes a vanished block again.
    """
    async with Node("n1", store).running() as first:
        assigned = await first.add(add_request("c"))
        await first.flushed()
        facts: list[Fact] = list(first.journal)
    block = assigned.places[0].block
    for key in [key for key in store.records if keys.kind_of(key) in (keys.Kind.BLOCK, keys.Kind.AFFINITY)]:
        store.put(key, None)
    second = Node("n1", store, facts=facts)
    async with second.running():
        assert second.ledger.holdings == {assigned.attachment: assigned}
        assert assigned in list(second.ledger.checkpoint())
        await second.flushed()
        assert second.ledger.blocks[block].record is not None
        third = Node("n1", store, facts=list(second.ledger.checkpoint()))
        assert third.ledger.holdings == {assigned.attachment: assigned}
        assert check(second.ledger) == []


def nobody(*_of: str) -> bool:
    """Who lives, or which pod is gone: none."""
    return False


def everybody(*_of: str) -> bool:
    """The same: all."""
    return True


async def collect(node: Node, leaks: Leaks, lives: object, gone: object, minutes: int) -> int:
    """Look for leaks each half minute; how many were released."""
    found = 0
    for _ in range(2 * minutes):
        leaked = leaks.find(node.ledger, lives, gone, now())  # type: ignore[arg-type]
        node.journal.extend(fact for leak in leaked for fact in leak.facts)
        node.writer.wake()
        found += len(leaked)
        await trio.sleep(MINUTE / 2)
    return found


async def test_kubernetes_word_alone_frees_no_address(
    store: MemoryStore, autojump_clock: trio.testing.MockClock
) -> None:
    """antrea-io/antrea issue 8239: a collector freed what no pod's status showed yet, and gave it to another pod.

    Guarded by ``lives`` in ``Leaks._suspects``: what the runtime's cache shows is kept, whatever the API says.
    """
    async with Node("n1", store).running() as node:
        held = await node.add(add_request("c"))
        assert await collect(node, Leaks(GRACE), {"c"}.__contains__, everybody, 60) == 0
        assert node.ledger.holdings == {held.attachment: held}
        assert await collect(node, Leaks(GRACE), nobody, everybody, 11) == 1
        assert node.ledger.holdings == {}


async def test_a_pod_made_while_the_collector_listed_keeps_its_address(
    store: MemoryStore, autojump_clock: trio.testing.MockClock
) -> None:
    """k8snetworkplumbingwg/whereabouts issue 207: pods were listed, then addresses; a new pod was in the second only.

    Guarded by ``YOUNG`` and by the grace time in ``core.leaks``: a single look never frees anything.
    """
    async with Node("n1", store).running() as node:
        leaks = Leaks(GRACE)
        for number in range(20):
            lists_are_old = await node.add(add_request(f"c{number}"))
            assert leaks.find(node.ledger, nobody, everybody, now()) == []
            await trio.sleep(4 * MINUTE)
            assert leaks.find(node.ledger, nobody, everybody, now()) == []
            assert leaks.find(node.ledger, everybody, nobody, now()) == []  # the lists have caught up
            assert lists_are_old.attachment in node.ledger.holdings


async def test_a_del_that_overtakes_its_add_leaves_nothing_behind(
    store: MemoryStore, autojump_clock: trio.testing.MockClock
) -> None:
    """Azure/azure-container-networking issue 4829: a DEL crossed its ADD, and memory and file disagreed for ever.

    Guarded by the tombstone (``Ledger._refuse_ended``), and by one ledger that one fact changes, in memory and file.
    """
    async with Node("n1", store, ReservePolicy(minimum=1, maximum=1)).running() as node:
        began = now().boot
        await trio.sleep(1)
        node.delete("c")
        with pytest.raises(RefusedError) as refused:
            await node.add(add_request("c", started=began))
        assert refused.value.code is Code.DELETED
        again = Node("n1", store, facts=node.journal)
        for ledger in (node.ledger, again.ledger):
            assert ledger.holdings == {}
            assert check(ledger) == []
        await trio.sleep(1)
        assert (await node.add(add_request("c"))).places


async def test_sandboxes_in_a_crash_loop_do_not_eat_the_pool(
    store: MemoryStore, autojump_clock: trio.testing.MockClock
) -> None:
    """Azure/azure-container-networking issue 4497: each new sandbox took an address, and no DEL ever came.

    Guarded by ``sandboxes`` in ``Leaks._suspects``: a pod has one sandbox, that which the runtime knows. 200 of them
    in a block of 32 addresses.
    """
    async with Node("n1", store).running() as node:
        leaks = Leaks(GRACE)
        request = add_request("stays")
        await node.add(request)
        for number in range(200):
            request = add_request(f"sandbox{number}")
            request.labels["pod"] = "crash-loop"
            await node.add(request)
            alive = {"stays", f"sandbox{number}"}
            await collect(node, leaks, alive.__contains__, nobody, 1)
        await collect(node, leaks, alive.__contains__, nobody, 30)
        held = {attachment.container for attachment in node.ledger.holdings}
        assert held == alive
        await node.flushed()
        assert Attachment("k8s-pod-network", "stays", "eth0") in node.ledger.holdings
        handles = {key for key in store.records if keys.kind_of(key) is keys.Kind.HANDLE}
        pods = {keys.handle_key(f"k8s-pod-network.{container}") for container in alive}
        assert {key for key in handles if "ipamd-reserve" not in key} == pods


async def test_handles_that_others_leaked_go_by_themselves(
    store: MemoryStore, autojump_clock: trio.testing.MockClock
) -> None:
    """projectcalico/calico issue 8548: 30,000 handles of which no block knew anything, and that nothing collected.

    Guarded by ``leftovers.Walk``; ipamd itself cannot leak one, as block and handle change in one transaction.
    """
    async with Node("n1", store).running() as node, trio.open_nursery() as nursery:
        await node.add(add_request("lives"))
        await node.flushed()
        (block,) = node.ledger.blocks
        cleaner = Cleaner(node.ledger, store, Cleaning(), now, lambda _event, _values: None)
        nursery.start_soon(cleaner.run)
        await trio.sleep(2 * MINUTE)
        before = set(store.records)
        for number in range(300):
            handle = keys.handle_key(f"k8s-pod-network.leaked{number}")
            store.put(handle, f'{{"block":{{"{block}":1}},"deleted":false}}'.encode())
        await trio.sleep(100 * MINUTE)
        assert set(store.records) == before
        assert cleaner.handles == 300
        nursery.cancel_scope.cancel()


@pytest.fixture
def away(etcd: EtcdProcess, start: Start) -> Iterator[Daemon]:
    """A daemon that has given five pods an address, and is not there any more."""
    daemon = start("node-a", *POOLS)
    for number in range(5):
        daemon.add(f"c{number}")
    agreed(etcd, daemon)
    daemon.kill()
    yield daemon
    shutil.rmtree(daemon.directory / "state" / "del.d", ignore_errors=True)


@pytest.mark.real
def test_pods_end_while_the_daemon_is_away(etcd: EtcdProcess, away: Daemon) -> None:
    """cilium/cilium issue 22067: with the agent down every DEL failed, and pods stayed in Terminating.

    Guarded by the plugin's spool, and by ``Spool.carry_out`` before the first request.
    """
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda n=number: codes.append(away.plugin("DEL", f"c{n}", timeout_ms=5000).code))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert codes == [0] * 4
    away.start()
    assert set(agreed(etcd, away).pods().values()) == {"k8s-pod-network.c4"}
    assert State.of(etcd).pod_handles() == {"k8s-pod-network.c4"}
