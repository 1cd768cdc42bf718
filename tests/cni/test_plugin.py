"""What the compiled plugin does with an ordinary daemon, and how it waits for one."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time

import h11
import pytest

CONFIGURATION = b'{"cniVersion": "1.0.0", "name": "k8s-pod-network", "ipam": {"type": "calico-ipam"}}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nIpamd-Exit: 0\r\n\r\n{}"


def answer(body: bytes, code: int = 0) -> bytes:
    """Return an answer as the daemon sends it."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nIpamd-Exit: %d\r\n\r\n%s" % (len(body), code, body)


def header(request: bytes, name: bytes) -> bytes:
    """Return the value of a request's header."""
    lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")
    return next(line for line in lines if line.startswith(name + b": ")).partition(b": ")[2]


# ---- the request ----


def test_the_request_is_the_environment_as_headers_and_stdin_as_body(run, serve):
    """Each CNI variable becomes a header, beside the plugin's name, its start and the length of the body."""
    daemon = serve(OK)
    assert run(CONFIGURATION) == (0, b"{}")
    (request,) = daemon.requests
    started = header(request, b"Ipamd-Started")
    assert request == (
        b"POST /v1/cni HTTP/1.1\r\nHost: ipamd\r\nConnection: close\r\n"
        b"Cni-Command: ADD\r\nCni-Containerid: 0123abcd\r\nCni-Netns: /var/run/netns/cni-1\r\nCni-Ifname: eth0\r\n"
        b"Cni-Args: IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0\r\nCni-Path: /opt/cni/bin\r\n"
        b"Ipamd-Plugin: calico-ipam\r\nIpamd-Started: %s\r\nContent-Length: %d\r\n\r\n%s"
        % (started, len(CONFIGURATION), CONFIGURATION)
    )


def test_the_request_is_http(run, serve):
    """An independent HTTP/1.1 implementation reads the request, whatever the variables hold."""
    daemon = serve(OK)
    run(CONFIGURATION, CNI_ARGS='IP=10.0.0.1: "x", é; \\', CNI_NETNS="")
    server = h11.Connection(h11.SERVER)
    server.receive_data(daemon.requests[0])
    head, body, end = server.next_event(), server.next_event(), server.next_event()
    assert (head.method, head.target) == (b"POST", b"/v1/cni")
    assert dict(head.headers)[b"cni-args"] == 'IP=10.0.0.1: "x", é; \\'.encode()
    assert bytes(body.data) == CONFIGURATION
    assert isinstance(end, h11.EndOfMessage)


def test_an_unset_variable_is_left_out_and_an_empty_one_is_sent_empty(run, serve):
    """The daemon can tell a DEL without CNI_NETNS from one whose CNI_NETNS is empty."""
    daemon = serve(OK)
    run(CNI_COMMAND="DEL", CNI_NETNS="", CNI_ARGS=None)
    assert b"\r\nCni-Netns: \r\n" in daemon.requests[0]
    assert b"Cni-Args" not in daemon.requests[0]


@pytest.mark.parametrize(
    ("name", "sent"), [("host-local", b"host-local"), ("/opt/cni/bin/ipamd", b"ipamd"), ("x/", b""), ("", b"")]
)
def test_the_daemon_learns_the_name_the_plugin_was_run_under(run, serve, name, sent):
    """Ipamd-Plugin is the last part of argv[0]."""
    daemon = serve(OK)
    run(name=name)
    assert header(daemon.requests[0], b"Ipamd-Plugin") == sent


def test_the_start_is_on_the_clock_of_the_host(run, serve):
    """Ipamd-Started is CLOCK_BOOTTIME in nanoseconds, read at the start of the process."""
    daemon = serve(OK)
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    run()
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert before < int(header(daemon.requests[0], b"Ipamd-Started")) < after


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 10_000_000])
def test_stdin_arrives_as_it_is(run, serve, size):
    """Any bytes of any length up to the limit are the body of the request."""
    configuration = os.urandom(size)
    daemon = serve(OK)
    assert run(configuration) == (0, b"{}")
    assert daemon.requests[0].partition(b"\r\n\r\n")[2] == configuration


