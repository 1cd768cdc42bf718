"""The journal as the daemon uses it: open, append, sync, checkpoint, close, and what each refuses."""

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from ipamd.core.facts import Attachment, Committed, Fact, Place, RangeReleased, Rebooted, Released
from ipamd.journal import journal as module
from ipamd.journal.errors import (
    JournalBusyError,
    JournalDamagedError,
    JournalError,
    JournalForeignError,
    JournalFullError,
    JournalWriteError,
)
from ipamd.journal.format import HEADER_SIZE, SLOTS, committed_length, describe
from ipamd.journal.journal import Journal, OpenReport
from tests.journal.examples import BOOT, EACH_KIND, NODE, OTHER_BOOT, assigned

OPEN_FILES = Path("/proc/self/fd")


@contextmanager
def opened(directory: Path, boot: str = BOOT) -> Iterator[tuple[Journal, list[Fact], OpenReport]]:
    """An open journal that is closed afterwards."""
    journal, facts, report = Journal.open(directory, NODE, boot)
    try:
        yield journal, facts, report
    finally:
        journal.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A new journal in the test's directory."""
    with opened(tmp_path) as (journal, _, _):
        yield journal


def stored(directory: Path) -> list[Fact]:
    """The facts in the file, which may be in use."""
    contents = describe((directory / "state").read_bytes())
    assert contents.problem is None
    assert contents.committed == (directory / "state").stat().st_size
    return contents.facts


def names(directory: Path) -> set[str]:
    """What is in the directory."""
    return {path.name for path in directory.iterdir()}


def inode(path: Path) -> int:
    """Which file the name stands for."""
    return path.stat().st_ino


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Files may not grow beyond this size: a full disk that needs no disk (Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- opening --------------------------------------------------------------------------------------------------


def test_a_first_start_makes_an_empty_private_file(tmp_path: Path) -> None:
    """The directory is made with mode 0700, the file with 0600, and nothing else is left but the lock."""
    directory = tmp_path / "lib" / "ipamd"
    with opened(directory) as (journal, facts, report):
        assert facts == []
        assert (report.created, report.rebooted, report.records, report.cut, report.missing) == (True, False, 0, 0, 0)
        assert report.bytes == journal.size == HEADER_SIZE
        assert report.duration > 0
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "state").stat().st_mode & 0o777 == 0o600
    assert names(directory) == {"state", "lock"}


def test_what_was_appended_is_there_at_the_next_start(tmp_path: Path) -> None:
    """Facts come back in the order in which they were appended, with what was found in the report."""
    with opened(tmp_path) as (journal, _, _):
        journal.append(EACH_KIND)
        journal.append([])
        journal.append([assigned(2)])
        size = journal.size
    with opened(tmp_path) as (journal, facts, report):
        assert facts == [*EACH_KIND, assigned(2)]
        assert (report.created, report.rebooted, report.records, report.bytes) == (False, False, 2, size)
        journal.append([assigned(3)])
    with opened(tmp_path) as (_, facts, _):
        assert facts == [*EACH_KIND, assigned(2), assigned(3)]


def test_the_slots_take_turns(tmp_path: Path, journal: Journal) -> None:
    """Each append leaves the slot with the last committed length alone: a store that is cut short costs nothing."""
    path = tmp_path / "state"
    previous = committed_length(path.read_bytes())
    for number in range(4):
        journal.append([assigned(number)])
        page = path.read_bytes()[:HEADER_SIZE]
        halves = [committed_length(page[:at] + bytes(12) + page[at + 12 :]) for at in SLOTS]
        assert sorted(length or 0 for length in halves) == [previous, journal.size]
        previous = journal.size


def test_a_torn_record_is_cut_off_and_told(tmp_path: Path) -> None:
    """What a killed write left is gone from the file, and appending goes on where it was."""
    with opened(tmp_path) as (journal, _, _):
        journal.append([assigned(1)])
    with (tmp_path / "state").open("ab") as file:
        file.write(b"\x20\x00\x00")
    with opened(tmp_path) as (journal, facts, report):
        assert facts == [assigned(1)]
        assert report.cut == 3
        journal.append([assigned(2)])
    assert stored(tmp_path) == [assigned(1), assigned(2)]


