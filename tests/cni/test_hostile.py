"""What the plugin says when the other side of the socket is not a healthy daemon. It never prints half an answer."""

import json
import os
import socket
import threading
import time

import pytest

CONFIGURATION = b'{"cniVersion": "1.0.0"}'
HEAD = b"HTTP/1.1 200 OK\r\n"


def refused(result, code):
    """Return the error object after checking that the call failed with this one and nothing else on stdout."""
    exit_code, stdout = result
    error = json.loads(stdout)
    assert exit_code == 1
    assert set(error) == {"cniVersion", "code", "msg", "details"}
    assert (error["cniVersion"], error["code"]) == ("1.0.0", code)
    assert error["msg"].startswith("cannot ")
    return error


FOREIGN = {
    "a word": b"hello",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "another version": b"HTTP/2 200 OK\r\nContent-Length: 0\r\nIpamd-Exit: 0\r\n\r\n",
    "zeros": b"\x00" * 100_000,
    "no headers": HEAD + b"\r\n",
    "no length": HEAD + b"Ipamd-Exit: 0\r\n\r\n{}",
    "no exit code": HEAD + b"Content-Length: 2\r\n\r\n{}",
    "a length beyond the limit": HEAD + b"Content-Length: 67108865\r\nIpamd-Exit: 0\r\n\r\n",
    "a length beyond 64 bits": HEAD + b"Content-Length: 18446744073709551618\r\nIpamd-Exit: 0\r\n\r\n{}",
    "a negative length": HEAD + b"Content-Length: -1\r\nIpamd-Exit: 0\r\n\r\n",
    "a length with a sign": HEAD + b"Content-Length: +2\r\nIpamd-Exit: 0\r\n\r\n{}",
    "two numbers": HEAD + b"Content-Length: 2 2\r\nIpamd-Exit: 0\r\n\r\n{}",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\nIpamd-Exit: 0\r\n\r\n{}",
    "an empty length": HEAD + b"Content-Length:\r\nIpamd-Exit: 0\r\n\r\n",
    "an empty exit code": HEAD + b"Content-Length: 2\r\nIpamd-Exit: \t \r\n\r\n{}",
    "an exit code beyond a byte": HEAD + b"Content-Length: 2\r\nIpamd-Exit: 256\r\n\r\n{}",
    "a negative exit code": HEAD + b"Content-Length: 2\r\nIpamd-Exit: -1\r\n\r\n{}",
    "two exit codes": HEAD + b"Content-Length: 2\r\nIpamd-Exit: 0\r\nIpamd-Exit: 1\r\n\r\n{}",
    "a line without a colon": HEAD + b"Content-Length: 2\r\nnonsense\r\nIpamd-Exit: 0\r\n\r\n{}",
    "a head without end": HEAD + b"X: y\r\n" * 20_000,
}


@pytest.mark.parametrize("answer", FOREIGN.values(), ids=FOREIGN.keys())
def test_what_is_not_an_answer_is_an_io_failure_that_quotes_it(run, serve, where, answer):
    """Code 5, in words that name the socket, with the first bytes of what came in the details."""
    serve(answer)
    error = refused(run(CONFIGURATION), 5)
    assert str(where) in error["msg"]
    quoted = error["details"].encode("latin-1")
    assert answer.startswith(quoted)
    assert quoted or answer[0] == 0


HALVES = {
    "the first word": b"HTT",
    "the status line": HEAD,
    "a head without its end": HEAD + b"Content-Length: 2\r\nIpamd-Exit: 0\r\n",
    "a head": HEAD + b"Content-Length: 2\r\nIpamd-Exit: 0\r\n\r\n",
    "half a body": HEAD + b"Content-Length: 2\r\nIpamd-Exit: 0\r\n\r\n{",
    "the least of a great body": HEAD + b"Content-Length: 67108864\r\nIpamd-Exit: 0\r\n\r\n{",
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES.keys())
def test_half_an_answer_is_try_again_later(run, serve, half):
    """A daemon that dies while it answers: code 11, and none of what it said on stdout."""
    serve(half)
    assert "half-way" in refused(run(CONFIGURATION), 11)["msg"]


