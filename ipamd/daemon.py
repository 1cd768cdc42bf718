"""The composition root: the only module that knows all concrete classes.

Start: replay the state file; serve from it at once; then open the store, look at it, claim, flush. Stop: accept no
more, finish what is under way, write what the store does not have yet if it answers soon; the state file keeps the
rest.
"""

import gc
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from ipamd import __version__
from ipamd.api import views
from ipamd.api.access import Access, Peer, group_id
from ipamd.api.connection import Limits
from ipamd.api.events import Events
from ipamd.api.explain import Explain
from ipamd.api.handlers import Handlers
from ipamd.api.http import Request, Response
from ipamd.api.look import PATIENCE, Look
from ipamd.api.routes import Asked, Reports, Router, public, table
from ipamd.api.server import Server
from ipamd.api.spool import Spool
from ipamd.api.takeover import Takeover
from ipamd.api.tunnels import Tunnels
from ipamd.api.waiting import Waiting
from ipamd.config import Config
from ipamd.core import keys
from ipamd.core.address import Cidr
from ipamd.core.clock import Now
from ipamd.core.errors import NotDurableError
from ipamd.core.explain import Seen
from ipamd.core.facts import Committed, Draining, Fact, Withdrawn
from ipamd.core.ledger import Ledger
from ipamd.core.records import BlockRecord, RecordError
from ipamd.core.reserve import ReservePolicy
from ipamd.core.selector import parse_labels
from ipamd.durability import Durability
from ipamd.host import (
    boot_id,
    machine_id,
    network_namespace,
    only_daemon,
    read_clocks,
    told_to_stop,
)
from ipamd.housekeeping import Housekeeping
from ipamd.journal.aside import aside, set_aside_damaged, set_aside_of_cluster
from ipamd.journal.errors import JournalDamagedError, JournalError
from ipamd.journal.journal import Journal, OpenReport
from ipamd.listening import Listening, connections_allowed
from ipamd.logs import get_logger, heard_by, sentence
from ipamd.metrics import Metrics
from ipamd.opening import keep_creating_pools, open_store
from ipamd.report import Report, demo_lines
from ipamd.runtime.survey import Survey
from ipamd.store.base import OtherClusterError, Store, StoreRefusedError, StoreUnavailableError
from ipamd.store.cleaner import Cleaner, Cleaning
from ipamd.store.draft import Limits as DraftLimits
from ipamd.store.presence import Host, Presence
from ipamd.store.relay import Relay
from ipamd.store.requested import see
from ipamd.store.sync import Sync
from ipamd.store.writer import Writer, Writing
from ipamd.supervisor import Supervisor

if TYPE_CHECKING:
    from ipamd.kubernetes.cluster import Cluster

GRACE = 2.0
"""Seconds that requests under way, and then the last flush, get when the daemon is told to stop."""

START_AGAIN = 75
"""The exit code (EX_TEMPFAIL) that asks the supervisor for a new start."""

DRAIN_GRACE = 30.0
"""Seconds that a drain at the end may take."""

START_GRACE = 30.0
"""Seconds after which the service manager is told that we are up though no ADD can be served: a node whose etcd is away
must boot, and what waits for us may be what etcd waits for."""

RANGES_UNKNOWN = (
    ", and what the container runtime's cache shows in use, which may not be all: addresses of ranges that are unknown "
    "here may be given out again; recreate the pods that have such an address and are not in /v1/allocations"
)
"""Added to what is said of a damaged state file, unless every byte of its records could be read."""

_log = get_logger("daemon")


def run(config: Config, *, demo: bool = False) -> int:
    """Run the daemon until it is told to stop (SIGTERM, SIGINT, SIGHUP); returns the exit code.

    ``demo``: print three lines to paste once an ADD can be served.
    """
    failed: list[Exception] = []
    others: list[OtherClusterError] = []
    try:
        trio.run(_main, config, demo)
    except* OtherClusterError as errors:
        others = [error for error in _leaves(errors) if isinstance(error, OtherClusterError)]
    except* (JournalError, OSError) as errors:
        failed = list(_leaves(errors))
    for error in failed:
        _log.error("cannot run", error=sentence(error))
    if failed or not others:
        return 1 if failed else 0
    return _leave_cluster(config, others[0])


