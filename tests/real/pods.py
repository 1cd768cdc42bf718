"""Pods that come and go on a node whose daemon is killed, and what was acknowledged of them.

A client is a container runtime: it asks again when it got no answer, or gives the pod up and deletes it. Some go
through the plugin's process, the others send what the plugin would. So when no client is in the middle of a call,
``held`` is all that exists.
"""

import http.client
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from tests.daemon_process import Daemon, addresses_of, dual_stack, network

SOCKETS, PLUGINS = 3, 2
"""Clients of each kind on a node."""
KEPT = 10
"""Containers that a client keeps, about."""
AWAY = (OSError, http.client.HTTPException)
PATIENCE = 60.0
"""Seconds after which a client that is never answered gives the test up."""

_numbers = itertools.count()


class Addresses:
    """Who holds what, on all nodes; ``done`` counts what happened."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self._holders: dict[str, str] = {}
        self._lock = threading.Lock()

    def take(self, container: str, addresses: list[str]) -> None:
        """A container was told these; nobody else may have them."""
        with self._lock:
            for address in addresses:
                other = self._holders.setdefault(address, container)
                assert other == container, f"{address} was given to {container} and is {other}'s"

    def drop(self, addresses: list[str]) -> None:
        """They are about to be deleted, and from then on may be another's."""
        with self._lock:
            for address in addresses:
                del self._holders[address]

    def count(self, what: str) -> None:
        """One more of that."""
        with self._lock:
            self.done[what] += 1


class Client:
    """One worker of a runtime: one call at a time, ``turn`` held during each. ``free`` are addresses to ask for."""

    def __init__(self, daemon: Daemon, addresses: Addresses, free: list[str], *, plugin: bool) -> None:
        self.turn = threading.Lock()
        self.held: dict[str, list[str]] = {}
        """Container to what it was told."""
        self.go, self.stop = threading.Event(), threading.Event()
        self._daemon, self._all, self._free, self._plugin = daemon, addresses, free, plugin
        self._number = next(_numbers)
        self._choose = random.Random(self._number)  # noqa: S311 - a repeatable load
        self._requests: dict[str, str] = {}
        self._away = False
        """Whether the last ADD was not answered."""

    def run(self) -> None:
        """Add, repeat and delete until told to stop."""
        for count in itertools.count():
            self.go.wait()  # without it who waits for the turn would hardly get it
            if self.stop.is_set():
                return
            with self.turn:
                if self._away and self.held:  # most DELs are kept before the daemon is back
                    self.delete(self._choose.choice(list(self.held)))
                    self._away = self._choose.random() < 0.7
                elif self._choose.random() * 2 * KEPT > len(self.held):
                    self._add(f"c{self._number}-{count}")
                elif self._choose.random() < 0.2:
                    self.repeat(self._choose.choice(list(self.held)))
                else:
                    self.delete(self._choose.choice(list(self.held)))

    def _add(self, container: str) -> None:
        args, config = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{container}", network()
        kind = self._choose.random()
        if kind < 0.1:
            self._all.count("requested")
            self._requests[container] = wanted = self._free.pop(0)
            args += f";IP={wanted}"
        elif kind < 0.25:
            config = dual_stack()
        while (addresses := self._call("ADD", container, config, args)) is None:
            self._away = True
            if self._choose.random() < 0.3:  # the runtime gives it up: whatever was assigned must go
                self._all.count("given up")
                self._end(container)
                return
        self._away = False
        assert addresses, "an ADD without an address"
        assert self._requests.get(container, addresses[0]) == addresses[0]
        self._all.take(container, addresses)
        self.held[container] = addresses

    def repeat(self, container: str) -> None:
        """Ask again for what a container has: it must get the same."""
        self._all.count("repeated")
        wanted = self._requests.get(container)
        args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-{container}"
        args += f";IP={wanted}" if wanted else ""
        config = dual_stack() if len(self.held[container]) > 1 else network()
        while (again := self._call("ADD", container, config, args)) is None:
            pass
        assert again == self.held[container], f"{container} had {self.held[container]} and was told {again}"

    def delete(self, container: str) -> None:
        """DEL, until it is acknowledged."""
        self._all.drop(self.held.pop(container))
        self._end(container)

    def _end(self, container: str) -> None:
        while self._call("DEL", container, network(), None) is None:
            pass
        if container in self._requests:
            self._free.append(self._requests.pop(container))

    def _call(self, command: str, container: str, config: dict[str, object], args: str | None) -> list[str] | None:
        """One call; None if there was no answer, else the addresses of an ADD."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                code, output = self._ask(command, container, config, args)
            except (ConnectionRefusedError, FileNotFoundError):
                assert time.monotonic() < deadline, "the daemon does not come back"
                assert not self.stop.is_set(), "the daemon is gone"
                time.sleep(0.01)
                continue
            except AWAY:
                self._all.count("calls cut")
                return None
            if code == 0:
                self._all.count(f"{command} by {'plugin' if self._plugin else 'socket'}")
                return addresses_of(output) if command == "ADD" else []
            answer = json.loads(output)
            # 11: nobody answered the plugin; 104: a DEL of the address's last pod is kept and not yet carried out.
            assert answer["code"] == 11 or (answer["code"] == 104 and container in self._requests), answer
            assert time.monotonic() < deadline, answer
            if answer["code"] == 11 and command == "ADD":
                self._all.count("calls cut")
                return None
            time.sleep(0.02)

    def _ask(self, command: str, container: str, config: dict[str, object], args: str | None) -> tuple[int, bytes]:
        if self._plugin:
            connect_ms = 20 if command == "DEL" else 100
            answer = self._daemon.plugin(command, container, config, args=args, connect_ms=connect_ms)
            return answer.code, answer.output
        status, body = self._daemon.post(command, container, json.dumps(config).encode(), args)
        return int(status != 200), body


class Load:
    """The clients of one node; ``free``: addresses for those that ask for one."""

    def __init__(self, daemon: Daemon, addresses: Addresses, free: list[str]) -> None:
        kinds = [False] * SOCKETS + [True] * PLUGINS
        self.clients = [Client(daemon, addresses, free, plugin=plugin) for plugin in kinds]
        self._pool = ThreadPoolExecutor(len(self.clients))
        self._running: list[Future[None]] = []

    def __enter__(self) -> "Load":
        for client in self.clients:
            client.go.set()
        self._running = [self._pool.submit(client.run) for client in self.clients]
        return self

    def __exit__(self, *_exc: object) -> None:
        for client in self.clients:
            client.stop.set()
            client.go.set()
        self._pool.shutdown()
        for client in self._running:
            client.result()

    def failed(self) -> bool:
        """Whether a client found something wrong: leaving the context tells what."""
        return any(client.done() for client in self._running)

    @property
    def held(self) -> dict[str, list[str]]:
        """Container to addresses of all that was acknowledged and is not being deleted."""
        return {container: told for client in self.clients for container, told in client.held.items()}

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """No client is in the middle of a call."""
        for client in self.clients:
            client.go.clear()
        with ExitStack() as stack:
            for client in self.clients:
                stack.enter_context(client.turn)
            yield
        for client in self.clients:
            client.go.set()