def test_a_reboot_is_an_excuse_once(tmp_path: Path) -> None:
    """A damaged end is cut at the first start after a reboot; what is kept then counts as being on the disk."""
    with opened(tmp_path) as (journal, _, _):
        journal.append([assigned(1)])
        keep = journal.size
        journal.append([assigned(2)])
        lost = journal.size - keep
    path = tmp_path / "state"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with opened(tmp_path, OTHER_BOOT) as (_, facts, report):
        assert facts == [assigned(1), Rebooted()]
        assert (report.rebooted, report.cut, report.missing, report.bytes) == (True, lost, lost, keep)
    with opened(tmp_path, OTHER_BOOT) as (_, facts, report):
        assert (facts, report.rebooted, report.cut, report.missing) == ([assigned(1), Rebooted()], False, 0, 0)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(JournalDamagedError, match="on the disk before the reboot"):
        Journal.open(tmp_path, NODE, "a third boot")


def test_a_refused_file_is_left_as_it_is(tmp_path: Path) -> None:
    """Damage, or another node's name, changes no byte, and does not keep the lock."""
    with opened(tmp_path) as (journal, _, _):
        journal.append([assigned(1)])
    path = tmp_path / "state"
    with pytest.raises(JournalForeignError):
        Journal.open(tmp_path, "node-2", BOOT)
    damaged = path.read_bytes()[:-1]
    path.write_bytes(damaged)
    for _ in range(2):
        with pytest.raises(JournalDamagedError, match=f"cannot read the state file {path}: it ends at byte"):
            Journal.open(tmp_path, NODE, BOOT)
    assert path.read_bytes() == damaged


def test_a_second_process_is_refused(tmp_path: Path, journal: Journal) -> None:
    """Whoever holds the journal is named by its pid; when it lets go the next one may have it."""
    with pytest.raises(JournalBusyError, match=rf"another ipamd \(pid {os.getpid()}\) uses it; stop that one first"):
        Journal.open(tmp_path, NODE, BOOT)
    journal.close()
    Journal.open(tmp_path, NODE, BOOT)[0].close()


