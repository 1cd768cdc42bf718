"""Who may call what: credentials as the kernel tells them, and the rules on them."""

import os
import socket
import subprocess
import sys

import pytest

from ipamd.api.access import UNKNOWN, Access, Peer, Rule, group_id, peer_of

OWN, GROUP = 900, 901
ACCESS = Access(OWN, GROUP)


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        (Peer(1, 0, 0), {Rule.ANYONE, Rule.READ, Rule.ADMIN}),
        (Peer(1, OWN, 5), {Rule.ANYONE, Rule.READ, Rule.ADMIN}),
        (Peer(1, 1000, GROUP), {Rule.ANYONE, Rule.READ}),
        (Peer(1, 1000, 1000, (4, GROUP)), {Rule.ANYONE, Rule.READ}),
        (Peer(1, 1000, 1000, (4, 5)), {Rule.ANYONE}),
        (Peer(1, 1000, 0, (0,)), {Rule.ANYONE}),
        (Peer(1, GROUP, OWN), {Rule.ANYONE}),
        (UNKNOWN, {Rule.ANYONE}),
    ],
)
def test_rules_by_peer(peer, allowed):
    """Root and the daemon's user may all, members of the group may read, others and TCP only what is open to all."""
    assert {rule for rule in Rule if ACCESS.allows(rule, peer)} == allowed


@pytest.mark.parametrize("peer", [UNKNOWN, Peer(1, 1000, 1000, (4,))])
def test_without_a_group_nobody_else_reads(peer):
    """A daemon without a group of readers lets only root and its own user read."""
    access = Access(OWN, None)
    assert not access.allows(Rule.READ, peer)
    assert access.allows(Rule.READ, Peer(1, OWN, 5))


def test_an_unknown_peer_is_not_mistaken_for_an_unset_id():
    """No choice of ids gives a TCP client more than what is open to all."""
    assert not Access(OWN, -1).allows(Rule.READ, UNKNOWN)


def test_peer_of_this_process():
    """The credentials of a connection are those of the process that made it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_of(ours) == Peer(os.getpid(), os.getuid(), os.getgid())


def test_tcp_peers_are_unknown():
    """A TCP connection says nothing about who connected, not even from this host."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert peer_of(connection) == UNKNOWN


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("groups", "expected"),
    [((), ()), ((GROUP, 77), (77, GROUP)), (tuple(range(2000, 2256)), tuple(range(2000, 2256)))],
)
def test_peer_of_another_user(tmp_path, groups, expected):
    """The user, group and supplementary groups of another user's process are seen."""
    connection = connect_as(tmp_path, uid=1234, gid=4321, groups=groups)
    peer = peer_of(connection)
    connection.close()
    assert (peer.uid, peer.gid, tuple(sorted(peer.groups))) == (1234, 4321, expected)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_too_many_groups_count_for_none(tmp_path):
    """A user with more groups than can be read is somebody without groups, not an error."""
    connection = connect_as(tmp_path, uid=1234, gid=4321, groups=tuple(range(2000, 2300)))
    peer = peer_of(connection)
    connection.close()
    assert peer.groups == ()
    assert not Access(OWN, 2000).allows(Rule.READ, peer)


def connect_as(directory, uid, gid, groups):
    """Return the server's end of a connection that a process of another user made and left."""
    # The directories above may be closed to that user: it reaches the socket by a descriptor it inherits.
    code = """
import os, socket, sys
fd, uid, gid = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
os.setgroups([int(group) for group in sys.argv[4:]]); os.setgid(gid); os.setuid(uid)
socket.socket(socket.AF_UNIX).connect(f"/proc/self/fd/{fd}/s")
"""
    directory.chmod(0o755)
    path = directory / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        path.chmod(0o666)
        listener.listen()
        fd = os.open(directory, os.O_PATH)
        try:
            arguments = [str(value) for value in (fd, uid, gid, *groups)]
            subprocess.run([sys.executable, "-c", code, *arguments], check=True, pass_fds=[fd], timeout=20)
        finally:
            os.close(fd)
        connection, _ = listener.accept()
        return connection


def test_group_by_name():
    """A group is found by its name; one that this host does not have is None."""
    assert group_id("root") == 0
    assert group_id("no-such-group-here") is None
