"""A disk that takes small facts and no images of blocks, or nothing for a while: what the daemon does beside ADD and DEL.

The daemon and its journal are real; the disk is the simulation's, the store is in memory.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from random import Random
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from ipamd.api.http import Response
from ipamd.config import Config
from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.facts import Attachment, Place
from ipamd.core.records import BlockRecord, Owner, new_block
from ipamd.daemon import Daemon
from ipamd.housekeeping import RETRY
from ipamd.journal.journal import Journal
from ipamd.store.base import ChangeSet, KeyRange, Outcome, Store
from tests.api.plugin_call import ROOT, call
from tests.journal.examples import file_size
from tests.memory_store import MemoryStore
from tests.nodes import now, pool_record
from tests.simulation.disk import Disk, Process, SimPath, mounted
from tests.store.truth import view

T = TypeVar("T")
CIDR = "10.0.0.0/26"
KEY = "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26"


class _Journal(Journal):
    """The journal without threads, which a virtual clock does not wait for."""

    async def _in_thread(self, work: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return work()


class SlowStore(MemoryStore):
    """A store to which nothing arrives while ``holding``: what was sent ``arrive``s later, its sender being dead."""

    def __init__(self) -> None:
        super().__init__(delay=0.001)
        self.holding = False
        self._held: list[tuple[ChangeSet, ...]] = []

    async def commit(self, *alternatives: ChangeSet, window: KeyRange | None = None) -> Outcome:
        """Commit, or keep it on its way."""
        if self.holding:
            self._held.append(alternatives)
            await trio.sleep_forever()
        return await super().commit(*alternatives, window=window)

    @property
    def held(self) -> int:
        """How many transactions are on their way."""
        return len(self._held)

    async def arrive(self) -> None:
        """Let all that was held arrive."""
        held, self._held = self._held, []
        for alternatives in held:
            await super().commit(*alternatives)


@pytest.fixture(autouse=True)
def disks() -> Iterator[None]:
    """The journal works on disks in memory."""
    with mounted():
        yield


@pytest.fixture
def disk() -> Disk:
    """The node's."""
    return Disk(Random(1))  # noqa: S311


@pytest.fixture
def store() -> SlowStore:
    """A store with a pool whose first block of the node is ``CIDR``."""
    store = SlowStore()
    store.put(*pool_record("p", CIDR, blockSize=26))
    return store


@pytest.fixture
def wide(store: SlowStore) -> SlowStore:
    """The store, its pool large enough for a thousand pods."""
    store.put(*pool_record("p", "10.0.0.0/22", blockSize=26))
    return store


@asynccontextmanager
async def life(disk: Disk, store: Store) -> AsyncIterator[Daemon]:
    """A daemon from its start to its ``kill -9``."""
    process = Process(lambda: None)
    journal, facts, _report = _Journal.open(SimPath(disk, process), "n1", "boot")  # type: ignore[arg-type]

    async def open_store(_config: Config) -> Store:
        return store

    daemon = Daemon(Config(node="n1"), journal, facts, now, open_store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.work)
        yield daemon
        process.kill()
        nursery.cancel_scope.cancel()


async def ask(daemon: Daemon, verb: str, container: str) -> tuple[int, bytes]:
    """What the plugin is answered: status and body."""
    answer = daemon.handlers.cni(call(CNI_COMMAND=verb, CNI_CONTAINERID=container), ROOT)
    response = answer if isinstance(answer, Response) else await answer
    return response.status, response.body


async def add(daemon: Daemon, container: str) -> Place:
    """An ADD that succeeds."""
    status, body = await ask(daemon, "ADD", container)
    assert status == 200, body
    return daemon.ledger.holdings[Attachment("k8s-pod-network", container, "eth0")].places[0]


async def fill(daemon: Daemon) -> int:
    """ADDs, until one is refused by the full disk; returns how many were not."""
    for number in range(1000):
        status, body = await ask(daemon, "ADD", f"c{number}")
        if status != 200:
            assert b"cannot append to the state file" in body
            return number
    raise AssertionError("the disk is never full")


async def tighten(daemon: Daemon, disk: Disk) -> int:
    """90 pods, and then a byte less room than a file with the images of their blocks takes; returns how many pods."""
    for number in range(90):
        assert (await ask(daemon, "ADD", f"c{number}"))[0] == 200
        await trio.sleep(0.02)
    await trio.sleep(3)
    disk.limit = file_size(daemon.ledger.checkpoint()) - 1
    assert (await ask(daemon, "ADD", "more"))[0] == 500
    return 90


def reserve(daemon: Daemon, size: int) -> None:
    """Have the reserve grow or shrink to a size."""
    daemon.ledger.reserve("p", 0).level = size
    daemon._wake(hurry=True)


def pods(store: MemoryStore) -> dict[Place, str]:
    """What the store gives to pods: handles by place."""
    allocations = view(store).allocations()
    return {place: handle for place, (handle, _n, _k) in allocations.items() if handle.startswith("k8s-pod-network.")}


