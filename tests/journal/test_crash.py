"""Crashes: real processes killed at any moment, and images of the disk at every step of an open or a checkpoint.

The images are what ``kill -9`` leaves (all that was written, as the page cache stays) and some of what the loss of
power may leave: of each file what was there when its last sync began, or parts of what was written since, under the
present names or those of the directory's last sync.
"""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import Struct

from ipamd.core.facts import Fact, Rebooted
from ipamd.journal.format import HEADER_SIZE
from ipamd.journal.journal import Journal
from ipamd.journal.recovery import recover
from tests.journal.examples import BOOT, NODE, OTHER_BOOT, assigned

ROOT = Path(__file__).parents[2]
THIRD_BOOT = "b9f3a1f4-6a0e-4d54-8f0c-5b8e5b1a8a1d"


# --- real processes -------------------------------------------------------------------------------------------


def acknowledged_when_killed(directory: Path, words: int) -> int:
    """Run the process that appends, kill it after so many of its words; how many facts it said are in the journal."""
    command = [sys.executable, "-m", "tests.journal.crash_child", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        heard = [process.stdout.readline() for _ in range(words)]
        process.kill()
        heard += [line for line in process.stdout if line.endswith(b"\n")]
    return int(heard[-1])


@pytest.mark.real
def test_what_a_killed_process_acknowledged_is_there(tmp_path: Path) -> None:
    """Killed amid appends, syncs and checkpoints, twenty times over, it never loses or doubles a fact."""
    for words in range(1, 400, 20):
        acknowledged = acknowledged_when_killed(tmp_path, words)
        journal, facts, _ = Journal.open(tmp_path, NODE, BOOT)
        journal.close()
        # One group of up to three may have been written and not acknowledged.
        assert acknowledged <= len(facts) <= acknowledged + 3
        assert facts == [assigned(n) for n in range(len(facts))]


# --- images at every step -------------------------------------------------------------------------------------


class Image(Struct):
    """What a crash at one moment leaves of ``state`` (None: no such file), and what it must hold at least."""

    step: str
    appended: int
    synced: int
    killed: bytes | None
    powerless: list[bytes]


class Disk:
    """Takes an image before and after each system call that changes files; knows what has been synced."""

    CALLS = ("pwrite", "ftruncate", "rename", "unlink", "fsync", "fdatasync")

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: list[Image] = []
        self.appended = self.synced = 0
        self._directory = directory
        self._contents: dict[int, bytes] = {}
        self._names: dict[str, int] = self._list()
        for path in directory.iterdir():
            self._contents[path.stat().st_ino] = path.read_bytes()
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._take(f"before {name}")
            begun = self._begin_sync(args[0]) if "sync" in name else None
            result = real(*args, **kwargs)
            if begun is not None:
                begun()
            self._take(f"after {name}")
            return result

        return call

    def _begin_sync(self, fd: int) -> Callable[[], None]:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            names = self._list()
            return lambda: setattr(self, "_names", names)
        content = Path(f"/proc/self/fd/{fd}").read_bytes()
        return lambda: self._contents.update({status.st_ino: content})

    def _list(self) -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(self._directory)}

    def _take(self, step: str) -> None:
        image = Image(step, self.appended, self.synced, None, [])
        present = -1
        with suppress(FileNotFoundError), (self._directory / "state").open("rb") as file:
            present, image.killed = os.fstat(file.fileno()).st_ino, file.read()
        for names in (self._names, self._list()):
            if "state" in names:
                synced = self._contents[names["state"]]
                written = image.killed if names["state"] == present else None
                image.powerless += [synced] if written is None else self._remains(synced, written)
        self.images.append(image)

    @staticmethod
    def _remains(synced: bytes, written: bytes) -> list[bytes]:
        """What was synced; the same with the present header page; the same with half of what was appended since."""
        page = written[:HEADER_SIZE] + synced[HEADER_SIZE:]
        return [synced, page, synced + written[len(synced) : (len(synced) + len(written)) // 2]]


def check(images: list[Image], facts: list[Fact], boot: str, next_boot: str) -> None:
    """Each image gives a prefix of the facts, not shorter than it was promised."""
    for image in images:
        if image.killed is not None:
            found = recover(image.killed, NODE, boot, image.step)
            assert found.facts == facts[: len(found.facts)], image.step
            assert len(found.facts) >= image.appended, image.step
        else:
            assert image.appended == 0
        for data in image.powerless:
            found = recover(data, NODE, next_boot, image.step)
            assert found.facts == facts[: len(found.facts)], image.step
            assert len(found.facts) >= image.synced, image.step


async def test_every_step_of_a_checkpoint_may_be_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed or powerless at any system call: what was appended, or synced, meanwhile is there."""
    facts: list[Fact] = [assigned(n) for n in range(20)]
    journal, _, _ = Journal.open(tmp_path, NODE, BOOT)
    journal.append(facts)
    await journal.sync()
    disk = Disk(tmp_path, monkeypatch)
    disk.appended = disk.synced = len(facts)
    done = trio.Event()

    async def append() -> None:
        while not done.is_set():
            facts.append(assigned(len(facts)))
            journal.append(facts[-1:])
            disk.appended = len(facts)
            await trio.lowlevel.checkpoint()

    async def sync() -> None:
        while not done.is_set():
            appended = len(facts)
            await journal.sync()
            disk.synced = max(disk.synced, appended)

    with closing(journal):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(append)
            nursery.start_soon(sync)
            for _ in range(4):
                await journal.checkpoint(facts)
            done.set()
    monkeypatch.undo()
    assert {"after rename", "after fsync", "after fdatasync"} <= {image.step for image in disk.images}
    check(disk.images, facts, BOOT, OTHER_BOOT)


def test_every_step_of_a_first_start_may_be_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is half made is never found under the name that counts."""
    disk = Disk(tmp_path, monkeypatch)
    Journal.open(tmp_path, NODE, BOOT)[0].close()
    monkeypatch.undo()
    assert disk.images[-1].killed is not None
    check(disk.images, [], BOOT, OTHER_BOOT)


@pytest.mark.parametrize("boot", [BOOT, OTHER_BOOT])
def test_every_step_of_a_recovery_may_be_the_last(boot: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed or powerless while a torn end is cut off, the next start finds the same facts (or the synced ones)."""
    facts: list[Fact] = [assigned(1), assigned(2)]
    Journal.open(tmp_path, NODE, BOOT)[0].close()
    disk = Disk(tmp_path, monkeypatch)
    journal, _, _ = Journal.open(tmp_path, NODE, BOOT)
    journal.append(facts)
    journal.close()
    with (tmp_path / "state").open("ab") as file:
        file.write(b"\x99\x00\x00")
    disk.appended = len(facts)
    journal, found, report = Journal.open(tmp_path, NODE, boot)
    journal.close()
    monkeypatch.undo()
    since_boot = [Rebooted()] if boot == OTHER_BOOT else []
    assert (found, report.cut) == ([*facts, *since_boot], 3)
    images = [image for image in disk.images if image.appended]
    check(images, facts, boot, THIRD_BOOT)
    assert any(len(recover(data, NODE, THIRD_BOOT, "").facts) == 0 for data in images[0].powerless)
    assert all(len(recover(data, NODE, THIRD_BOOT, "").facts) == 2 for data in images[-1].powerless)