def _leave_cluster(config: Config, error: OtherClusterError) -> int:
    """Set the state file of another cluster aside; returns the exit code."""
    try:
        kept = set_aside_of_cluster(config.state_dir, error.known, config.node, boot_id())
    except JournalError as problem:
        _log.error("cannot run", error=str(problem))
        return 1
    _log.error(
        "state file set aside",
        kept=str(kept.path),
        error=str(error),
        next="start again: the new state file holds what pods have of host-local ranges, and nothing else",
    )
    return START_AGAIN


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    """The exceptions in a group and in the groups that nurseries put around them."""
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _main(config: Config, demo: bool) -> None:  # noqa: FBT001 - trio.run passes positions
    _lock = only_daemon(config)
    journal, facts, report = open_journal(config, boot_id())
    _log.info("state file read", path=str(config.state_dir / "state"), facts=len(facts), **_opened(report))
    try:
        await Daemon(config, journal, facts).run(demo=demo)
    finally:
        journal.close()
        _lock.close()


def open_journal(config: Config, boot: str) -> tuple[Journal, list[Fact], OpenReport]:
    """Open the state file; one that cannot be read is set aside, and a new one begun.

    The store knows what was flushed. What was not is among the addresses in reserve, which the new state file's name
    quarantines. Raises JournalError where that would be wrong: the file is another node's, a newer version's, in use.
    """
    try:
        return Journal.open(config.state_dir, config.node, boot)
    except JournalDamagedError as error:
        kept = set_aside_damaged(config.state_dir, config.node, boot)
        _log.error(
            "state file set aside",
            kept=str(kept.path),
            unreadable="unknown" if kept.unreadable is None else f"{kept.unreadable} bytes",
            error=str(error),
            lost="what was given out and released and had not reached the store",
            next="pods that the store knows keep their addresses; what was in reserve is kept from everybody for "
            f"{config.quarantine:g} s; of host-local ranges is held what the whole records of the file say"
            + ("" if kept.unreadable == 0 else RANGES_UNKNOWN),
        )
        return Journal.open(config.state_dir, config.node, boot)


