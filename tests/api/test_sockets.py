"""Listening sockets: bound without a gap, never taken from a running daemon, handed over by systemd."""

import errno
import json
import os
import socket
import stat
import subprocess
import sys

import pytest

from ipamd.api import sockets
from ipamd.api.sockets import bind, from_systemd


def connect(path):
    """Return a connection to a Unix socket."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.fspath(path))
    return connection


def test_bind_listens_with_mode_and_directory(tmp_path):
    """The socket listens, has the mode asked for whatever the umask, and its directory is made."""
    path = tmp_path / "run" / "ipamd" / "ipamd.sock"
    before = os.umask(0o077)
    try:
        listener = bind(path, None, 0o660)
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    with listener, connect(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert listener.gettimeout() == 0
        listener.accept()[0].close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_bind_gives_the_socket_to_the_group(tmp_path):
    """The socket belongs to the group, so that its members can connect."""
    import grp

    group = next(entry for entry in grp.getgrall() if entry.gr_gid not in (0, os.getgid()))
    with bind(tmp_path / "s", group.gr_name):
        assert (tmp_path / "s").stat().st_gid == group.gr_gid


def test_bind_without_the_group(tmp_path):
    """A group that this host does not have changes nothing."""
    with bind(tmp_path / "s", "no-such-group-here"):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660


def test_socket_is_private_until_it_has_its_group(tmp_path, monkeypatch):
    """At the moment of the bind nobody but the owner can open the socket, even with a permissive umask."""
    seen = []
    remember = os.chmod

    def chmod(path, mode, **options):
        seen.append(stat.S_IMODE(os.stat(path).st_mode))  # noqa: PTH116 - what the code under test calls
        remember(path, mode, **options)

    monkeypatch.setattr(os, "chmod", chmod)
    before = os.umask(0)
    try:
        bind(tmp_path / "s", None, 0o666).close()
    finally:
        os.umask(before)
    assert seen == [0o600]


def test_a_stale_socket_is_replaced(tmp_path):
    """A socket left by a daemon that was killed does not keep the next one from starting."""
    path = tmp_path / "s"
    bind(path, None).close()
    assert path.is_socket()
    with bind(path, None), connect(path):
        pass


def test_a_running_daemon_keeps_its_socket(tmp_path):
    """A second daemon is refused, and the first one can still be reached."""
    path = tmp_path / "s"
    with bind(path, None) as first:
        with pytest.raises(OSError, match="a daemon answers there; stop it") as refused:
            bind(path, None)
        assert refused.value.errno == errno.EADDRINUSE
        first.accept()[0].close()  # the second one's question
        with connect(path):
            first.accept()[0].close()


def test_a_daemon_with_a_full_backlog_keeps_its_socket(tmp_path, monkeypatch):
    """A daemon that accepts no more for the moment is not mistaken for a dead one."""
    monkeypatch.setattr(sockets, "BACKLOG", 0)
    path = tmp_path / "s"
    with bind(path, None), connect(path):
        with pytest.raises(OSError, match="a daemon answers there"):
            bind(path, None)
        assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_stays(tmp_path, kind):
    """A path that is something else is an error; nothing is removed."""
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("mine")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="it is not a socket"):
        bind(path, None)
    assert path.is_symlink() or path.exists()


CHILD = """
import json, os, socket, sys
from ipamd.api.sockets import from_systemd
environ = json.loads(sys.argv[1])
if environ.get("LISTEN_PID") == "own":
    environ["LISTEN_PID"] = str(os.getpid())
kinds = sys.argv[2:]
for fd, kind in enumerate(kinds, 3):
    if kind == "none":
        continue
    sock = socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX, socket.SOCK_DGRAM if kind == "dgram" else
        socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 0) if kind == "tcp" else "")
    if kind in ("tcp", "unix"):
        sock.listen()
    if sock.fileno() != fd:
        os.dup2(sock.fileno(), fd)
        sock.close()
    else:
        os.set_inheritable(sock.detach(), True)
try:
    found = from_systemd(environ, os.getpid())
except ValueError as error:
    print(json.dumps({"error": str(error)}))
else:
    print(json.dumps({
        "sockets": [[name, sock.family.name, sock.fileno(), sock.gettimeout(), sock.get_inheritable()]
                    for name, sock in found],
        "left": sorted(environ),
    }))
"""


def hand_over(environ, *kinds):
    """Return what a fresh process makes of these variables, with sockets of these kinds from descriptor 3 on."""
    command = [sys.executable, "-c", CHILD, json.dumps(environ), *kinds]
    done = subprocess.run(command, check=True, capture_output=True, timeout=20, text=True)
    return json.loads(done.stdout)


def test_systemd_sockets_are_taken_with_their_names():
    """Each descriptor comes with its name, non-blocking and closed on exec; the variables are gone."""
    found = hand_over(
        {"LISTEN_PID": "own", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "api:metrics", "PATH": "/bin"}, "unix", "tcp"
    )
    assert found == {
        "sockets": [["api", "AF_UNIX", 3, 0, False], ["metrics", "AF_INET", 4, 0, False]],
        "left": ["PATH"],
    }


def test_systemd_sockets_without_names_are_unknown():
    """Without LISTEN_FDNAMES each socket is called "unknown"."""
    found = hand_over({"LISTEN_PID": "own", "LISTEN_FDS": "1"}, "unix")
    assert [name for name, *_ in found["sockets"]] == ["unknown"]


def test_variables_for_another_process_do_not_count():
    """Variables inherited from a parent's activation are dropped and no descriptor is touched."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "api", "PATH": "/bin"}
    assert from_systemd(environ, 2) == []
    assert environ == {"PATH": "/bin"}
    assert from_systemd({}, 2) == []


@pytest.mark.parametrize(
    ("environ", "kinds", "error"),
    [
        ({"LISTEN_FDS": "x"}, (), "not a number"),
        ({}, (), "not a number"),
        ({"LISTEN_FDS": "-1"}, (), "not a number"),
        ({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"}, ("unix",), "2 names for 1"),
        ({"LISTEN_FDS": "2"}, ("unix", "none"), "descriptor 4"),
        ({"LISTEN_FDS": "1"}, ("dgram",), "not a listening stream socket"),
        ({"LISTEN_FDS": "1"}, ("bound",), "not a listening stream socket"),
    ],
)
def test_systemd_sockets_that_do_not_fit_are_refused(environ, kinds, error):
    """Variables or descriptors that are not what the unit should give are an error that says so."""
    assert error in hand_over({"LISTEN_PID": "own", **environ}, *kinds)["error"]
