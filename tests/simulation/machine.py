"""One node of the simulated cluster: its disk, clocks and boot id, and the daemon's process while it is up.

The process is the real ``Daemon`` on the real ``Journal``; only its clocks, its disk, its way to the store and what
the journal does in threads are the simulation's.
"""

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import TypeVar

import trio

from ipamd.api.http import Request, Response
from ipamd.api.spool import Spool
from ipamd.config import Config
from ipamd.core.clock import Now
from ipamd.daemon import GRACE, Daemon
from ipamd.journal.errors import JournalError, JournalWriteError
from ipamd.journal.journal import Journal
from tests.api.plugin_call import ROOT
from tests.nodes import EPOCH
from tests.simulation.disk import Disk, Killed, Process, SimPath
from tests.simulation.network import Client, Link, Server

T = TypeVar("T")

RESTART = 0.5
"""Seconds from the death of a daemon to its next start."""


class GoneError(Exception):
    """Nobody answers on the socket, or whoever did is dead."""


class Life(Process):
    """One process of a daemon, from its start to its death."""

    def __init__(self) -> None:
        super().__init__(self._end)
        self.daemon: Daemon | None = None
        self.scopes: list[trio.CancelScope] = []
        """What runs in it: the daemon's tasks, and its requests."""
        self.asking = 0
        """Requests under way."""
        self.stopping = False

    def _end(self) -> None:
        for scope in self.scopes:
            scope.cancel()


class _Journal(Journal):
    """The journal, whose threads take their time and are this one."""

    life: Life
    random: Random

    async def _in_thread(self, work: Callable[[], T]) -> T:
        await trio.sleep(self.random.random() * 0.01 if self.life.alive else 0)
        return work()


class _KeptFile:
    """A DEL that a plugin kept, as one process sees it."""

    def __init__(self, kept: dict[str, Request], life: Process, name: str) -> None:
        self.kept, self.life, self.name = kept, life, name

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove it."""
        if self.life.may_change():
            self.kept.pop(self.name, None)


class _SpoolDirectory:
    """The directory of kept DELs: each is on the disk before its runtime is told of success."""

    def __init__(self, kept: dict[str, Request], life: Process) -> None:
        self.kept, self.life = kept, life

    def iterdir(self) -> list[_KeptFile]:
        """The files."""
        return [self / name for name in self.kept]

    def __truediv__(self, name: str) -> _KeptFile:
        return _KeptFile(self.kept, self.life, name)


class _Spool(Spool):
    """The daemon's spool; what a file says is the request itself."""

    @staticmethod
    def _read(path: _KeptFile) -> Request:  # type: ignore[override]
        return path.kept[path.name]