def test_a_variable_longer_than_the_first_buffer_is_carried(run, serve):
    """Nothing is cut off at the size of a buffer."""
    daemon = serve(OK)
    run(CNI_ARGS="x" * 100_000)
    assert header(daemon.requests[0], b"Cni-Args") == b"x" * 100_000


def test_stdin_that_does_not_block_is_waited_for(start, serve, asleep):
    """A runtime may hand over the non-blocking end of a pipe."""
    daemon = serve(OK)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    process = start(stdin=reader)
    os.close(reader)
    asleep(process)
    os.write(writer, CONFIGURATION)
    os.close(writer)
    assert process.wait(30) == 0
    assert daemon.requests[0].endswith(CONFIGURATION)


@pytest.mark.parametrize("begun", [b"", CONFIGURATION[:10]])
@pytest.mark.parametrize("command", ["ADD", "DEL", "VERSION", None])
@pytest.mark.parametrize("blocking", [True, False])
def test_stdin_that_never_ends_is_given_up(start, serve, begun, command, blocking):
    """What left the other end of the pipe open keeps no plugin for ever, and nothing half is sent."""
    daemon = serve(OK)
    reader, writer = os.pipe()
    os.set_blocking(reader, blocking)
    os.write(writer, begun)
    process = start(stdin=reader, IPAMD_TIMEOUT="100", CNI_COMMAND=command)
    os.close(reader)
    try:
        error = json.loads(process.stdout.read())
        assert process.wait(30) == 1
    finally:
        os.close(writer)
    assert error == {
        "cniVersion": "1.1.0",
        "code": 5,
        "msg": "cannot read the network configuration from standard input: it did not end in time; "
        "run the plugin as a container runtime does, or raise IPAMD_TIMEOUT",
        "details": "",
    }
    assert not daemon.requests


# ---- the answer ----


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_body_is_printed_and_the_exit_code_is_the_daemons(run, serve, code):
    """The plugin adds nothing and takes nothing away."""
    body = b'{"ips": []}\n\x00\xff'
    serve(answer(body, code))
    assert run() == (code, body)


@pytest.mark.parametrize("size", [0, 65400, 65536, 5_000_000])
def test_an_answer_may_have_any_length(run, serve, size):
    """The answer is printed whole, also when it is empty and when it outgrows every buffer."""
    body = os.urandom(size)
    serve(answer(body))
    assert run() == (0, body)


def test_an_answer_may_come_in_pieces(run, serve):
    """The boundaries between the daemon's writes mean nothing."""

    def dribble(connection):
        for byte in b"HTTP/1.1 500 Oops\r\nServer: x\r\nCONTENT-length:\t3 \r\nipamd-EXIT:3\r\n\r\nabc":
            connection.send(bytes([byte]))

    serve(dribble)
    assert run() == (3, b"abc")


def test_what_follows_the_answer_is_ignored(run, serve):
    """The body ends where Content-Length says."""
    serve(answer(b"{}") + b"more")
    assert run() == (0, b"{}")


def test_an_early_answer_to_a_long_request_is_taken(run, serve):
    """A daemon that refuses a body by its length need not read it."""
    refusal = b'{"code": 7}'

    def refuse(connection):
        connection.recv(100)
        connection.sendall(answer(refusal, 1))

    serve(refuse)
    assert run(b"x" * 10_000_000) == (1, refusal)


def test_an_early_answer_is_taken_from_a_daemon_that_keeps_the_connection(run, serve):
    """The plugin does not insist on sending what nobody reads."""
    ended = threading.Event()

    def refuse(connection):
        connection.sendall(answer(b"no", 1))
        ended.wait(30)

    serve(refuse)
    assert run(b"x" * 10_000_000) == (1, b"no")
    ended.set()


def test_an_answer_that_cannot_be_printed_is_a_failure(run, serve):
    """Exit code 0 would say that the runtime has the address."""
    serve(answer(b"{}"))
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        assert run(stdout=full)[0] == 1


