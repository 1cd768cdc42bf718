"""Listening sockets: bound to a path, or handed over by systemd.

A socket is never open wider than its mode, not for a moment, and a running daemon's socket is never taken away.
Called before anything is served, and again when somebody removed the socket: everything here may block for a moment.
The umask is the process's, so what other threads create meanwhile may be less open than they ask. May import
``access`` only.
"""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ipamd.api.access import group_id

BACKLOG: Final = 4096  # the kernel caps it at net.core.somaxconn; a node may start hundreds of pods at once

_FIRST_FD: Final = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)


def bind(path: Path, group: str | None, mode: int = 0o660) -> socket.socket:
    """Return a non-blocking Unix socket that listens at ``path``, owned by ``group`` if this host has it.

    The directory is created if need be. A socket that nobody listens on any more is replaced. Raises OSError:
    EADDRINUSE if a daemon listens there or the path is no socket, else what the system says.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    gid = group_id(group) if group else None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.settimeout(0)
        with _locked(path.parent):
            _remove_stale(path)
            _bind_private(listener, path)
            if gid is not None:
                os.chown(path, -1, gid)
            path.chmod(mode)
            listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def inode(path: Path) -> tuple[int, int] | None:
    """Which socket a path names, None if there is none: another one than before means that ours was removed."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other daemons from looking for a stale socket in the directory at the same time."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _bind_private(listener: socket.socket, path: Path) -> None:
    """Bind with mode 0600, from which only chmod opens it further.

    Binding in a private directory and renaming would need no umask, but the socket would keep its first name:
    ``ss`` would show a path that does not exist.
    """
    before = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    finally:
        os.umask(before)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on; raises OSError (EADDRINUSE) if what is there must stay."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise OSError(
            errno.EADDRINUSE, f"cannot listen on {path}: it is not a socket; remove it or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)  # a daemon that does not accept any more must not block this one
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # somebody listens, with a full backlog
    raise OSError(errno.EADDRINUSE, f"cannot listen on {path}: a daemon answers there; stop it or choose another path")


def from_systemd(environ: MutableMapping[str, str], pid: int) -> list[tuple[str, socket.socket]]:
    """Return the listening sockets that systemd handed over, with their names (``FileDescriptorName=``).

    The protocol is that of sd_listen_fds(3): the variables count only if they are meant for this ``pid``, and are
    removed from ``environ`` so that no child takes them for its own. Sockets without a name are called "unknown",
    as systemd has it. Raises ValueError for variables or descriptors that do not fit; nothing is closed then.
    """
    meant_for = environ.pop("LISTEN_PID", "")
    count_text = environ.pop("LISTEN_FDS", "")
    names_text = environ.pop("LISTEN_FDNAMES", None)
    environ.pop("LISTEN_PIDFDID", None)
    if meant_for != str(pid):
        return []
    if not (count_text.isascii() and count_text.isdigit()) or len(count_text) > 4:
        raise ValueError(f"cannot take over sockets: LISTEN_FDS is {count_text!r}, not a number; start it by systemd")
    count = int(count_text)
    names = names_text.split(":") if names_text is not None else ["unknown"] * count
    if len(names) != count:
        raise ValueError(
            f"cannot take over sockets: LISTEN_FDNAMES has {len(names)} names for {count} descriptors; "
            "start it by systemd"
        )
    fds = range(_FIRST_FD, _FIRST_FD + count)
    for fd in fds:
        _check_listening(fd)
    return [(name, _adopt(fd)) for name, fd in zip(names, fds, strict=True)]


def _check_listening(fd: int) -> None:
    """Raise ValueError unless the descriptor is a listening stream socket."""
    advice = "use ListenStream= and Accept=no in the socket unit"
    try:
        copy = socket.socket(fileno=os.dup(fd))
    except OSError as error:
        raise ValueError(f"cannot take over descriptor {fd}: {error}; {advice}") from error
    with copy:
        listens = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if copy.type != socket.SOCK_STREAM or not listens:
            raise ValueError(f"cannot take over descriptor {fd}: it is not a listening stream socket; {advice}")


def _adopt(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)  # noqa: FBT003 - the standard library has it positional only
    listener = socket.socket(fileno=fd)
    listener.settimeout(0)
    return listener