def free(store: MemoryStore, ordinal: int) -> bool:
    """Whether an ordinal is anybody's to take."""
    return BlockRecord(store.records[KEY].value).owner(ordinal) is None


async def test_nothing_is_given_back_that_the_next_life_would_hand_out(
    autojump_clock: MockClock, disk: Disk, store: SlowStore
) -> None:
    """An image did not fit, a moment later there is room: what was reserved in it is withdrawn, and the daemon killed.

    The transaction that gives it back arrives when the next life, which replays an older image, has handed it out.
    """
    async with life(disk, store) as daemon:
        await trio.sleep(3)
        disk.full = True
        reserve(daemon, 40)
        await trio.sleep(0.3)
        assert daemon.ledger.available("p") == 40
        disk.full = False
        store.put(*pool_record("p", CIDR, blockSize=26, natOutgoing=True))  # is taken in, and fits
        await trio.sleep(0.1)
        store.holding = True
        reserve(daemon, 2)
        await trio.sleep(3)
        assert store.held == 1
    async with life(disk, store) as daemon:
        reserve(daemon, 40)
        await trio.sleep(0.05)
        given = [await add(daemon, f"c{number}") for number in range(daemon.ledger.available("p"))]
        await store.arrive()
        assert [place for place in given if free(store, place.ordinal)] == []


@pytest.mark.parametrize("images", [True, False])
async def test_what_is_given_up_is_told_to_the_store(
    autojump_clock: MockClock, disk: Disk, wide: SlowStore, images: bool
) -> None:
    """The disk has no room for one pod more: the DELs make some, whether the images of the blocks would fit or not."""
    async with life(disk, wide) as daemon:
        await trio.sleep(3)
        disk.limit = 40_000 if images else disk.limit
        count = await (fill(daemon) if images else tighten(daemon, disk))
        for number in range(count):
            assert (await ask(daemon, "DEL", f"c{number}"))[0] == 200
        await trio.sleep(30)
        assert pods(wide) == {}
        assert not daemon.report.journal_error
        await add(daemon, "after")


async def test_a_state_file_without_images_keeps_every_promise(
    autojump_clock: MockClock, disk: Disk, wide: SlowStore
) -> None:
    """Of the pods whose blocks have no image in the file some go, the daemon is killed: the next has those that stay."""
    async with life(disk, wide) as daemon:
        await trio.sleep(3)
        count = await tighten(daemon, disk)
        await trio.sleep(2)
        for number in range(0, count, 2):
            await ask(daemon, "DEL", f"c{number}")
        held = dict(daemon.ledger.holdings)
    assert len(held) == count // 2
    async with life(disk, wide) as daemon:
        assert dict(daemon.ledger.holdings) == held
        await trio.sleep(30)
        assert pods(wide) == {place: assigned.handle for assigned in held.values() for place in assigned.places}


async def test_with_room_again_the_images_are_written_down_again(
    autojump_clock: MockClock, disk: Disk, wide: SlowStore
) -> None:
    """A start without the store has nothing to hand out from a file without images, and a reserve once there is room."""
    async with life(disk, wide) as daemon:
        await trio.sleep(3)
        await tighten(daemon, disk)
        await trio.sleep(2)
        assert daemon.ledger.available("p")
        await add(daemon, "one-more")  # there is room, for what is promised
    wide.away = True
    async with life(disk, wide) as daemon:
        assert not daemon.ledger.available("p")
    wide.away = False
    async with life(disk, wide) as daemon:
        await trio.sleep(2)
        disk.limit = 1 << 20
        await trio.sleep(RETRY + 2)
    wide.away = True
    async with life(disk, wide) as daemon:
        assert daemon.ledger.available("p")
        assert len(daemon.ledger.holdings) == 91


async def test_what_was_withdrawn_stays_so_though_the_file_has_no_image(
    autojump_clock: MockClock, disk: Disk, store: SlowStore
) -> None:
    """The first image that the next life sees is of before the addresses were given back: none of them is handed out."""
    async with life(disk, store) as daemon:
        await trio.sleep(3)
        reserve(daemon, 40)
        await trio.sleep(0.5)
        disk.limit = file_size(daemon.ledger.checkpoint()) - 1
        assert (await ask(daemon, "ADD", "refused"))[0] == 500
        await trio.sleep(2)
        store.holding = True
        reserve(daemon, 2)
        await trio.sleep(0.5)
        assert store.held == 1
    async with life(disk, store) as daemon:
        assert daemon.ledger.blocks[CIDR].record is None
        await trio.sleep(0.05)
        given = [await add(daemon, f"c{number}") for number in range(daemon.ledger.available("p"))]
        await store.arrive()
        assert given
        assert [place for place in given if free(store, place.ordinal)] == []


