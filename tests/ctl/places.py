"""Where ``ipamctl`` can find records in tests: real etcd, an embedded store's file, a daemon's socket; and how it is run."""

import json
import os
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
import trio

from ipamd.api.access import Access, Rule
from ipamd.api.answers import shown
from ipamd.api.connection import Limits
from ipamd.api.routes import Route, Router, relayed
from ipamd.api.server import Server
from ipamd.api.sockets import bind
from ipamd.ctl.main import main
from ipamd.store.base import Change
from ipamd.store.relay import Relay
from ipamd.store.sqlite import SqliteFile
from tests.etcd_process import EtcdProcess
from tests.memory_store import MemoryStore

CAPTURES = Path(__file__).parent.parent / "data" / "calico"
ALL = "/calico/"


def capture(name: str) -> dict[str, object]:
    """One captured history: ``steps``, ``etcd``."""
    loaded: dict[str, object] = json.loads((CAPTURES / f"{name}.json").read_text())
    return loaded


class Place(Protocol):
    """Records that the tests can see and change behind the command's back."""

    flags: tuple[str, ...]
    """What tells ``ipamctl`` to work here."""

    def put(self, key: str, value: bytes) -> None:
        """Write as a stranger would."""

    def load(self, records: Mapping[str, bytes]) -> None:
        """Write many."""

    def all(self) -> dict[str, bytes]:
        """Every record."""


class OnEtcd:
    """A real etcd, shared by the tests and emptied for each."""

    def __init__(self, process: EtcdProcess) -> None:
        self._process = process
        self.flags = ("--etcd-endpoints", process.endpoint)
        for key in process.get_prefix(ALL):
            process.delete(key)

    def put(self, key: str, value: bytes) -> None:
        self._process.put(key, value)

    def load(self, records: Mapping[str, bytes]) -> None:
        for key, value in records.items():
            self.put(key, value)

    def all(self) -> dict[str, bytes]:
        return self._process.get_prefix(ALL)


class OnFile:
    """The embedded store's file, opened for each look as the command does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.flags = ("--db", str(path))
        with self._open():
            pass

    @contextmanager
    def _open(self) -> Iterator[SqliteFile]:
        file = SqliteFile(self._path, 1000)
        file.read((), ())
        try:
            yield file
        finally:
            file.close()

    def put(self, key: str, value: bytes) -> None:
        self.load({key: value})

    def load(self, records: Mapping[str, bytes]) -> None:
        with self._open() as file:
            for key, value in records.items():
                known = file.read([key], ()).records
                file.commit([[Change(key, value, known[0].revision if known else 0)]], None)

    def all(self) -> dict[str, bytes]:
        with self._open() as file:
            return {record.key: record.value for record in file.read((), [ALL]).records}


def healthy() -> dict[str, Any]:
    """What a daemon says of itself that has no pod and no worry."""
    return {
        "/v1/status": {
            "node": "node-a",
            "reserve_handle": "ipamd-reserve-node-a.0",
            "store": {"connected": True, "last_read_error": ""},
            "flush": {"unflushed": 0, "unflushed_age_seconds": 0.0, "last_error": ""},
            "state_file": {"path": "/s/state", "error": "", "set_aside": []},
        },
        "/v1/check": {"memory": [], "findings": []},
        "/v1/gc": {"released": False, "problem": "", "leaks": []},
        "/v1/allocations": [],
        "/v1/reserve": [],
        "/v1/tunnel-addresses": [],
    }


class BehindSocket:
    """A store in memory behind the daemon's server and routes, in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.flags = ("--socket", str(path))
        self.committed: list[tuple[list[str], int]] = []
        self.open = True
        """Whether the store is open already."""
        self.said: dict[str, Any] = healthy()
        """What the daemon says of itself, by route."""

    @contextmanager
    def serving(self) -> Iterator["BehindSocket"]:
        started = threading.Event()
        thread = threading.Thread(target=trio.run, args=(self._serve, started))
        thread.start()
        assert started.wait(10)
        try:
            yield self
        finally:
            self._token.run_sync_soon(self._stop.set)
            thread.join()

    async def _serve(self, started: threading.Event) -> None:
        self.store, self._stop = MemoryStore(), trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        relay = Relay(
            lambda: self.store if self.open else None, lambda keys, uid: self.committed.append((list(keys), uid))
        )
        routes = (*relayed(relay.read, relay.commit), *map(self._route, self.said))
        router = Router(routes, Access(os.geteuid(), None))
        server = Server(router, Limits(16, 16384, 1 << 20, 10, 60), self._crashed)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, bind(self.path, ""))
            started.set()
            await self._stop.wait()
            nursery.cancel_scope.cancel()

    def _route(self, path: str) -> Route:
        return Route("GET", path, Rule.READ, "as the daemon", lambda *_: shown(self.said[path]))

    @staticmethod
    def _crashed(error: Exception) -> None:
        raise error

    def on_store(self, work: Callable[[], None]) -> None:
        """Run something in the server's thread."""
        trio.from_thread.run_sync(work, trio_token=self._token)

    def put(self, key: str, value: bytes) -> None:
        self.on_store(lambda: self.store.put(key, value))

    def load(self, records: Mapping[str, bytes]) -> None:
        for key, value in records.items():
            self.put(key, value)

    def all(self) -> dict[str, bytes]:
        return {key: record.value for key, record in self.store.records.items()}


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Ctl:
    """Runs ``ipamctl`` in this process, on a place."""

    def __init__(self, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self._capsys, self._monkeypatch = place, capsys, monkeypatch

    def __call__(self, line: str, stdin: str = "") -> Done:
        """Run a command line without ``ipamctl``, split as a shell does."""
        return self.run(*shlex.split(line), stdin=stdin)

    def run(self, *argv: str, stdin: str = "") -> Done:
        """Run a command with these arguments."""
        return run(*self.place.flags, *argv, stdin=stdin, capsys=self._capsys, monkeypatch=self._monkeypatch)

    def ok(self, line: str, stdin: str = "") -> str:
        """What a command printed that succeeds and has nothing to complain of."""
        done = self(line, stdin)
        assert (done.code, done.err) == (0, "")
        return done.out

    def load(self, records: Mapping[str, str]) -> None:
        """Put the records of a capture."""
        self.place.load({key: value.encode() for key, value in records.items()})


def run(*argv: str, stdin: str = "", capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Done:
    """Run ``ipamctl`` in this process."""
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    capsys.readouterr()
    code = main(argv)
    printed = capsys.readouterr()
    return Done(code, printed.out, printed.err)


def made(kind: str, etcd: EtcdProcess, folder: Path, stack: ExitStack) -> Place:
    """A place of this kind."""
    if kind == "etcd":
        return OnEtcd(etcd)
    if kind == "embedded":
        return OnFile(folder / "store.db")
    return stack.enter_context(BehindSocket(folder / "ipamd.sock").serving())