def test_a_runtime_that_went_away_is_a_failure_and_no_signal(start, serve):
    """A closed pipe on stdout ends the plugin with an exit code."""
    daemon = serve(answer(b"x" * 1_000_000))
    process = start()
    process.stdout.close()
    process.stdin.close()
    assert process.wait(30) == 1
    assert len(daemon.requests) == 1


def test_without_stdout_the_daemon_is_not_asked(run, serve, plugin):
    """The plugin never mistakes the daemon's socket for its own standard output."""
    daemon = serve(OK)
    assert run(args=["sh", "-c", 'exec "$0" >&-', plugin], executable="/bin/sh")[0] == 1
    assert not daemon.requests


# ---- waiting for the daemon ----


def test_a_daemon_that_is_not_there_yet_is_waited_for(start, serve, asleep):
    """A call during the daemon's restart succeeds."""
    process = start()
    process.stdin.close()
    asleep(process)
    serve(OK)
    assert process.wait(30) == 0


def test_a_socket_left_behind_is_waited_on(start, serve, where, asleep):
    """A socket file on which nobody listens is what a killed daemon leaves until the next one replaces it."""
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(where))
    process = start()
    process.stdin.close()
    asleep(process)
    where.unlink()
    serve(OK)
    assert process.wait(30) == 0


def test_a_full_queue_of_connections_is_waited_on(start, where, asleep):
    """A burst of pods that outruns the daemon's accept is served late, not refused."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(where))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(where))
            process = start()
            process.stdin.close()
            asleep(process)
            listener.accept()[0].close()
        listener.settimeout(30)
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(OK)
    assert process.wait(30) == 0


def test_a_request_that_died_with_the_daemon_is_sent_again(run, serve):
    """A connection closed before the first byte of an answer is tried again, with the start of the first."""
    daemon = serve(b"", b"", lambda connection: None, OK)
    assert run(CONFIGURATION) == (0, b"{}")
    first, second, last = daemon.requests
    assert first == second == last


def test_waiting_ends_at_the_connect_timeout(run, where):
    """A daemon that stays away costs the time that IPAMD_CONNECT_TIMEOUT gives, and no more."""
    before = time.monotonic()
    code, stdout = run(CONFIGURATION, IPAMD_CONNECT_TIMEOUT="150")
    assert 0.15 <= time.monotonic() - before < 3
    assert code == 1
    assert json.loads(stdout) == {
        "cniVersion": "1.0.0",
        "code": 11,
        "msg": f"cannot reach ipamd at {where}: No such file or directory; is the daemon running? "
        "Its state and log on this node say more",
        "details": "",
    }


# ---- which socket ----


@pytest.mark.parametrize("value", [None, b'""', b"5", b"null"])
def test_the_configuration_may_name_the_socket(run, serve, tmp_path, where, value):
    """`ipam.socket` comes before IPAMD_SOCKET; an empty one counts as none, and what is no string is refused."""
    other = tmp_path / "other.sock"
    named, from_environment = serve(answer(b"named"), at=other), serve(answer(b"environment"))
    socket_value = value or b'"%s"' % os.fsencode(other)
    code, stdout = run(b'{"socket": "/x", "ipam": {"type": "ipamd", "socket" : %s}}' % socket_value)
    if value is None:
        assert stdout == b"named"
    elif value == b'""':
        assert stdout == b"environment"
    else:
        assert code == 1
        assert json.loads(stdout)["code"] == 7
        assert "ipam.socket" in json.loads(stdout)["msg"]
        assert not named.requests + from_environment.requests


@pytest.mark.parametrize("escaped", [r"/run/\u0069pamd", r"\/run\/x", "/run/\x01"])
def test_a_socket_that_would_need_decoding_is_refused(run, escaped):
    """The plugin says so instead of asking another daemon."""
    code, stdout = run(b'{"ipam": {"socket": "%s"}}' % escaped.encode())
    assert code == 1
    assert json.loads(stdout)["code"] == 7


@pytest.mark.skipif(os.path.exists("/run/ipamd/ipamd.sock"), reason="an ipamd runs here")  # noqa: PTH110
@pytest.mark.parametrize("value", [None, ""])
def test_the_default_socket(run, value):
    """Without a word from anybody the daemon is looked for at its usual place."""
    _, stdout = run(IPAMD_SOCKET=value, IPAMD_CONNECT_TIMEOUT="0")
    assert "/run/ipamd/ipamd.sock" in json.loads(stdout)["msg"]


def test_the_longest_path_works_and_a_longer_one_is_explained(run, serve, tmp_path):
    """A Unix socket's path has at most 107 bytes; beyond that the words say so, wherever it was named."""
    longest = tmp_path / ("s" * (107 - len(os.fsencode(tmp_path)) - 1))
    serve(OK, at=longest)
    assert run(IPAMD_SOCKET=longest) == (0, b"{}")
    for configuration, path in ((b"{}", f"{longest}s"), (b'{"ipam":{"socket":"/%s"}}' % (b"x" * 5000), "/x")):
        code, stdout = run(configuration, IPAMD_SOCKET=path)
        assert code == 1
        assert json.loads(stdout)["code"] == 7
        assert "at most 107 bytes" in json.loads(stdout)["msg"]