@pytest.fixture
def run_for(run, tmp_path):
    """Return a function that runs the plugin for so many milliseconds; standard input is there from the start."""

    def run_for(milliseconds, configuration):
        (tmp_path / "configuration").write_bytes(configuration)
        with (tmp_path / "configuration").open("rb") as file:
            return run(stdin=file, IPAMD_TIMEOUT=str(milliseconds))

    return run_for


@pytest.mark.parametrize("half", [b"", *HALVES.values()], ids=["nothing", *HALVES.keys()])
def test_an_answer_that_does_not_come_in_time_is_try_again_later(run_for, serve, where, half):
    """A daemon that hangs, before its answer or in it: code 11 after IPAMD_TIMEOUT."""

    def hang(connection):
        connection.sendall(half)
        while connection.recv(65536):
            pass

    serve(hang)
    before = time.monotonic()
    error = refused(run_for(60, CONFIGURATION), 11)
    assert 0.06 <= time.monotonic() - before < 3
    assert str(where) in error["msg"]


def test_an_answer_in_drops_does_not_stretch_the_deadline(run_for, serve):
    """The time is for the whole answer, not for each piece."""

    def drip(connection):
        connection.sendall(HEAD)
        while True:
            connection.send(b"X: y\r\n")
            time.sleep(0.01)

    serve(drip)
    refused(run_for(80, CONFIGURATION), 11)


def test_a_daemon_that_takes_no_request_is_given_up(run_for, serve):
    """A body that nobody reads ends at the deadline too."""
    ended = threading.Event()
    serve(lambda _: ended.wait(30))
    refused(run_for(60, CONFIGURATION + b" " * 1_000_000), 11)
    ended.set()


def test_a_daemon_that_closes_every_connection_is_given_up(run, serve):
    """Retrying ends with the connect timeout, is paced, and the words say what happened."""
    daemon = serve(b"")
    error = refused(run(CONFIGURATION, IPAMD_CONNECT_TIMEOUT="100"), 11)
    assert "closed the connection without an answer" in error["msg"]
    assert 2 <= len(daemon.requests) <= 20


def test_without_permission_there_is_no_waiting(plugin, run, serve, where):
    """A socket that the user may not write to will not change: code 5 at once, with what to do."""
    serve(b"")
    where.chmod(0o600)
    # Through a descriptor, because the other user cannot walk to the program either.
    program = os.open(plugin, os.O_PATH)
    user = {"user": 65534} if os.geteuid() == 0 else {}
    if not user:
        where.chmod(0)
    before = time.monotonic()
    error = refused(run(CONFIGURATION, executable=f"/proc/self/fd/{program}", pass_fds=[program], **user), 5)
    os.close(program)
    assert time.monotonic() - before < 3
    assert "Permission denied" in error["msg"]
    assert "as root" in error["msg"]


def test_a_path_that_is_no_stream_socket_is_not_waited_for(run, where, tmp_path):
    """What a restart of the daemon cannot mend is an I/O failure at once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(where))
        refused(run(CONFIGURATION), 5)
    (tmp_path / "file").write_bytes(b"")
    assert "Not a directory" in refused(run(CONFIGURATION, IPAMD_SOCKET=tmp_path / "file" / "x"), 5)["msg"]


def test_what_is_quoted_in_an_error_is_escaped(run):
    """A path of any bytes leaves the error object decodable."""
    path = os.fsdecode(b'/"\\\x01\n\xff\x7f\xc3\xa9')
    error = refused(run(CONFIGURATION, IPAMD_SOCKET=path, IPAMD_CONNECT_TIMEOUT="0"), 11)
    assert '/"\\\x01\n\xff\x7f\xc3\xa9' in error["msg"]