class Machine:
    """See the module. ``broken`` says why the daemon refuses to start, for good."""

    def __init__(
        self, name: str, config: Config, server: Server, link: Link, random: Random, trace: Callable[[str], None]
    ) -> None:
        self.name, self.config, self.server, self.link = name, config, server, link
        self.random, self.trace = random, trace
        self.disk = Disk(random)
        self.kept: dict[str, Request] = {}
        """The DELs that plugins kept, by file name."""
        self._plugins = 0
        self.boots = 1
        self._booted = -random.random() * 1e6
        self._jump = 0
        self.life: Life | None = None
        self.held_down = False
        self.draining = False
        """Whether its operator wants it drained."""
        self.refusal = ""
        self._changed = trio.Event()

    # --- clocks -----------------------------------------------------------------------------------------------

    def now(self) -> Now:
        """Its clocks: the time since its boot, and what it believes the time of day to be."""
        elapsed = trio.current_time()
        return Now(EPOCH + int(elapsed * 1e9) + self._jump, int((elapsed - self._booted) * 1e9))

    def jump(self, seconds: float) -> None:
        """Set its time of day."""
        self._jump += int(seconds * 1e9)

    # --- life and death ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start the daemon, and start it again whenever it died, for ever."""
        while True:
            if not self.held_down:
                await self._live()
                await trio.sleep(RESTART)
            else:
                await self._changed.wait()
            self._changed = trio.Event()

    async def _live(self) -> None:
        self.life = life = Life()
        try:
            journal, facts, report = self._open(life)
        except JournalWriteError as error:
            self.trace(f"{self.name}: cannot start: {error}")
            life.kill()
            return
        except JournalError as error:
            self.refusal = str(error)
            self.trace(f"{self.name}: refuses to start: {error}")
            life.kill()
            await trio.sleep_forever()
        except Killed:
            self.trace(f"{self.name}: died while starting")
            return
        self.trace(f"{self.name}: up, {len(facts)} facts, cut {report.cut}, missing {report.missing}")
        daemon = Daemon(self.config, journal, facts, self.now, self._connect)
        spool = self._spool(life, daemon)
        daemon.house.looks = [spool.carry_out]
        try:
            spool.carry_out()
            life.daemon = daemon
            if daemon.ledger.draining and not self.draining:  # somebody ended it while the daemon was down
                self.drain(draining=False)
            with trio.CancelScope() as scope:
                life.scopes.append(scope)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(daemon.work)
        except* Killed:
            pass
        assert not life.alive
        self.trace(f"{self.name}: dead")

    def _spool(self, life: Life, daemon: Daemon) -> Spool:
        directory = _SpoolDirectory(self.kept, life)
        spool = _Spool(
            directory,  # type: ignore[arg-type]
            f"boot-{self.boots}",
            daemon.handlers.cni,
            lambda: not daemon.journal.owing,
            lambda: 0,  # no plugin is killed as it writes
            lambda event, values: self.trace(f"{self.name}: {event} {values}"),
        )
        daemon.handlers.steps.catch_up = spool.carry_out
        return spool

    def keep(self, request: Request, started: int) -> None:
        """What the plugin does with a DEL that nobody takes."""
        self._plugins += 1  # as the process id of the real one: no two that run at the same time have the same
        self.kept[f"boot-{self.boots}.{started:020d}.{self._plugins}"] = request

    def _open(self, life: Life) -> tuple[Journal, list, object]:  # type: ignore[type-arg]
        journal, facts, report = _Journal.open(
            SimPath(self.disk, life), self.name, f"boot-{self.boots}", floor=self.random.choice((2000, 8000)), factor=1
        )  # type: ignore[arg-type]
        assert isinstance(journal, _Journal)
        journal.life, journal.random = life, self.random
        return journal, facts, report

    async def _connect(self, _config: Config) -> Client:
        await trio.sleep(self.link.delay())
        return Client(self.server, self.link)

    def kill(self) -> None:
        """``kill -9``, now."""
        if self.life is not None:
            self.life.kill()

    async def stop(self, *, drain: bool) -> None:
        """SIGTERM: accept no more, finish what is under way, perhaps drain, write what the store does not have."""
        life, daemon = self.life, self.daemon
        if life is None or daemon is None or life.stopping:
            return
        life.stopping = True
        with trio.CancelScope() as scope:
            life.scopes.append(scope)
            with trio.move_on_after(GRACE):
                while life.asking:
                    await trio.sleep(0.05)
            with suppress(Killed):
                if drain:
                    await daemon._drain_last()
                await daemon._flush_last()
        life.kill()

    def drain(self, *, draining: bool) -> None:
        """``POST /v1/drain``, or ``undrain``, told again after a start if the daemon is down."""
        self.draining = draining
        if self.daemon is not None:
            with suppress(Killed):
                self.daemon._drain(on=draining)

    def reboot(self) -> None:
        """Lose power: the daemon, the pods, and what was not synced are gone."""
        self.kill()
        self.disk.lose_power()
        self.boots += 1
        self._booted = trio.current_time()

    def hold(self, *, down: bool) -> None:
        """Keep the daemon from being started again, or no longer."""
        self.held_down = down
        self._changed.set()

    # --- requests ---------------------------------------------------------------------------------------------

    @property
    def daemon(self) -> Daemon | None:
        """The daemon, if it is up."""
        return self.life.daemon if self.life is not None and self.life.alive else None

    @property
    def listening(self) -> bool:
        """Whether somebody answers on the socket."""
        return self.daemon is not None and self.life is not None and not self.life.stopping

    async def ask(self, request: Request) -> Response:
        """What the plugin does: one request on the socket. Raises GoneError if the daemon dies over it, or is down."""
        life = self.life
        if life is None or not self.listening or life.daemon is None:
            raise GoneError
        life.asking += 1
        try:
            answer = life.daemon.handlers.cni(request, ROOT)
            if isinstance(answer, Response):
                return answer
            with trio.CancelScope() as scope:
                life.scopes.append(scope)
                try:
                    response = await answer
                finally:
                    life.scopes.remove(scope)
                return response
        except Killed:
            pass
        finally:
            life.asking -= 1
        raise GoneError