# ---- VERSION, and the version of answers ----

VERSIONS = [
    (b"", "1.1.0"),
    (b"{}", "1.1.0"),
    (b'{"cniVersion":"0.4.0"}', "0.4.0"),
    (b' \n{ "name" : "x" ,\t"cniVersion"\r\n: "9.9.9-rc+1" }', "9.9.9-rc+1"),
    (b'{"a": {"cniVersion": "0.1.0"}, "cniVersion": "1.0.0", "b": {"cniVersion": "0.2.0"}}', "1.0.0"),
    (b'{"a": [{"cniVersion": "0.1.0"}], "b": [["cniVersion", "0.2.0"]]}', "1.1.0"),
    (b'[{"cniVersion": "0.1.0"}]', "1.1.0"),
    (b'[{"cniVersion": 1}, "0.1.0"]', "1.1.0"),
    (rb'{"a": "\"cniVersion\": \"0.1.0\"", "b": "\\", "cniVersion": "1.0.0"}', "1.0.0"),
    (rb'{"a": "}{\"", "cniVersion": "1.0.0"}', "1.0.0"),
    (b'{"a": "cniVersion", "b": "0.1.0"}', "1.1.0"),
    (b'{"cniVersion": {"cniVersion": "0.1.0"}}', "1.1.0"),
    (b'{"cniVersion": 1, "b": "0.1.0"}', "1.1.0"),
    (b'{"cniVersion": null}', "1.1.0"),
    (b'{"cniVersion": ["0.1.0"]}', "1.1.0"),
    (b'{"cniVersion": "0.1.0", "cniVersion": "0.2.0"}', "0.2.0"),
    (b'{} {"cniVersion": "0.1.0"}', "1.1.0"),
    (b'{"cniVersion": ""}', "1.1.0"),
    (b'{"cniVersion": "1\\"0"}', "1.1.0"),
    (b'{"cniVersion": "\xff\x00\n"}', "1.1.0"),
    (b'{"cniVersion": "%s"}' % (b"1" * 65), "1.1.0"),
    (b'{"cniVersion": "1.0.0', "1.0.0"),
    (b'{"cniVersion": "1.0.0\\', "1.1.0"),
    (b'{"cniVersion"', "1.1.0"),
    (b'{"cniVersion":', "1.1.0"),
    (b"}}}]" * 10 + b'{"cniVersion": "0.1.0"}', "1.1.0"),
    (b"[" * 1_000_000, "1.1.0"),
    (b"\xff\xfe\x00", "1.1.0"),
]


@pytest.mark.parametrize(("configuration", "version"), VERSIONS)
def test_version_is_answered_without_the_daemon(run, configuration, version):
    """VERSION names the version that it was asked in, and all that are supported, to the byte."""
    code, stdout = run(configuration, CNI_COMMAND="VERSION", CNI_ARGS="\n", CNI_CONTAINERID=None)
    supported = '["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]'
    assert stdout.decode() == f'{{"cniVersion":"{version}","supportedVersions":{supported}}}\n'
    assert code == 0