def test_a_disk_that_takes_no_writes_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a new nor a found file is used if it cannot be written, and the lock is let go."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(JournalFullError, match=r"cannot write .*/state.new: No space left on device; make room"):
            Journal.open(tmp_path, NODE, BOOT)
    assert names(tmp_path) == {"lock"}
    with opened(tmp_path) as (journal, _, _):
        journal.append([assigned(1)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(JournalFullError, match=r"cannot write .*/state: No space left on device; make room"):
            Journal.open(tmp_path, NODE, BOOT)
    with opened(tmp_path) as (_, facts, _):
        assert facts == [assigned(1)]


async def test_the_lock_outlives_a_checkpoint(tmp_path: Path, journal: Journal) -> None:
    """Replacing the file does not let a second process in."""
    await journal.checkpoint([assigned(1)])
    with pytest.raises(JournalBusyError):
        Journal.open(tmp_path, NODE, BOOT)


def test_a_leftover_of_a_checkpoint_is_removed(tmp_path: Path) -> None:
    """A new file that was never renamed counts for nothing."""
    with opened(tmp_path) as (journal, _, _):
        journal.append([assigned(1)])
    (tmp_path / "state.new").write_bytes(b"half")
    with opened(tmp_path) as (_, facts, _):
        assert facts == [assigned(1)]
    assert not (tmp_path / "state.new").exists()


def test_a_directory_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
    """What the system refuses comes as a JournalError that names the place."""
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=r"cannot use .*/file/ipamd: .*; check the directory's owner and mode"):
        Journal.open(tmp_path / "file" / "ipamd", NODE, BOOT)
    (tmp_path / "ours" / "state").mkdir(parents=True)
    with pytest.raises(JournalError, match=r"cannot use .*/ours: Is a directory"):
        Journal.open(tmp_path / "ours", NODE, BOOT)


async def test_a_closed_journal_refuses_everything(tmp_path: Path, journal: Journal) -> None:
    """After close nothing is written, and closing again is no error."""
    journal.close()
    journal.close()
    with pytest.raises(JournalWriteError, match="closed"):
        journal.append([assigned(1)])
    with pytest.raises(JournalWriteError, match="closed"):
        await journal.sync()
    with pytest.raises(JournalWriteError, match="closed"):
        await journal.checkpoint([])
    assert stored(tmp_path) == []


# --- a full disk ----------------------------------------------------------------------------------------------


def test_a_full_disk_takes_a_fact_whole_or_not_at_all(tmp_path: Path, journal: Journal) -> None:
    """Wherever the space ends, a refused append leaves the file as it was, and later ones succeed."""
    done: list[Fact] = []
    for room in range(0, 120, 7):
        with file_limit(journal.size + room), pytest.raises(JournalFullError, match="make room") as caught:
            journal.append([assigned(1000 + room)])
        assert isinstance(caught.value.__cause__, OSError)
        assert stored(tmp_path) == done
        journal.append([assigned(room)])
        done.append(assigned(room))
    journal.close()
    with opened(tmp_path) as (_, facts, report):
        assert facts == done
        assert report.cut == 0


async def test_a_write_that_cannot_be_undone_closes_the_file_to_appends(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No fact is put behind a torn one; a new file (a checkpoint) or a new start ends it."""
    journal.append([assigned(1)])

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        with file_limit(journal.size + 20), pytest.raises(JournalFullError):
            journal.append([assigned(2)])
    with pytest.raises(JournalWriteError, match="restart ipamd"):
        journal.append([assigned(3)])
    saved = (tmp_path / "state").read_bytes()
    await journal.checkpoint([assigned(1)])
    journal.append([assigned(4)])
    assert stored(tmp_path) == [assigned(1), assigned(4)]
    journal.close()
    (tmp_path / "state").write_bytes(saved)
    with opened(tmp_path) as (_, facts, report):
        assert (facts, report.cut) == ([assigned(1)], 20)


async def test_a_checkpoint_without_space_leaves_the_old_file(tmp_path: Path, journal: Journal) -> None:
    """The old file stays in use, the new one is removed, and a later checkpoint succeeds."""
    journal.append([assigned(1)])
    with file_limit(journal.size + 200), pytest.raises(JournalFullError, match="make room"):
        await journal.checkpoint([assigned(n) for n in range(100)])
    assert names(tmp_path) == {"state", "lock"}
    journal.append([assigned(2)])
    assert stored(tmp_path) == [assigned(1), assigned(2)]
    await journal.checkpoint([assigned(3)])
    assert stored(tmp_path) == [assigned(3)]


# --- the disk -------------------------------------------------------------------------------------------------


class SlowDisk:
    """Counts the calls of ``fdatasync`` (or another) and holds each one up until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str = "fdatasync") -> None:
        self.inodes: list[int] = []
        self._real: Callable[[int], None] = getattr(os, call)
        self._gate = threading.Semaphore(0)
        self.entered = trio.Event()
        monkeypatch.setattr(os, call, self._sync)

    @property
    def calls(self) -> int:
        """How many calls began."""
        return len(self.inodes)

    def let_through(self, calls: int = 1000) -> None:
        """Let so many calls go on."""
        self._gate.release(calls)

    def _sync(self, fd: int) -> None:
        self.inodes.append(os.fstat(fd).st_ino)
        trio.from_thread.run_sync(self.entered.set)
        assert self._gate.acquire(timeout=10)
        self._real(fd)


async def test_many_who_wait_share_one_sync(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that arrives while a sync is under way is satisfied by the next one, and nothing by the one under way."""
    disk = SlowDisk(monkeypatch)
    done: list[int] = []

    async def record(number: int) -> None:
        journal.append([assigned(number)])
        await journal.sync()
        done.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(record, 0)
        await disk.entered.wait()
        for number in range(1, 51):
            nursery.start_soon(record, number)
        await wait_all_tasks_blocked()
        assert done == []
        disk.entered = trio.Event()
        disk.let_through(1)
        await disk.entered.wait()
        await wait_all_tasks_blocked()
        assert done == [0]
        disk.let_through()
    assert sorted(done) == list(range(51))
    assert disk.calls == 2


async def test_nothing_new_needs_no_sync(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second sync of the same facts does not go to the disk."""
    disk = SlowDisk(monkeypatch)
    disk.let_through()
    await journal.sync()
    assert disk.calls == 0
    journal.append([assigned(1)])
    await journal.sync()
    await journal.sync()
    assert disk.calls == 1


async def test_one_who_gives_up_does_not_harm_the_others(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cancelled leader of a group leaves its sync to those who wait for it."""
    disk = SlowDisk(monkeypatch)
    async with trio.open_nursery() as nursery:
        leader = await nursery.start(_cancellable_sync, journal)
        await disk.entered.wait()
        journal.append([assigned(2)])
        nursery.start_soon(journal.sync)
        await wait_all_tasks_blocked()
        leader.cancel()
        disk.let_through()
    assert disk.calls == 2


async def _cancellable_sync(
    journal: Journal, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    journal.append([assigned(1)])
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await journal.sync()


async def test_a_failed_sync_is_not_forgotten(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells of a lost page once, so no later sync may claim success until there is a new file, which is then due."""

    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal.append([assigned(1)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        with pytest.raises(JournalWriteError, match="Input/output error; check the disk"):
            await journal.sync()
    with pytest.raises(JournalWriteError, match="Input/output error"):
        await journal.sync()
    assert journal.should_checkpoint
    await journal.checkpoint([assigned(1)])
    assert not journal.should_checkpoint
    journal.append([assigned(2)])
    await journal.sync()


async def test_closing_just_after_a_sync_was_called_does_not_break_it(tmp_path: Path) -> None:
    """A sync that was called before close is carried out, whichever of the two tasks goes on first."""

    async def sync(journal: Journal, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await journal.sync()

    for number in range(12):  # Trio throws dice on which task goes on first
        with opened(tmp_path) as (journal, facts, _):
            assert len(facts) == number
            journal.append([assigned(number)])
            async with trio.open_nursery() as nursery:
                await nursery.start(sync, journal)
                journal.close()


async def test_closing_waits_for_the_sync_under_way(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Descriptors and lock are let go only when no thread uses them any more."""
    disk = SlowDisk(monkeypatch)
    async with trio.open_nursery() as nursery:
        journal.append([assigned(1)])
        nursery.start_soon(journal.sync)
        await disk.entered.wait()
        journal.close()
        with pytest.raises(JournalBusyError):
            Journal.open(tmp_path, NODE, BOOT)
        disk.let_through()
    monkeypatch.undo()
    with opened(tmp_path) as (_, facts, _):
        assert facts == [assigned(1)]


# --- checkpoints ----------------------------------------------------------------------------------------------


async def test_a_checkpoint_replaces_what_was_there(tmp_path: Path, journal: Journal) -> None:
    """Afterwards the file holds the given facts and those appended since, under the same name and mode."""
    for number in range(100):
        journal.append([assigned(number)])
    before = journal.size
    await journal.checkpoint(iter([assigned(7)]))
    assert journal.appended == 0
    assert journal.size < before
    journal.append([assigned(8)])
    assert stored(tmp_path) == [assigned(7), assigned(8)]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == {"state", "lock"}
    journal.close()
    with opened(tmp_path) as (journal, facts, _):
        assert facts == [assigned(7), assigned(8)]
        assert 0 < journal.appended < journal.size


async def test_appends_go_on_beside_a_checkpoint(tmp_path: Path, journal: Journal) -> None:
    """Each fact appended before, between and after a checkpoint's steps is in the file, once and in order."""
    facts: list[Fact] = []
    done = trio.Event()

    async def append_all_the_time() -> None:
        while not done.is_set():
            facts.append(assigned(len(facts)))
            journal.append(facts[-1:])
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(append_all_the_time)
        for _ in range(10):
            size = len(facts)
            await journal.checkpoint(facts)
            assert len(facts) > size
        done.set()
    assert stored(tmp_path) == facts


async def test_a_second_checkpoint_at_once_is_a_mistake(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one is refused and the first one is not harmed."""
    disk = SlowDisk(monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.checkpoint, [assigned(1)])
        await disk.entered.wait()
        with pytest.raises(RuntimeError, match="under way"):
            await journal.checkpoint([assigned(2)])
        disk.let_through()
    assert stored(tmp_path) == [assigned(1)]


async def test_a_sync_beside_a_checkpoint_waits_for_the_new_file(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is appended while the new file catches up is called durable only once it is so in the new file."""
    disk = SlowDisk(monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.checkpoint, [assigned(1)])
        await disk.entered.wait()  # the new file catches up
        journal.append([assigned(2)])
        await wait_all_tasks_blocked()
        disk.let_through()
        await journal.sync()
        assert disk.inodes[-1] == inode(tmp_path / "state")
    assert stored(tmp_path) == [assigned(1), assigned(2)]


@pytest.mark.parametrize("name", ["fsync", "fdatasync", "rename"])
async def test_a_checkpoint_that_fails_leaves_the_old_file(
    name: str, tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever step fails, the old file stays in use with all facts, and nothing is left over."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    journal.append([assigned(1)])
    with monkeypatch.context() as patch:
        patch.setattr(os, name, refuse)
        with pytest.raises(JournalWriteError, match="Input/output error"):
            await journal.checkpoint([assigned(9)])
    journal.append([assigned(2)])
    assert stored(tmp_path) == [assigned(1), assigned(2)]
    assert names(tmp_path) == {"state", "lock"}
    await journal.sync()


async def test_what_only_the_new_file_holds_is_durable_no_earlier_than_its_name(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last sync fails, and nothing is appended since: what was left out of the old file, or owed, is not on the disk."""

    def refuse(_directory: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    await journal.sync()
    journal.owe([assigned(1)])
    journal.leave_out(JournalFullError("no room"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "sync_directory", refuse)
        with pytest.raises(JournalWriteError, match="Input/output error"):
            await journal.checkpoint([assigned(1)])
        assert not journal.owing
        assert not journal.lacking
        with pytest.raises(JournalWriteError, match="Input/output error"):
            await journal.sync_whole()
    await journal.checkpoint([assigned(1)])
    await journal.sync_whole()


async def test_what_is_owed_is_not_appended_to_a_file_that_has_it(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint holds what was owed as it began; what came to be owed since, be it of the same DEL, is still owed."""
    gone = Attachment("net", "c", "eth0")
    first, second = Released(gone, "net.c", (), 5), assigned(2)
    later = Released(gone, "net.c", (), 99)
    journal.owe([first, second])
    async with trio.open_nursery() as nursery:
        disk = SlowDisk(monkeypatch, "fsync")
        nursery.start_soon(journal.checkpoint, [first, second])
        await disk.entered.wait()
        journal.owe([later])
        disk.let_through()
    assert journal.owing
    journal.append(())
    assert stored(tmp_path) == [first, second, later]


async def test_a_file_that_lacks_records_is_not_called_whole_before_it_is_written_anew(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is one whose checkpoint began before the last record was left out."""
    journal.leave_out(JournalFullError("no room"))
    with pytest.raises(JournalWriteError, match="written anew first, as it lacks records: no room"):
        await journal.sync_whole()
    async with trio.open_nursery() as nursery:
        disk = SlowDisk(monkeypatch, "fsync")
        nursery.start_soon(journal.checkpoint, [assigned(1)])
        await disk.entered.wait()
        journal.leave_out(JournalFullError("no room"))
        disk.let_through()
    assert journal.lacking
    await journal.checkpoint([assigned(1)])
    await journal.sync_whole()


async def test_a_checkpoint_cancelled_early_leaves_the_old_file(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given up while the new file is written, it is removed, and the old one is still in use."""
    disk = SlowDisk(monkeypatch, "fsync")
    journal.append([assigned(1)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.checkpoint, [assigned(9)])
        await disk.entered.wait()
        nursery.cancel_scope.cancel()
        disk.let_through()
    journal.append([assigned(2)])
    assert stored(tmp_path) == [assigned(1), assigned(2)]
    assert names(tmp_path) == {"state", "lock"}
    await journal.checkpoint([assigned(3)])
    assert stored(tmp_path) == [assigned(3)]


async def test_a_checkpoint_cancelled_late_leaves_the_new_file(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given up after the new file has caught up, that one is in use, and the next sync makes its name durable too."""
    disk = SlowDisk(monkeypatch)
    descriptors = len(names(OPEN_FILES))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.checkpoint, [assigned(9)])
        await disk.entered.wait()
        nursery.cancel_scope.cancel()
        disk.let_through()
    assert len(names(OPEN_FILES)) == descriptors
    journal.append([assigned(2)])
    assert stored(tmp_path) == [assigned(9), assigned(2)]
    assert names(tmp_path) == {"state", "lock"}
    names_disk = SlowDisk(monkeypatch, "fsync")
    names_disk.let_through()
    await journal.sync()
    assert names_disk.inodes == [inode(tmp_path)]


async def test_closing_ends_a_checkpoint(tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal closed under a checkpoint keeps its old file, and is locked until the new one is removed."""
    disk = SlowDisk(monkeypatch)
    journal.append([assigned(1)])
    refused = False

    async def checkpoint() -> None:
        nonlocal refused
        with pytest.raises(JournalWriteError, match="closed"):
            await journal.checkpoint([assigned(9)])
        refused = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(checkpoint)
        await disk.entered.wait()
        journal.close()
        with pytest.raises(JournalBusyError):
            Journal.open(tmp_path, NODE, BOOT)
        disk.let_through()
    assert refused
    assert names(tmp_path) == {"state", "lock"}
    monkeypatch.undo()
    with opened(tmp_path) as (_, facts, _):
        assert facts == [assigned(1)]


async def test_a_checkpoint_is_due_when_it_is_worth_it(tmp_path: Path) -> None:
    """Neither below the floor nor below a multiple of the last checkpoint's size; a restart does not change it."""
    journal, _, _ = Journal.open(tmp_path, NODE, BOOT, floor=10_000, factor=2)
    due = _appends_until(lambda: journal.should_checkpoint, journal)
    assert 10_000 < journal.appended <= 10_000 + due[0]
    await journal.checkpoint([assigned(n) for n in range(200)])
    snapshot = journal.size
    assert not journal.should_checkpoint
    _appends_until(lambda: journal.appended > snapshot, journal)
    journal.close()
    journal, _, _ = Journal.open(tmp_path, NODE, BOOT, floor=10_000, factor=2)
    assert not journal.should_checkpoint
    _appends_until(lambda: journal.should_checkpoint, journal)
    assert 2 * snapshot < journal.appended <= 2 * snapshot + due[0]
    journal.close()


def _appends_until(met: Callable[[], bool], journal: Journal) -> list[int]:
    sizes = []
    while not met():
        before = journal.size
        journal.append([assigned(0)])
        sizes.append(journal.size - before)
    return sizes


# --- everything together --------------------------------------------------------------------------------------

NUMBERS = st.lists(st.integers(0, 99), max_size=70)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), NUMBERS),
        st.tuples(st.just("checkpoint"), NUMBERS),
        st.tuples(st.sampled_from(["reopen", "reboot", "sync"]), st.just([])),
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_any_sequence_of_calls_is_a_list(
    steps: list[tuple[str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever was called, the file gives what a list gives that appends extend and checkpoints replace."""
    directory = tmp_path_factory.mktemp("state")

    async def run() -> None:
        model: list[Fact] = []
        boot = 0
        journal, _, _ = Journal.open(directory, NODE, str(boot))
        for step, numbers in steps:
            facts = [assigned(number) for number in numbers]
            if step == "append":
                journal.append(facts)
                model += facts
            elif step == "checkpoint":
                await journal.checkpoint(facts)
                model = [*facts]
            elif step == "sync":
                await journal.sync()
            else:
                journal.close()
                boot += step == "reboot"
                journal, found, report = Journal.open(directory, NODE, str(boot))
                assert [fact for fact in found if fact != Rebooted()] == model
                assert (report.rebooted, report.cut, report.missing) == (step == "reboot", 0, 0)
        journal.close()
        assert stored(directory) == model

    trio.run(run)


@pytest.mark.parametrize("limit", [resource.RLIM_INFINITY, HEADER_SIZE])
async def test_a_reboot_is_not_forgotten_by_a_daemon_that_dies_early(tmp_path: Path, limit: int) -> None:
    """However often it is started, and with a full disk too, the facts say where the reboot was, until a checkpoint."""
    with opened(tmp_path) as (journal, _, _):
        journal.append([assigned(1)])
    for _ in range(2):
        with file_limit(limit), opened(tmp_path, OTHER_BOOT) as (_, facts, _):
            assert facts == [assigned(1), Rebooted()]
    with opened(tmp_path, OTHER_BOOT) as (journal, _, _):
        journal.append([assigned(2)])
    with opened(tmp_path, OTHER_BOOT) as (journal, facts, _):
        assert facts == [assigned(1), Rebooted(), assigned(2)]
        await journal.checkpoint([assigned(1), assigned(2)])
    with opened(tmp_path, OTHER_BOOT) as (_, facts, _):
        assert facts == [assigned(1), assigned(2)]


async def test_facts_that_are_owed_come_before_whatever_is_appended_next(tmp_path: Path) -> None:
    """What could not be written in its time is written first when there is room, so that replay keeps the order."""
    journal, _facts, _report = Journal.open(tmp_path, NODE, BOOT)
    first, second = (Committed("/k", revision, b"v") for revision in (1, 2))
    journal.owe([first])
    assert journal.owing
    journal.append([second])
    assert not journal.owing
    journal.close()
    assert Journal.open(tmp_path, NODE, BOOT)[1] == [first, second]


async def test_what_is_owed_is_not_synced_before_it_is_written(tmp_path: Path, journal: Journal) -> None:
    """A sync that succeeds may be relied on: nothing that holds by then is missing on the disk."""
    journal.owe([assigned(1)])
    with file_limit(journal.size), pytest.raises(JournalFullError, match="make room"):
        await journal.sync()
    await journal.sync()
    assert stored(tmp_path) == [assigned(1)]


async def test_a_del_that_is_repeated_on_a_full_disk_is_owed_once(tmp_path: Path) -> None:
    """Its addresses are given up as by the first, and its start is the latest; another container's is another."""
    journal, _facts, _report = Journal.open(tmp_path, NODE, BOOT)
    one, other = (Attachment("net", name, "eth0") for name in ("one", "other"))
    first = Released(one, one.handle, (Place("10.0.0.0/26", 1),), 5)
    journal.owe([first, RangeReleased(one), Released(other, other.handle, (), 4)])
    for started in (8, *range(6, 1000), 7):
        journal.owe([Released(one, one.handle, (), started), RangeReleased(one)])
    journal.append([])
    journal.close()
    facts = [first, Released(other, other.handle, (), 4), Released(one, one.handle, (), 999), RangeReleased(one)]
    assert Journal.open(tmp_path, NODE, BOOT)[1] == facts


@pytest.mark.parametrize("harm", ["unlink", "replace", "truncate"])
async def test_a_file_that_somebody_removes_replaces_or_cuts_is_noticed_and_made_anew(
    tmp_path: Path, harm: str
) -> None:
    """What an operator's hand does to the open file is seen, and a checkpoint puts everything back in place."""
    journal, _facts, _report = Journal.open(tmp_path, NODE, BOOT)
    fact = Committed("/k", 1, b"v")
    journal.append([fact])
    assert journal.in_place
    state = tmp_path / "state"
    if harm == "unlink":
        state.unlink()
    elif harm == "replace":
        (tmp_path / "other").write_bytes(state.read_bytes())
        (tmp_path / "other").rename(state)
    else:
        os.truncate(state, 100)
    assert not journal.in_place
    await journal.checkpoint([fact])
    assert journal.in_place
    journal.close()
    assert Journal.open(tmp_path, NODE, BOOT)[1] == [fact]
