"""What the daemon says of itself: whether it is ready, status, measures, configuration, the first lines to paste."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from math import nan
from typing import Protocol

import msgspec

from ipamd import __version__
from ipamd.config import Config
from ipamd.core.address import FAMILIES
from ipamd.core.clock import Now
from ipamd.core.leaks import Leak
from ipamd.core.ledger import Ledger
from ipamd.core.records import rfc3339
from ipamd.store.base import Store
from ipamd.store.cleaner import Cleaner
from ipamd.store.sync import Sync
from ipamd.store.writer import Progress


class Served(Protocol):
    """What a server tells of its connections."""

    @property
    def connections(self) -> int:
        """How many are open."""

    @property
    def turned_away(self) -> int:
        """How many were refused because too many were open."""

    def stop(self, grace: float) -> None:
        """Accept no more."""


class Kubernetes(Protocol):
    """What the view of Kubernetes tells of itself."""

    def measures(self) -> Mapping[str, float]:
        """Its numbers for the metrics, by name without ``ipamd_``."""

    def status(self) -> Mapping[str, object]:
        """Its part of the status."""


_NO_POOL = "no pool serves this node"
_NO_KUBERNETES = {"kubernetes_connected": 0.0, "kubernetes_lists_total": 0.0, "kubernetes_fetches_total": 0.0}


class Survey(Protocol):
    """What the look at the container runtime's cache tells."""

    findings: list[str]
    leaked: int
    attachments: int | None

    async def collect(self, *, release: bool) -> tuple[list[tuple[Leak, int]], str]:
        """What looks leaked now."""


