"""The task that looks at the runtime's cache: at the start for what was lost here, then for what leaked.

May import trio and core. What it decides goes out through ``record``; it touches no request.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import trio

from ipamd.core.address import Cidr
from ipamd.core.clock import Now
from ipamd.core.facts import Fact, RangeAssigned
from ipamd.core.leaks import Leak, Leaks
from ipamd.core.leaks import release as release_all
from ipamd.core.ledger import Ledger
from ipamd.core.records import BlockRecord
from ipamd.core.regain import Living, conflicts, regain
from ipamd.runtime.results import Containers, read_names, read_results

PAUSE = 30.0
"""Seconds between looks at the cache."""

PATIENCE = 2.0
"""Seconds that the start of the daemon waits for the first look: a file system may hang."""

Read = Callable[[Sequence[Cidr]], Awaitable[Mapping[Cidr, BlockRecord]]]
"""Reads blocks from the store and takes in what concerns this node; returns those that are there."""


class Survey:
    """See the module. ``findings`` are addresses with two holders, in words; ``leaked`` counts what was released.

    ``keep`` makes facts durable that the ledger has already.
    """

    def __init__(
        self,
        ledger: Ledger,
        directory: Path,
        grace: float,
        keep: Callable[[Sequence[Fact]], None],
        now: Callable[[], Now],
        report: Callable[[str, Mapping[str, str]], None],
    ) -> None:
        self._ledger, self._directory, self._keep, self._now, self._report = ledger, directory, keep, now, report
        self._pause = min(PAUSE, grace / 4)
        self._leaks = Leaks(int(grace * 1e9))
        self._living: dict[str, Living] = {}
        self._others: Mapping[Cidr, BlockRecord] = {}
        self.pod_gone: Callable[[str, str], bool] = lambda _namespace, _name: False
        """Whether Kubernetes is known to have no such pod on this node; without Kubernetes nobody knows."""
        self.findings: list[str] = []
        self.leaked = 0
        self.attachments: int | None = None
        """How many attachments the runtime knows; None: it says nothing."""

    async def begin(self) -> None:
        """Take back what the state file's facts allow, before anything is served."""
        with trio.move_on_after(PATIENCE):
            self._living = await trio.to_thread.run_sync(read_results, self._directory, abandon_on_cancel=True)
        self._regain()

    async def run(self, read: Read) -> None:
        """Once the store was looked at: take back what it has for this node, then look for leaks for ever."""
        unseen = self._regain()
        if unseen:
            self._others = await read(sorted(unseen, key=str))
            self._regain()
        while True:
            known = await trio.to_thread.run_sync(read_names, self._directory, abandon_on_cancel=True)
            self._take_stock(known)
            await trio.sleep(self._pause)

    def _take_stock(self, known: Containers | None) -> None:
        names = known.names if known is not None else frozenset()
        self._living = {name: living for name, living in self._living.items() if name in names}
        self.findings = conflicts(self._ledger, self._living.values(), self._others)
        self.attachments = None if known is None else len(names)
        if known is None or self._ledger.rival:  # whose pods' containers this runtime cannot know
            self._leaks.forget()
            return
        self._tell(self._leaks.find(self._ledger, known.lives, self.pod_gone, self._now()))

    async def collect(self, *, release: bool) -> tuple[list[tuple[Leak, int]], str]:
        """What looks leaked now, each with how long (ns) it would be looked at yet; with ``release`` it is released.

        The second is why nothing can be said, else "".
        """
        known = await trio.to_thread.run_sync(read_names, self._directory, abandon_on_cancel=True)
        if known is None:
            return [], f"the container runtime's cache {self._directory} says nothing: it is absent or empty"
        if self._ledger.rival:
            return [], "another host serves this node, whose containers this runtime cannot know"
        found = self._leaks.suspected(self._ledger, known.lives, self.pod_gone, self._now())
        if release:
            leaks = [leak for leak, _left in found]
            release_all(self._ledger, leaks)
            self._tell(leaks)
        return found, ""

    def _tell(self, found: Sequence[Leak]) -> None:
        """Count and log what was released, and make it durable."""
        for leak in found:
            self.leaked += len(leak.addresses)
            why = f"the container runtime does not know the container, and {leak.why}"
            values = {"addresses": " ".join(leak.addresses), "handle": leak.handle, "why": why}
            self._report("released a leaked allocation", values)
        if found:
            self._keep([fact for leak in found for fact in leak.facts])

    def _regain(self) -> set[Cidr]:
        found = regain(self._ledger, self._living.values(), self._now())
        self.findings = conflicts(self._ledger, self._living.values(), self._others)
        for fact in found.facts:
            if isinstance(fact, RangeAssigned):
                addresses = list(fact.addresses)
            else:
                addresses = [self._ledger.blocks[place.block].address(place.ordinal) for place in fact.places]
            values = {"addresses": " ".join(addresses), "handle": fact.attachment.handle}
            self._report("took back addresses of a living container that the state file does not know", values)
        if found.facts:
            self._keep(found.facts)
        return found.unseen
