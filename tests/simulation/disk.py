"""A disk in memory under the journal's feet, with all that a real one does to a file.

The journal's own code runs on it unchanged: ``SimPath`` stands for a path, and while ``mounted`` lasts the journal's
modules find here what they call of ``os``, ``fcntl`` and ``secrets``. A process that was killed changes nothing any more, whatever
its tasks still do while they unwind; what it wrote stays. What was not synced may be lost, or be garbage, when the
node loses power.
"""

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace

from ipamd.journal import directory, journal, statefile

SECTOR = 512


class Killed(BaseException):
    """The process died in this very system call."""


class Process:
    """One life of a daemon, as its disk sees it. ``fuse``: how many more changes of the disk it lives to make."""

    def __init__(self, on_death: Callable[[], None] = lambda: None) -> None:
        self.alive = True
        self.fuse: int | None = None
        self.on_death = on_death

    def kill(self) -> None:
        """Nothing that it does from now on has an effect."""
        if self.alive:
            self.alive = False
            self.on_death()

    def may_change(self) -> bool:
        """Whether a change of the disk that it begins now happens; raises Killed if it dies of it."""
        if self.alive and self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.kill()
                raise Killed
        return self.alive


class Inode:
    """A file: what every process reads, and what is on the disk for sure."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = b""
        self.holder: Process | None = None

    def put(self, data: bytes, offset: int) -> None:
        """Write into the page cache."""
        self.data.extend(bytes(max(0, offset - len(self.data))))
        self.data[offset : offset + len(data)] = data


class Disk:
    """The files of one node's state directory.

    ``full``: no file can grow; ``limit``: nor can any beyond so many bytes; ``no_more_files``: none can be made;
    ``broken``: nothing can be synced.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self.full = False
        self.limit = sys.maxsize
        self.no_more_files = False
        self.broken = False
        self.names: dict[str, Inode] = {}
        self._durable: dict[str, Inode] = {}
        self._pending: list[tuple[str, Inode | None, str]] = []

    @property
    def scarce(self) -> bool:
        """Whether a file may find no room."""
        return self.full or self.no_more_files or self.limit < sys.maxsize

    def name(self, name: str, inode: Inode | None, instead_of: str = "") -> None:
        """Give a name to a file, in place of an older name, or (None) take it away."""
        self._pending.append((name, inode, instead_of))
        _name(self.names, name, inode, instead_of)

    def sync_names(self) -> None:
        """All names are on the disk."""
        self._durable, self._pending = dict(self.names), []

    def lose_power(self) -> None:
        """What was not synced may be gone: the last names, the end of a file, and any sector written since."""
        for change in self._pending[: self.random.randint(0, len(self._pending))]:
            _name(self._durable, *change)
        for inode in self._durable.values():
            inode.data = bytearray(_left_of(inode, self.random))
            inode.synced = bytes(inode.data)
        self.names, self._pending = dict(self._durable), []


def _name(names: dict[str, Inode], name: str, inode: Inode | None, instead_of: str) -> None:
    names.pop(instead_of or name, None)
    if inode is not None:
        names[name] = inode


def _left_of(inode: Inode, random: Random) -> bytes:
    old, new = inode.synced, bytes(inode.data)
    common = min(len(old), len(new))
    parts = []
    for at in range(0, common, SECTOR):
        was, now = (data[at : min(at + SECTOR, common)] for data in (old, new))
        parts.append(now if was == now else random.choice((was, now)))
    if len(new) > common:  # a tail of any length, the last of it perhaps anything
        tail = new[common : random.randint(common, len(new))]
        spoilt = random.choice((0, 0, random.randint(0, len(tail))))
        parts.append(tail[: len(tail) - spoilt] + random.choice((bytes(spoilt), random.randbytes(spoilt))))
    return b"".join(parts)


class SimPath:
    """A path on a disk, as one process uses it: what the journal needs of ``pathlib.Path``."""

    def __init__(self, disk: Disk, process: Process, name: str = "") -> None:
        self.disk, self.process, self.name = disk, process, name

    def __truediv__(self, name: str) -> "SimPath":
        return SimPath(self.disk, self.process, name)

    def __str__(self) -> str:
        return f"/state/{self.name}"

    @property
    def parent(self) -> "SimPath":
        return self / ""

    def with_name(self, name: str) -> "SimPath":
        return self / name

    def mkdir(self, **_options: object) -> None:
        """The directory is always there."""

    def exists(self) -> bool:
        return self.name in self.disk.names

    def read_bytes(self) -> bytes:
        return bytes(self.inode().data)

    def stat(self) -> SimpleNamespace:
        return _stat(self.inode())

    def unlink(self, *, missing_ok: bool = False) -> None:
        if self.name in self.disk.names:
            if self.process.may_change():
                self.disk.name(self.name, None)
        elif not missing_ok and self.process.alive:
            self.inode()

    def rename(self, target: "SimPath") -> None:
        if self.process.may_change():
            self.disk.name(target.name, self.inode(), self.name)

    def inode(self) -> Inode:
        """The file of this name; raises FileNotFoundError."""
        try:
            return self.disk.names[self.name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self)) from None


