"""Who is at the other end of a connection, and what they may ask.

The kernel says it, at the moment of the connect (SO_PEERCRED, SO_PEERGROUPS of unix(7)); nothing a client sends
counts. May import nothing of ipamd; calls nothing that blocks but the group database (``group_id``, at start).
"""

import grp
import os
import socket
import struct
from enum import Enum, auto
from typing import Final

from msgspec import Struct

ROOT: Final = 0

_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h; the socket module does not name it
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid_t, uid_t, gid_t
_GROUPS_SIZE: Final = 1024  # the most that socket.getsockopt takes: 256 groups


class Peer(Struct, frozen=True):
    """The process that connected. ``uid`` -1: unknown, because the connection is not a Unix socket's.

    ``groups`` are the supplementary groups; left empty for root and for the daemon's own user, who need none.
    """

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


UNKNOWN: Final = Peer(pid=0, uid=-1, gid=-1)


def own_uids() -> frozenset[int]:
    """Who administers the daemon: root, and the user that it runs as."""
    return frozenset((ROOT, os.geteuid()))


class Rule(Enum):
    """What a route asks of its caller."""

    ANYONE = auto()
    """Whoever can connect, over TCP as well."""
    READ = auto()
    """Root, the daemon's own user, and members of the configured group."""
    ADMIN = auto()
    """Root and the daemon's own user."""


class Access(Struct, frozen=True):
    """The access rules of a daemon that runs as ``own_uid``; ``group_gid`` None: there is no group of readers."""

    own_uid: int
    group_gid: int | None

    def allows(self, rule: Rule, peer: Peer) -> bool:
        """Whether the peer may call a route with this rule."""
        if rule is Rule.ANYONE or peer.uid in (ROOT, self.own_uid):
            return True
        if rule is Rule.ADMIN or self.group_gid is None or peer.uid < 0:
            return False
        return peer.gid == self.group_gid or self.group_gid in peer.groups


def peer_of(connection: socket.SocketType) -> Peer:
    """Return who connected, as the kernel saw it then; raises OSError for a socket that is not connected."""
    if connection.family != socket.AF_UNIX:
        return UNKNOWN
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    if uid == ROOT or uid == os.geteuid():
        return Peer(pid, uid, gid)
    return Peer(pid, uid, gid, _groups_of(connection))


def _groups_of(connection: socket.SocketType) -> tuple[int, ...]:
    """Return the peer's supplementary groups; none if it has more than 256, which then count for nothing."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
    except OSError:
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


def group_id(name: str) -> int | None:
    """Return the id of a group by name, None if there is no such group on this host."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
