"""Restarts under load, as ``systemctl restart`` does them: how long a pod waits, and whether any fails.

This process holds the listening socket, as systemd does for a socket unit, so requests queue while nobody serves. Some
loops run the real plugin all the while, ADD and DEL in turn, each for a container of its own.
"""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.activated_daemon import Activated
from tests.bench.contenders import POOL, plugin
from tests.bench.figures import OWN, STORES, Restart
from tests.bench.processes import introduction
from tests.daemon_process import wait_for
from tests.etcd_process import EtcdProcess

LOOPS = 4
STEADY = 20
"""ADDs of each loop before a restart, and after the daemon is back."""


def measure(directory: Path, programs: Path, restarts: int) -> Iterator[Restart]:
    """Restart a daemon on each store so many times."""
    for store in STORES:
        folder = directory / f"restarts-{store}"
        folder.mkdir()
        with ExitStack() as stack:
            flags = list(POOL)
            if store == "etcd":
                flags += ["--etcd-endpoints", stack.enter_context(EtcdProcess(folder / "etcd")).endpoint]
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(str(folder / "ipamd.sock"))
            listener.listen(4096)
            daemon = stack.enter_context(Activated(folder, listener, "bench", flags))
            lines = list(introduction(folder, [plugin(OWN, daemon.socket)]))
            loops = [stack.enter_context(_Loop(programs / "spawner", lines, number)) for number in range(LOOPS)]
            waits = []
            for _ in range(restarts):
                _steady(loops)
                before = [len(loop.adds) for loop in loops]
                daemon.stop()
                daemon.start()
                _steady(loops)
                waits.append(max(max(loop.adds[begin:]) for loop, begin in zip(loops, before, strict=True)))
            for loop in loops:
                loop.end()
            yield Restart(store, sum(loop.calls for loop in loops), sum(loop.refused for loop in loops), waits)


def _steady(loops: list["_Loop"]) -> None:
    """Wait until every loop that goes on has had some more ADDs."""
    goals = [len(loop.adds) + STEADY for loop in loops]
    wait_for(lambda: all(loop.refused or len(loop.adds) >= goal for loop, goal in zip(loops, goals, strict=True)), 60.0)


class _Loop:
    """One spawner that runs the plugin again and again; it ends with the first refusal."""

    def __init__(self, program: Path, introduction: list[str], number: int) -> None:
        self.adds: list[int] = []
        self.calls = self.refused = 0
        self._number = number
        self._spawner = subprocess.Popen(
            [program, "converse"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._introduction = introduction
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "_Loop":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()
        self._spawner.kill()
        self._spawner.communicate()

    def end(self) -> None:
        """Finish the call that is under way, and begin no more."""
        self._ended.set()
        self._thread.join(60)

    def _run(self) -> None:
        assert self._spawner.stdin is not None
        assert self._spawner.stdout is not None
        self._spawner.stdin.writelines(f"{line}\n" for line in self._introduction)
        while not self._ended.is_set():
            container = f"{self._number}-{len(self.adds)}"
            for verb in ("ADD", "DEL"):
                self._spawner.stdin.write(f"run 0 {verb} {container}\n")
                answer = self._spawner.stdout.readline()
                self.calls += 1
                if not answer:
                    self.refused += 1
                    return
                if verb == "ADD":
                    self.adds.append(int(answer))