class _Files:
    """What the journal calls of ``os`` and ``fcntl``, on disks in memory; descriptors are numbers of their own."""

    O_RDONLY, O_RDWR, O_CREAT, O_EXCL = os.O_RDONLY, os.O_RDWR, os.O_CREAT, os.O_EXCL
    O_CLOEXEC, O_DIRECTORY = os.O_CLOEXEC, os.O_DIRECTORY
    LOCK_EX, LOCK_NB = fcntl.LOCK_EX, fcntl.LOCK_NB

    def __init__(self) -> None:
        self._open: dict[int, tuple[SimPath, Inode | None]] = {}
        self._next = 1000
        self._tokens = 0

    def token_hex(self, size: int) -> str:
        """A name that nobody else has."""
        self._tokens += 1
        return f"{self._tokens:0{2 * size}x}"

    def open(self, path: SimPath, flags: int, _mode: int = 0) -> int:
        inode = None
        if path.name:
            inode = path.disk.names.get(path.name)
            if inode is None:
                if not flags & os.O_CREAT:
                    path.inode()
                if (path.disk.full or path.disk.no_more_files) and path.name != "lock":
                    raise _no_space()
                inode = Inode()
                if path.process.may_change():
                    path.disk.name(path.name, inode)
        self._next += 1
        self._open[self._next] = path, inode
        return self._next

    def close(self, fd: int) -> None:
        del self._open[fd]

    def flock(self, fd: int, _how: int) -> None:
        path, inode = self._file(fd)
        if inode.holder is not None and inode.holder.alive and inode.holder is not path.process:
            raise BlockingIOError(errno.EWOULDBLOCK, "Resource temporarily unavailable")
        inode.holder = path.process

    def read(self, fd: int, size: int) -> bytes:
        return bytes(self._file(fd)[1].data[:size])

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Write all, or what a full disk still takes, or what the process lived to write."""
        path, inode = self._file(fd)
        end = offset + len(data)
        if end > len(inode.data) and (path.disk.full or end > path.disk.limit):
            if not path.process.alive:
                return len(data)
            room = path.disk.random.choice((0, 0, path.disk.random.randrange(len(data))))
            if not room:
                raise _no_space()
            data, end = data[:room], offset + room
        try:
            alive = path.process.may_change()
        except Killed:
            lived = path.disk.random.choice((0, len(data), path.disk.random.randint(0, len(data))))
            inode.put(data[:lived], offset)
            raise
        if alive:
            inode.put(data, offset)
        return len(data)

    def ftruncate(self, fd: int, length: int) -> None:
        path, inode = self._file(fd)
        if path.process.may_change():
            del inode.data[length:]
            inode.data.extend(bytes(length - len(inode.data)))

    def fdatasync(self, fd: int) -> None:
        path, inode = self._open[fd]
        if not path.process.may_change():
            return
        if path.disk.broken:
            raise OSError(errno.EIO, "Input/output error")
        if inode is None:
            path.disk.sync_names()
        else:
            inode.synced = bytes(inode.data)

    fsync = fdatasync

    def fstat(self, fd: int) -> SimpleNamespace:
        return _stat(self._file(fd)[1])

    def getpid(self) -> int:
        return 1

    def _file(self, fd: int) -> tuple[SimPath, Inode]:
        path, inode = self._open[fd]
        assert inode is not None, path
        return path, inode


def _stat(inode: Inode) -> SimpleNamespace:
    return SimpleNamespace(st_dev=1, st_ino=id(inode), st_size=len(inode.data))


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def mounted() -> Iterator[None]:
    """Within it the journal works on disks in memory, and on nothing else."""
    files = _Files()
    places = [(statefile, "os"), (directory, "os"), (directory, "fcntl"), (journal, "os"), (journal, "secrets")]
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, files)
    try:
        yield
    finally:
        for (module, name), old in zip(places, before, strict=True):
            setattr(module, name, old)
