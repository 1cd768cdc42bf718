"""Starts the plugin once for each call, and is the other side of its socket where the daemon is not: one process' share."""

import os
import select
import signal
import socket
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from msgspec import Struct

from tests.fuzz.calls import Answer, Call, Calls
from tests.fuzz.verdict import WrongError, judge

PATIENCE = 60
"""Seconds after which a plugin that has not ended hangs."""


class Share(Struct, frozen=True):
    """What one process does: so many calls from a seed, with this build, of a daemon that serves or is ``away``."""

    program: Path
    daemon: Path
    """The daemon's socket."""
    spool: Path
    directory: Path
    """A directory of the process' own, where the plugin is started."""
    seed: int
    calls: int
    away: bool
    answers: float
    """The share of calls that ask not the daemon, but somebody hostile."""


def send(share: Share, results: Connection) -> None:
    """Make the calls; tells how many, what came of them, and in sentences what was wrong."""
    calls, outcomes, findings = Calls(share.seed), Counter[str](), list[str]()
    with Starter(share) as starter:
        for number in range(share.calls):
            call = calls.call(away=share.away, answers=share.answers)
            try:
                outcomes[judge(call, *starter.run(call), away=share.away)] += 1
            except WrongError as error:
                findings.append(f"call {number} of seed {share.seed}: {error}; it was {call}")
        findings += [f"left behind: {path}" for path in Path.cwd().iterdir()]
    results.send((share.calls, outcomes, findings))


def _give_up(*_: object) -> None:
    raise TimeoutError


class Starter:
    """Files that stand for the plugin's standard streams, and a socket on which answers are given. A context manager."""

    def __init__(self, share: Share) -> None:
        self._program, self._spool, self._daemon = os.fspath(share.program), share.spool, share.daemon
        self._where = share.directory / "other.sock"
        self._here = share.directory / "here"
        self._in, self._out, self._errors = (os.memfd_create(name) for name in ("in", "out", "errors"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._waiting = select.poll()

    def __enter__(self) -> "Starter":
        self._here.mkdir(parents=True)
        os.chdir(self._here)  # a relative path leads nowhere
        self._listener.bind(os.fspath(self._where))
        self._listener.listen(16)
        self._waiting.register(self._listener, select.POLLIN)
        signal.signal(signal.SIGALRM, _give_up)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.close()
        for file in (self._in, self._out, self._errors):
            os.close(file)

    def run(self, call: Call) -> tuple[int, bytes]:
        """The status and the standard output. Raises WrongError if it hangs, or says anything on standard error."""
        pid = self._start(call)
        ended = os.pidfd_open(pid)
        try:
            signal.alarm(PATIENCE)
            if call.answer is not None:
                self._answer(ended, call.answer)
            status = os.waitpid(pid, 0)[1]
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise WrongError(f"has not ended after {PATIENCE} s") from None
        finally:
            signal.alarm(0)
            os.close(ended)
        if errors := os.pread(self._errors, 10_000, 0):
            os.ftruncate(self._errors, 0)
            raise WrongError(f"standard error: {errors.decode(errors='replace')}")
        return status, os.pread(self._out, os.fstat(self._out).st_size, 0)

    def _start(self, call: Call) -> int:
        timeout = b"20" if call.answer is not None and call.answer.hangs else b"30000"
        environment = {
            b"IPAMD_SOCKET": os.fsencode(self._daemon if call.answer is None else self._where),
            b"IPAMD_SPOOL_DIR": os.fsencode(self._spool),
            b"IPAMD_CONNECT_TIMEOUT": b"0",
            b"IPAMD_TIMEOUT": timeout,
            **call.environment,
        }
        for file in (self._in, self._out):
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
        os.pwrite(self._in, call.stdin or b"", 0)
        streams: list[tuple[object, ...]] = [(os.POSIX_SPAWN_DUP2, self._errors, 2)]
        streams += [(os.POSIX_SPAWN_CLOSE, 0) if call.stdin is None else (os.POSIX_SPAWN_DUP2, self._in, 0)]
        if not call.stdout:
            streams += [(os.POSIX_SPAWN_DUP2, self._out, 1)]
        elif call.stdout == "closed":
            streams += [(os.POSIX_SPAWN_CLOSE, 1)]
        else:
            streams += [(os.POSIX_SPAWN_OPEN, 1, call.stdout, os.O_WRONLY, 0)]
        return os.posix_spawn(self._program, [call.name], environment, file_actions=streams)

    def _answer(self, ended: int, answer: Answer) -> None:
        """Answer the plugin as often as it connects, until it ends."""
        hanging = []
        self._waiting.register(ended, select.POLLIN)
        while ended not in (ready := [fd for fd, _events in self._waiting.poll()]) or len(ready) > 1:
            connection, _ = self._listener.accept()
            with suppress(OSError):  # it may have enough of the answer
                connection.recv(1 << 20)
                connection.sendall(answer.text)
            if answer.hangs:
                hanging.append(connection)
            else:
                connection.close()
        self._waiting.unregister(ended)
        for connection in hanging:
            connection.close()