class Report:
    """Reads the daemon's parts; those that come up later (store, sync, progress) are set when they are there."""

    def __init__(
        self, config: Config, ledger: Ledger, journal_size: Callable[[], int], aside: Callable[[], list[str]]
    ) -> None:
        self._config, self._ledger, self._journal_size, self._aside = config, ledger, journal_size, aside
        self.store: Store | None = None
        self.sync: Sync | None = None
        self.progress: Progress | None = None
        self.cleaner: Cleaner | None = None
        self.servers: list[Served] = []
        self.kubernetes: Kubernetes | None = None
        self.survey: Survey | None = None
        self.requests: Callable[[], Mapping[str, Mapping[str, int]]] = dict
        """How many CNI requests there were, by verb and code."""
        self.failures: Callable[[], Sequence[object]] = list
        """The last refused ones."""
        self.began = 0
        """When the daemon started (CLOCK_BOOTTIME, ns)."""
        self.stopping = False
        self.journal_error = ""

    def unable(self) -> str:
        """Why no ADD at all could be served now, not even from host-local ranges; "" if one could."""
        if self.stopping:
            return "the daemon is stopping"
        if self._ledger.rival:
            return f"host {self._ledger.rival} serves this node, too, and was there first"
        if self._ledger.draining:
            return "the node is being drained"
        if self.journal_error:
            return f"the state file cannot be written: {self.journal_error}"
        return ""

    def unready(self, *families: int) -> str:
        """Why an ADD from pools could not be served now; "" if it could.

        ``families``: that it wants an address of each of these IP versions; none: that any would do.
        """
        if unable := self.unable():
            return unable
        if self._ledger.settings.locked:
            return "the datastore is locked"
        lacks = (self._lack((family,)) for family in families) if families else (self._lack(FAMILIES),)
        return next(filter(None, lacks), "")

    def _lack(self, families: Sequence[int]) -> str:
        """Why no address of any of these IP versions could be assigned now; "" if one could."""
        serves = [pool for family in families for pool in self._ledger.settings.selection.serving(family)]
        if not serves:
            return self._unready_by_itself(families)
        if any(self._ledger.available(pool.name) for pool in serves):
            return ""
        refusals = [self._ledger.reserves[p.name].refusal for p in serves if p.name in self._ledger.reserves]
        reasons = [refusal.why for refusal in refusals if refusal is not None]
        if reasons and len(reasons) == len(serves):
            return f"no address is in reserve; {'; '.join(reasons)}"
        owns = any(block.owned for block in self._ledger.blocks.values())
        borrows = any(
            reserve.closed for name, reserve in self._ledger.reserves.items() if name in {p.name for p in serves}
        )
        if self._connected and not self.excuse_of_store() and (owns or borrows):
            return ""
        return f"no address is in reserve; {self.excuse()}"

    def starting(self) -> str:
        """Why the start is not over: no ADD from pools can be served yet. Where no pool is to be, that is no reason."""
        reason, pools = self.unready(), self._config.default_pools
        return "" if reason == _NO_POOL and not (pools.ipv4_cidr or pools.ipv6_cidr) else reason

    def sentence(self) -> str:
        """How the daemon is, in one line, for ``systemctl status``."""
        reserve = sum(block.available for block in self._ledger.blocks.values())
        counts = (
            f"{self.attachments} attachments, {reserve} addresses in reserve, {self.unflushed} not in the store yet"
        )
        if self.stopping:
            return f"stopping: {counts}"
        if reason := self.unready():
            return f"no ADD from pools can be served: {reason}; {counts}"
        trouble = self.excuse_of_store()
        return f"serving: {trouble}; {counts}" if trouble else f"serving: {counts}"

    def _unready_by_itself(self, families: Sequence[int]) -> str:
        """The same where no pool serves all pods: there may be pools for those that name one, or of some namespaces."""
        if not self._ledger.synced:
            return f"no pool is known yet; {self.excuse()}"
        pools = [pool for pool in self._ledger.settings.pools.values() if pool.family in families]
        if any(self._ledger.serves(pool) for pool in pools):
            return self.excuse_of_store()
        return _NO_POOL if len(families) > 1 else f"no IPv{families[0]} pool serves this node"

    def excuse(self) -> str:
        """Why an address is not to be had at once."""
        return self.excuse_of_store() or "the node is still claiming addresses"

    def excuse_of_store(self) -> str:
        """What is wrong with the store; "" if nothing is known to be."""
        if self.sync is not None and self.sync.last_error:
            return f"the store cannot be read ({self.sync.last_error})"
        if self.progress is not None and self.progress.last_error:
            return f"the store cannot be written ({self.progress.last_error})"
        return ""

    @property
    def _connected(self) -> bool:
        return self.store is not None and self.store.connected

    @property
    def unflushed(self) -> int:
        """How many assignments and releases the store does not have yet."""
        return sum(len(block.unflushed) + len(block.releasing) for block in self._ledger.blocks.values())

    def unflushed_age(self, now: int) -> float:
        """An upper bound of how old the oldest of them is (s); ``now`` is CLOCK_BOOTTIME (ns)."""
        since = self.progress.flushed_until if self.progress is not None else now
        return (now - since) / 1e9 if self.unflushed else 0.0

    @property
    def attachments(self) -> int:
        """How many there are, with addresses of pools or of host-local ranges."""
        return len(self._ledger.holdings) + len(self._ledger.ranges.holdings)

    def measures(self, now: int) -> Mapping[str, float]:
        """The numbers for the metrics, by name without ``ipamd_``; ``now`` is CLOCK_BOOTTIME (ns)."""
        progress, sync = self.progress or Progress(flushed_until=now), self.sync
        return {
            "ready": not self.unready(),
            "draining": self._ledger.draining,
            "store_connected": self._connected,
            "store_locked": self._ledger.settings.locked,
            "unflushed_facts": self.unflushed,
            "unflushed_age_seconds": self.unflushed_age(now),
            "flush_transactions_total": progress.transactions,
            "flush_operations_total": progress.operations,
            "flush_conflicts_total": progress.conflicts,
            "flush_failures_total": progress.failures,
            "claims_total": progress.claims,
            "cleaner": self.cleaner.here if self.cleaner else 0,
            "leaked_handles_total": self.cleaner.handles if self.cleaner else 0,
            "cleaned_addresses_total": self.cleaner.addresses if self.cleaner else 0,
            "journal_size_bytes": self._journal_size(),
            "state_files_set_aside": len(self._aside()),
            "leaked_addresses_total": self.survey.leaked if self.survey else 0,
            "runtime_attachments": self._runtime_attachments,
            "store_reads_total": sync.looks if sync else 0,
            "watch_events_total": sync.events if sync else 0,
            "connections": sum(server.connections for server in self.servers),
            "connections_refused_total": sum(server.turned_away for server in self.servers),
            "damaged_records": len(self._ledger.damaged),
            **(self.kubernetes.measures() if self.kubernetes else _NO_KUBERNETES),
        }

    @property
    def _runtime_attachments(self) -> float:
        known = None if self.survey is None else self.survey.attachments
        return nan if known is None else known

    def status(self, now: Now) -> Mapping[str, object]:
        """Readiness, store, flush and state file, for ``GET /v1/status``: counts are since the start, ages in s."""
        reason = self.unready()
        return {
            "version": __version__,
            "at": rfc3339(now.unix),
            "uptime_seconds": (now.boot - self.began) / 1e9,
            "node": self._config.node,
            "node_labels": dict(self._ledger.settings.node_labels),
            "reserve_handle": self._ledger.reserve_handle,
            "ready": not reason,
            "reason": reason,
            "store": {
                "kind": self._config.store,
                "connected": self._connected,
                "synced": self._ledger.synced,
                "locked": self._ledger.settings.locked,
                "calls": dict(self.store.calls) if self.store else {},
                "last_read_error": self.sync.last_error if self.sync else "",
                "damaged_records": dict(self._ledger.damaged),
            },
            "flush": {
                "unflushed": self.unflushed,
                "unflushed_age_seconds": self.unflushed_age(now.boot),
                **msgspec.to_builtins(self.progress or Progress()),
            },
            "requests": self.requests(),
            "errors": self.failures(),
            "pools": self._pools(),
            "state_file": {
                "path": str(self._config.state_dir / "state"),
                "bytes": self._journal_size(),
                "error": self.journal_error,
                "durability": self._config.durability,
                "set_aside": self._aside(),
            },
            "kubernetes": self.kubernetes.status() if self.kubernetes else None,
            "runtime": {
                "results_dir": str(self._config.runtime.results_dir),
                "attachments": self.survey.attachments if self.survey else None,
                "leaked": self.survey.leaked if self.survey else 0,
            },
            "cleaner": {
                "here": self.cleaner is not None and self.cleaner.here,
                "handles": self.cleaner.handles if self.cleaner else 0,
                "addresses": self.cleaner.addresses if self.cleaner else 0,
            },
            "draining": self._ledger.draining,
            "yields_to": self._ledger.rival,
            "attachments": self.attachments,
            "blocks": len(self._ledger.blocks),
        }

    def _pools(self) -> Mapping[str, Mapping[str, int]]:
        """This node's share of each pool in which it has blocks or addresses, or wants some."""
        ledger = self._ledger
        in_use, shares = {pool.name for pool in ledger.pools_in_use()}, {}
        for name in sorted(ledger.settings.pools):
            blocks, reserve = ledger.blocks_of(name), ledger.reserves.get(name)
            if blocks or name in in_use:
                shares[name] = {
                    "blocks": sum(block.owned for block in blocks),
                    "in_use": sum(block.held for block in blocks),
                    "in_reserve": ledger.available(name),
                    "target": reserve.target if reserve is not None and name in in_use else 0,
                    "waiting": reserve.waiting if reserve is not None else 0,
                }
        return shares

    async def collect(self, *, release: bool) -> Mapping[str, object]:
        """What looks leaked, for ``POST /v1/gc``; ``problem``: why nothing can be said."""
        if self.survey is None:
            return {"released": False, "problem": "the daemon is just starting", "leaks": []}
        found, problem = await self.survey.collect(release=release)
        leaks = [
            {"handle": leak.handle, "addresses": leak.addresses, "why": leak.why, "seconds_left": left / 1e9}
            for leak, left in found
        ]
        return {"released": release, "problem": problem, "leaks": leaks}

    def drain(self) -> Mapping[str, object]:
        """How far a drain is, for ``POST /v1/drain``."""
        blocks = self._ledger.blocks.values()
        return {
            "draining": self._ledger.draining,
            "drained": self._ledger.draining and self._ledger.drained,
            "reserve": sum(block.available for block in blocks),
            "empty_blocks": sum(block.owned and block.empty for block in blocks),
            "unflushed": self.unflushed,
        }

    def settings(self) -> Mapping[str, object]:
        """The configuration in force, for ``GET /v1/config``. It holds paths of secrets, never secrets."""
        return msgspec.convert(msgspec.to_builtins(self._config, enc_hook=str), dict[str, object])


def demo_lines(config: Config) -> str:
    """Three lines to paste into another terminal, printed when an ADD can be served."""
    socket = shlex.quote(str(config.socket))
    plugins = config.socket.parent / "bin"
    network = '{"cniVersion": "1.0.0", "name": "demo", "ipam": {"type": "ipamd"}}'
    add = (
        f"echo '{network}' | CNI_COMMAND=ADD CNI_CONTAINERID=web-1 CNI_NETNS=/var/run/netns/web-1 CNI_IFNAME=eth0 "
        f"CNI_PATH={shlex.quote(str(plugins))} IPAMD_SOCKET={socket} {shlex.quote(str(plugins / 'ipamd'))}"
    )
    get = f"curl --unix-socket {socket} http://ipamd/v1/allocations"
    metrics = (
        f"curl http://{config.metrics_address}/metrics"
        if config.metrics_address
        else f"curl --unix-socket {socket} http://ipamd/metrics"
    )
    return f"\nipamd is ready. Paste these into another terminal:\n\n{add}\n{get}\n{metrics}\n\n"