@pytest.mark.parametrize(("configuration", "version"), VERSIONS)
def test_an_error_is_in_the_version_of_the_configuration(run, configuration, version):
    """The plugin's own errors name the configuration's version, as the daemon's do."""
    code, stdout = run(configuration, IPAMD_CONNECT_TIMEOUT="0")
    assert code == 1
    assert json.loads(stdout)["cniVersion"] == version


# ---- the environment ----

VARIABLES = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"]


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("bad", ["\n", "x\r\nIpamd-Plugin: y", "\t", "x\x01", "x\x7fx", "\x1f"])
def test_a_control_character_in_a_variable_is_refused_by_name(run, serve, variable, bad):
    """No value can end its header and begin another; the daemon is not even asked."""
    daemon = serve(OK)
    code, stdout = run(**{variable: bad})
    error = json.loads(stdout)
    assert (code, error["code"]) == (1, 4)
    assert variable in error["msg"]
    assert not daemon.requests


def test_a_control_character_in_the_plugins_name_is_refused(run, serve):
    """The name is sent as a header like the variables."""
    daemon = serve(OK)
    code, stdout = run(name="a\nb")
    assert (code, json.loads(stdout)["code"]) == (1, 4)
    assert not daemon.requests


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_command_the_error_says_who_should_run_this(run, value):
    """CNI_COMMAND is needed before anything else."""
    code, stdout = run(b'{"cniVersion": "0.3.1"}', CNI_COMMAND=value)
    error = json.loads(stdout)
    assert (code, error["code"], error["cniVersion"]) == (1, 4, "0.3.1")
    assert "CNI_COMMAND" in error["msg"]


def test_tried_by_hand_the_plugin_does_not_wait_for_the_terminal(run):
    """Somebody who types the program's name gets the error at once."""
    ours, terminal = os.openpty()
    try:
        assert run(CNI_COMMAND=None, stdin=terminal)[0] == 1
    finally:
        os.close(ours)
        os.close(terminal)


@pytest.mark.parametrize("variable", ["IPAMD_TIMEOUT", "IPAMD_CONNECT_TIMEOUT"])
@pytest.mark.parametrize("value", ["5s", "-1", " 5", "1e3", "99999999999999999999", "\x01\x80"])
def test_a_timeout_that_is_no_number_is_refused_by_name(run, variable, value):
    """A mistyped timeout is not read as another one."""
    code, stdout = run(**{variable: value})
    error = json.loads(stdout)
    assert (code, error["code"]) == (1, 4)
    assert variable in error["msg"]


def test_stdin_that_cannot_be_read_is_an_io_failure(run, tmp_path):
    """The words name standard input and the cause."""
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        code, stdout = run(stdin=directory)
    finally:
        os.close(directory)
    assert (code, json.loads(stdout)["code"]) == (1, 5)
    assert "standard input: Is a directory" in json.loads(stdout)["msg"]


def test_stdin_without_end_is_refused(run, tmp_path):
    """More than 64 MiB is nobody's network configuration."""
    with (tmp_path / "zeros").open("w+b") as zeros:
        zeros.truncate((64 << 20) + 1)
        code, stdout = run(stdin=zeros)
    assert (code, json.loads(stdout)["code"]) == (1, 7)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_an_ordinary_call_is_one_send_and_one_receive(release, serve, environment):
    """The plugin does no more system calls than the work needs, and its socket is not inherited."""
    serve(OK)
    traced = subprocess.run(
        ["strace", "-e", "trace=network,read,write", release],
        env=environment,
        input=CONFIGURATION,
        capture_output=True,
        check=True,
        timeout=30,
    )
    calls = [line.partition(b"(")[0] for line in traced.stderr.splitlines() if b"(" in line]
    assert calls == [b"read", b"read", b"socket", b"connect", b"sendmsg", b"recvfrom", b"write"]
    assert b"SOCK_CLOEXEC" in traced.stderr