class Daemon:
    """One node's daemon: the ledger in the middle, and around it what keeps it, asks it and is told by it.

    ``now`` reads its clocks, ``open_store`` connects to the store: a simulation of many nodes has its own.
    """

    def __init__(
        self,
        config: Config,
        journal: Journal,
        facts: Sequence[Fact],
        now: Callable[[], Now] = read_clocks,
        open_store: Callable[[Config], Awaitable[Store]] = open_store,
    ) -> None:
        self.config, self.journal, self._now = config, journal, now
        self._open_store = open_store
        policy = ReservePolicy(config.reserve.min, config.reserve.max, int(config.reserve.decay * 1e9))
        self.ledger = Ledger(config.node, policy, parse_labels(config.node_labels), journal.instance)
        self.ledger.replay(facts)
        for pool in self.ledger.pools_in_use():  # or views and metrics would show none until the store is back
            self.ledger.reserve(pool.name, self._now().boot)
        self.writer: Writer | None = None
        self.sync: Sync | None = None
        self._presence: Presence | None = None
        self.report = Report(config, self.ledger, lambda: journal.size, lambda: aside(config.state_dir))
        self._changed = trio.Event()
        """Set, and made anew, when what decides whether an ADD can be served may have changed."""
        self._opened = trio.Event()
        self.house = Housekeeping(self.ledger, journal, self.report, now, config.quarantine)
        self.waiting = Waiting(
            self.ledger,
            now,
            journal.append,
            config.reserve.wait,
            partial(self._wake, hurry=True),
            self.report.excuse,
        )
        self.waiting.confirm = Look(self._look).fresh
        hurry = partial(self._wake, hurry=True)
        self.durability = Durability(self.ledger, journal.append, journal.sync, hurry)
        durable = {"journal": None, "fsync": self.durability.synced, "etcd": self.durability.flushed}[config.durability]
        self.metrics = Metrics(self.ledger, lambda: self.report.measures(self._now().boot))
        self.handlers = Handlers(
            self.ledger,
            self.waiting,
            now,
            time.perf_counter_ns,
            journal.append,
            journal.owe,
            self._wake,
            self.metrics.request,
            durable,
        )
        self.tunnels = Tunnels(
            self.ledger, self.waiting, now, journal.append, journal.owe, self._wake, self._find, durable
        )
        self.handlers.ready = self.report.unready
        self.handlers.able = self.report.unable
        self.handlers.steps.unwritten = self.house.journal_failed
        self.cluster = _open_kubernetes(config) if config.kubernetes.config else None
        self.handlers.pools.pods = self.handlers.ranges.cidrs = self.report.kubernetes = self.cluster
        runtime = config.runtime
        self.explain = Explain(self.ledger, now, self.report.unready, self.report.excuse, self._see)
        self.explain.pods = self.cluster
        self.takeover = Takeover(self.ledger, now, journal.append, journal.sync)
        self.survey = Survey(self.ledger, runtime.results_dir, runtime.leak_grace, self._keep, now, _report)
        if self.cluster is not None:
            self.survey.pod_gone = self.cluster.gone
        self.report.survey = self.survey
        self.house.elsewhere = lambda: self.survey.findings
        self.events = Events(lambda: now().unix)
        self.report.began = now().boot
        self.report.requests, self.report.failures = self.metrics.requests, self.events.failures
        relay = Relay(lambda: self.report.store, _changed_by)
        self.reports = Reports(
            status=lambda: self.report.status(self._now()),
            config=self.report.settings,
            metrics=self.metrics.exposition,
            ready=self.report.unready,
            now=lambda: self._now().boot,
            drain=partial(self._drain, on=True),
            undrain=partial(self._drain, on=False),
            leaks=partial(self.report.collect, release=False),
            release_leaks=partial(self.report.collect, release=True),
            check=self.house.check,
            read_store=relay.read,
            commit_store=relay.commit,
        )
        self._asked = Asked(self.handlers, self.tunnels, self.explain, self.events, self.takeover)
        self.supervisor = Supervisor(os.environ, os.getpid())

    # --- life -------------------------------------------------------------------------------------------------

    async def run(self, *, demo: bool) -> None:
        """Serve until a signal comes."""
        with heard_by(self.events.logged):
            await self._run(demo=demo)

    async def _run(self, *, demo: bool) -> None:
        durable, unix = lambda: not self.journal.owing, lambda: self._now().unix
        spool = Spool(self.config.spool_dir, boot_id(), self.handlers.cni, durable, unix, _report)
        spool.prepare()
        spool.carry_out()
        self.handlers.steps.catch_up = spool.carry_out
        listening = self._listening()
        self.house.looks = [spool.carry_out, listening.look]  # a plugin keeps a DEL while we hang, or are starting
        await self.survey.begin()
        async with trio.open_nursery() as background:
            async with trio.open_nursery() as serving:
                listening.open()
                await listening.serve(serving, background)
                _log.info("serving", socket=str(self.config.socket), node=self.config.node, version=__version__)
                if self.ledger.draining:
                    _log.warning("the node is being drained since before this start; POST /v1/undrain ends it")
                background.start_soon(self.work)
                background.start_soon(self._watch_runtime)
                background.start_soon(self._announce_start)
                background.start_soon(self._announce_ready, demo)
                background.start_soon(self.supervisor.attend, self.report.sentence)
                _log.info("stopping", signal=await told_to_stop())
                self.report.stopping = True
                self.supervisor.status(self.report.sentence(), "STOPPING=1")
                self.events.close()
                listening.stop(GRACE)
            if self.config.drain_on_exit:
                await self._drain_last()
            await self._flush_last()
            background.cancel_scope.cancel()
        if self.report.cleaner is not None:
            await self.report.cleaner.release()
        if self._presence is not None:
            await self._presence.release()
        if self.report.store is not None:
            await self.report.store.aclose()
        _log.info("stopped", unflushed=self.report.unflushed)

    async def work(self) -> None:
        """Do for ever what goes on beside the requests: read and write the store, keep the state file short."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_store)
            nursery.start_soon(self.house.run)
            if self.cluster is not None:
                nursery.start_soon(self.cluster.run)

    def _drain(self, *, on: bool) -> Mapping[str, object]:
        """Begin or end a drain, as an operator ordered; the writer does the rest."""
        if self.ledger.draining != on:
            _log.info("draining" if on else "not draining any more", reserve=self.report.drain()["reserve"])
        if self.ledger.drain_ordered != on or self.ledger.draining != on:
            ordered = Draining(on=on)
            self.ledger.apply(ordered)
            self._keep([ordered])
        return self._apply_drain()

    def _apply_drain(self) -> Mapping[str, object]:
        """Let all parts know of the beginning or the end of a drain; returns how far it is."""
        self.waiting.serve()  # who waits for an address learns that there will be none
        self._wake(hurry=True)
        self._note_change()
        return self.report.drain()

    def _yield(self) -> None:
        """Another host that serves this node was found, or is gone."""
        if self.ledger.rival:
            _log.error(
                "yielding: another host serves this node and was there first",
                host=socket.gethostname(),
                other=self.ledger.rival,
                next="nothing is assigned here; give one of the two hosts another node name, or stop ipamd on it",
            )
        else:
            _log.info("not yielding any more: no other host serves this node")
        self.waiting.serve()
        self._wake(hurry=True)
        self._note_change()

    async def _drain_last(self) -> None:
        """Give back what no pod holds, if the store lets us: the state file keeps the rest."""
        self.ledger.draining = True  # of this life alone: the next start is to serve
        self._apply_drain()
        with trio.move_on_after(DRAIN_GRACE):
            while not self.ledger.drained:
                self._wake(hurry=True)
                await trio.sleep(0.05)
        _log.info("drained" if self.ledger.drained else "not drained: the store did not let us", **self.report.drain())

    async def _flush_last(self) -> None:
        """Write what the store does not have yet, if it answers soon; the state file keeps the rest."""
        if self.writer is not None:
            with trio.move_on_after(GRACE):
                self._wake(hurry=True)
                while any(block.dirty for block in self.ledger.blocks.values()):
                    with trio.move_on_after(0.05):  # what was never sent is settled without a transaction
                        await self.writer.committed.wait()

    def _listening(self) -> Listening:
        """The servers: of the whole API, and of what anybody may read over TCP."""
        config, api = self.config, self.config.api
        connections = connections_allowed(config)
        limits = Limits(connections, api.max_head, api.max_body, api.request_timeout, api.idle_timeout)
        access = Access(os.geteuid(), group_id(config.socket_group) if config.socket_group else None)
        router = Router(table(self._asked, self.ledger, self.reports), access)
        server = Server(router, limits, self._crashed, self._served)
        scrape = Server(Router(public(self.reports), access), limits, self._crashed)
        return Listening(config, server, scrape, self.report.servers.append)

    async def _run_store(self) -> None:
        """Open the store and keep reading and writing it."""
        self.report.store = store = await self._open_store(self.config)
        flush = self.config.flush
        linger = 0.0 if self.config.durability == "etcd" else flush.linger
        writing = Writing(linger, DraftLimits(flush.max_operations, flush.max_bytes), int(self.config.quarantine * 1e9))
        self.sync = Sync(self.ledger, store, self._record, self._now, _report)
        self.writer = Writer(self.ledger, store, self._record, self.journal.sync_whole, self._now, writing, _report)
        self.writer.progress.flushed_until = self._now().boot
        self.writer.on_supply = self.waiting.serve
        self.durability.writer = self.writer
        self.report.sync, self.report.progress = self.sync, self.writer.progress
        self._opened.set()
        host = Host(socket.gethostname(), machine_id(), boot_id(), self.journal.instance, network_namespace())
        self._presence = Presence(self.ledger, store, host, self._yield, _report)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._presence.run)
            nursery.start_soon(self.sync.run)
            nursery.start_soon(self.writer.run)
            self._start_cleaner(nursery, store)
            await self.sync.first.wait()
            self._wake(hurry=True)
            self._note_change()
            await keep_creating_pools(self.config.default_pools, store, self.ledger.settings, self._now)

    def _start_cleaner(self, nursery: trio.Nursery, store: Store) -> None:
        """Take part in what one daemon of the cluster does for all, unless this node is not to."""
        config = self.config.cleaner
        if config.interval:
            cleaning = Cleaning(config.interval, int(config.grace * 1e9))
            self.report.cleaner = Cleaner(self.ledger, store, cleaning, self._now, _report)
            nursery.start_soon(self.report.cleaner.run)

    async def _watch_runtime(self) -> None:
        while self.sync is None:
            await self._opened.wait()
        await self.sync.first.wait()
        await self.survey.run(self._read_blocks)

    async def _read_blocks(self, cidrs: Sequence[Cidr]) -> Mapping[Cidr, BlockRecord]:
        """Read blocks that this node may have a part in; those that can be understood."""
        found = {}
        try:
            records = (
                ()
                if self.report.store is None
                else (await self.report.store.read([keys.block_key(cidr) for cidr in cidrs])).records
            )
        except (StoreUnavailableError, StoreRefusedError) as error:
            _report("cannot look up what containers live with", {"error": str(error)})
            return {}
        self._record([Committed(record.key, record.revision, record.value) for record in records])
        for record in records:
            with suppress(RecordError):
                found[keys.cidr_of(record.key)] = BlockRecord(record.value)
        return found

    def _keep(self, facts: Sequence[Fact]) -> None:
        """Make facts durable that the ledger has already, now or as soon as the state file can be written."""
        try:
            self.journal.append(facts)
        except NotDurableError as error:
            self.journal.owe(facts)
            self.house.journal_failed(error)
        self._wake()

    async def _announce_start(self) -> None:
        """Tell the service manager that we are up; within START_GRACE, as soon as an ADD can be served."""
        with trio.move_on_after(START_GRACE):
            await self._until_not(self.report.starting)
        if reason := self.report.starting():
            _log.warning("serving what does not need the store", reason=reason)
        self.supervisor.status(self.report.sentence(), "READY=1")
        gc.freeze()  # what the start made stays; to look it all through for garbage would take 20 ms each time

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _until_not(self, reason: Callable[[], str]) -> None:
        """Wait until there is no reason any more."""
        while reason():
            await self._changed.wait()

    async def _announce_ready(self, demo: bool) -> None:  # noqa: FBT001 - start_soon passes positions
        await self._until_not(self.report.unready)
        _log.info("ready", reserve=sum(block.available for block in self.ledger.blocks.values()))
        if demo:
            sys.stdout.write(demo_lines(self.config))
            sys.stdout.flush()

    # --- what the parts are told ------------------------------------------------------------------------------

    def _record(self, facts: Sequence[Fact]) -> None:
        """Make facts from the store, or about to be sent to it, part of state file and ledger.

        Raises NotDurableError if facts that must be durable first cannot be written. What the store holds already may
        be left out for a while: nothing is flushed or given back before the state file was written anew.
        """
        gives_back = any(isinstance(fact, Withdrawn) for fact in facts)
        if gives_back:
            self.journal.require_whole()
        try:
            self.journal.append(facts)
        except NotDurableError as error:
            self.house.journal_failed(error)
            if gives_back:
                raise
            self.journal.leave_out(error)
        else:
            if facts:  # to write nothing shows nothing
                self.report.journal_error = ""
        before = views.shares(self.ledger)
        for fact in facts:
            self.ledger.apply(fact)
        self.events.blocks(before, views.shares(self.ledger))
        self.waiting.serve()
        if self.sync is not None:
            self.sync.follow(max((fact.revision for fact in facts if isinstance(fact, Committed)), default=0))
        self._wake()
        self._note_change()

    def _wake(self, *, hurry: bool = False) -> None:
        if self.writer is not None:
            self.writer.wake(hurry=hurry)

    async def _look(self) -> str:
        """Bring what decides which pools serve up to date with the store; returns why it could not, else ""."""
        while self.sync is None:
            await self._opened.wait()
        try:
            await self.sync.look_at_settings()
        except (StoreUnavailableError, StoreRefusedError) as error:
            return str(error)
        return ""

    async def _find(self, handle: str) -> str:
        """Learn from the store what a handle holds; returns why that could not be, else ""."""
        with trio.move_on_after(self.config.reserve.wait):
            while self.sync is None:
                await self._opened.wait()
            try:
                await self.sync.look_up(handle)
            except (StoreUnavailableError, StoreRefusedError) as error:
                return str(error)
            return ""
        return "it does not answer"

    async def _see(self, block: Cidr, value: int) -> Seen:
        """Look up what the store has where an address of a block lies; no part of memory is changed by it."""
        if self.report.store is None:
            return Seen(error="the store is not open yet")
        with trio.move_on_after(PATIENCE):
            try:
                return await see(self.report.store, block, value)
            except (StoreUnavailableError, StoreRefusedError) as error:
                return Seen(error=str(error))
        return Seen(error=f"the store did not answer within {PATIENCE:g} s")

    # --- what others are told ---------------------------------------------------------------------------------

    def _served(self, request: Request, response: Response, peer: Peer) -> None:
        if request.path != "/v1/cni":
            return
        self.events.served(request, response)
        if self.config.log_level == "debug":
            headers = request.headers
            _log.debug(
                headers.get("cni-command", "?"),
                container=headers.get("cni-containerid", ""),
                interface=headers.get("cni-ifname", ""),
                plugin=headers.get("ipamd-plugin", ""),
                status=response.status,
                answer=response.body.decode(errors="replace") if response.status != 200 else "",
                pid=peer.pid,
            )

    def _crashed(self, error: Exception) -> None:
        _log.error("a request crashed its handler", error=repr(error), exc_info=error)


def _open_kubernetes(config: Config) -> "Cluster":
    """Before the socket is served: until the API is known, no ADD may be answered without it."""
    from ipamd.kubernetes.access import Credentials, in_cluster, kubeconfig
    from ipamd.kubernetes.client import Client
    from ipamd.kubernetes.cluster import Cluster

    source = config.kubernetes.config
    load = in_cluster(os.environ) if source == "in-cluster" else kubeconfig(Path(source))
    return Cluster(Client(Credentials(load)), config.node, config.kubernetes.timeout, _report)


def _opened(report: OpenReport) -> dict[str, object]:
    """What is worth a word in the log of opening the state file."""
    notable = {"created": report.created, "rebooted": report.rebooted, "cut": report.cut, "missing": report.missing}
    return {"bytes": report.bytes, **{name: value for name, value in notable.items() if value}}


def _changed_by(names: Iterable[str], uid: int) -> None:
    _log.info("records changed for an administrator", uid=uid, keys=" ".join(names))


def _report(event: str, values: Mapping[str, str]) -> None:
    _log.warning(event, **values)