async def test_what_cannot_be_given_back_yet_is_not_withdrawn(
    autojump_clock: MockClock, disk: Disk, store: SlowStore
) -> None:
    """There is room for facts, but for no second file: that the file lacks an image must not eat up the room."""
    async with life(disk, store) as daemon:
        await trio.sleep(3)
        disk.full = True
        reserve(daemon, 40)
        await trio.sleep(0.3)
        disk.full, disk.limit = False, daemon.journal.size + 2000
        disk.no_more_files = True
        reserve(daemon, 2)
        before = daemon.journal.size
        await trio.sleep(60)
        assert (daemon.journal.size, daemon.ledger.available("p")) == (before, 40)
        await add(daemon, "a")
        disk.no_more_files = False
        await trio.sleep(5)
        assert daemon.ledger.available("p") < 10


async def test_no_transaction_waits_for_the_next_look_at_a_file_without_images(
    autojump_clock: MockClock, disk: Disk, wide: SlowStore, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each leaves an image out, and has the file written anew: 40 pods that come one by one are flushed as they come."""
    async with life(disk, wide) as daemon:
        await trio.sleep(3)
        await tighten(daemon, disk)
        await trio.sleep(2)
        capfd.readouterr()
        refused = 0
        for number in range(40):
            while (await ask(daemon, "ADD", f"d{number}"))[0] != 200:  # the file is full to the limit again
                refused += 1
                await trio.sleep(0.05)
            await trio.sleep(0.3)
            assert not any(block.unflushed for block in daemon.ledger.blocks.values())
        told = capfd.readouterr()
        assert (told.out + told.err).count("\n") <= 3
        assert refused <= 4


async def test_a_block_that_is_gone_is_not_made_again_for_a_pod_that_is_gone(
    autojump_clock: MockClock, disk: Disk, store: SlowStore
) -> None:
    """Known only by the DEL, as the file has no image of it: it never comes back, and is forgotten."""
    async with life(disk, store) as daemon:
        await trio.sleep(3)
        await add(daemon, "a")
        await trio.sleep(1)
        store.away = True
        await daemon.journal.checkpoint(daemon.ledger.checkpoint(images=False))
        await ask(daemon, "DEL", "a")
    store.away = False
    for key in [key for key in store.records if "/ipam/v2/" in key]:
        store.put(key, None)
    store.put(*pool_record("p", "10.9.0.0/26", blockSize=26))
    async with life(disk, store) as daemon:
        for _second in range(20):
            await trio.sleep(1)
            assert KEY not in store.records
        assert CIDR not in daemon.ledger.blocks


async def test_what_only_an_image_tells_of_others_blocks_stays_in_the_file(
    autojump_clock: MockClock, disk: Disk, store: SlowStore
) -> None:
    """A pod that Calico's plugin gave an address of another node's block: it is the pod's after the restart, too."""
    other = parse_cidr("10.0.1.0/26")
    image = new_block(other, "host:n2", 1)
    image.assign(5, Owner("k8s-pod-network.old", "n1", {"node": "n1", "pod": "x", "namespace": "default"}))
    store.put(keys.block_key(other), image.encode())
    store.put(keys.handle_key("k8s-pod-network.old"), b'{"block":{"10.0.1.0/26":1},"deleted":false}')
    store.put(*pool_record("p", "10.0.0.0/23", blockSize=26))
    async with life(disk, store) as daemon:
        await trio.sleep(3)
        await daemon._read_blocks([other])
        await daemon.journal.checkpoint(daemon.ledger.checkpoint(images=False))
    async with life(disk, store) as daemon:
        await trio.sleep(3)
        assert await add(daemon, "old") == Place(str(other), 5)


async def test_what_cools_in_a_block_of_no_node_is_freed_after_a_start_without_its_image(
    autojump_clock: MockClock, disk: Disk, store: SlowStore
) -> None:
    """Nobody else comes by to do it."""
    store.put(keys.CONFIG, b'{"auto_allocate_blocks":true,"ipCooldownSeconds":20}')
    async with life(disk, store) as daemon:
        await trio.sleep(3)
        await add(daemon, "a")
        await trio.sleep(1)
        store.put(KEY, store.records[KEY].value.replace(b'"affinity":"host:n1"', b'"affinity":null'))
        store.put(keys.affinity_key("n1", parse_cidr(CIDR)), None)
        store.put(*pool_record("p", "10.9.0.0/26", blockSize=26))
        await trio.sleep(3)
        await ask(daemon, "DEL", "a")
        await trio.sleep(3)
        assert daemon.ledger.blocks[CIDR].cooling
        await daemon.journal.checkpoint(daemon.ledger.checkpoint(images=False))
    async with life(disk, store) as daemon:
        await trio.sleep(60)
        assert KEY not in store.records


@pytest.mark.parametrize("images", [True, False])
async def test_no_block_is_deleted_while_a_claim_of_the_last_life_may_arrive(
    autojump_clock: MockClock, disk: Disk, store: SlowStore, images: bool
) -> None:
    """Also where the state file tells of no block: the node had a life before."""
    async with life(disk, store) as daemon:
        await trio.sleep(3)
        await daemon.journal.checkpoint(daemon.ledger.checkpoint(images=images))
    async with life(disk, store) as daemon:
        await trio.sleep(0.1)
        assert daemon.writer is not None
        assert daemon.writer._settled
        assert daemon.writer._settled > now().boot
