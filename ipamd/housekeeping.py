"""Housekeeping: keeps the state file short and whole, and says what an administrator should look at.

May import trio, core, the journal and the report.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import trio

from ipamd.core.check import check
from ipamd.core.clock import Now
from ipamd.core.errors import NotDurableError
from ipamd.core.findings import findings
from ipamd.core.ledger import Ledger
from ipamd.journal.errors import JournalFullError
from ipamd.journal.journal import Journal
from ipamd.logs import get_logger
from ipamd.report import Report

HOUSEKEEPING = 1.0
"""Seconds between looks at the state file, old tombstones, the socket and the spool."""

RETRY = 30.0
"""Seconds after which a state file without the images of blocks is tried with them again: it may fill the disk."""

_log = get_logger("daemon")


class Housekeeping:
    """``run`` it in a nursery. ``quarantine`` is how long a lost reserve is kept back (s)."""

    def __init__(
        self, ledger: Ledger, journal: Journal, report: Report, now: Callable[[], Now], quarantine: float
    ) -> None:
        self._ledger, self._journal, self._report, self._now = ledger, journal, report, now
        self._quarantine = quarantine
        self._findings: set[str] = set()
        self._told: set[str] = set()
        self._bare_until: float | None = None
        """When to write the images of blocks into a state file that does without them, by Trio's clock (s)."""
        self._failed = False
        """Whether the last state file could not be written at all."""
        self._due = trio.Event()
        self.looks: list[Callable[[], None]] = []
        """What others look after each second, in the same wake of an idle daemon."""
        self.elsewhere: Callable[[], Iterable[str]] = lambda: ()
        """What others found, in words."""

    async def run(self) -> None:
        """Do for ever what is due each second."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_anew)
            while True:  # at once after the start too: the file of a daemon that dies young must not grow for ever
                for look in self.looks:
                    look()
                self._ledger.forget_tombstones(self._now().boot)
                self._complain()
                if self._is_due():
                    self._due.set()
                await trio.sleep(HOUSEKEEPING)

    def _is_due(self) -> bool:
        """Whether the state file should be written anew; a failure is ended so, too, with a shorter one."""
        bare = self._bare_until is not None and trio.current_time() >= self._bare_until
        return bare or self._is_pressing()

    def _is_pressing(self) -> bool:
        """Whether the state file should be written anew, be it without the images of blocks."""
        journal = self._journal
        failed = journal.owing or journal.lacking or bool(self._report.journal_error)
        return failed or not journal.in_place or journal.should_checkpoint

    async def _write_anew(self) -> None:
        """Write the state file anew whenever that is due; it may take long, and nothing else waits for it."""
        while True:
            await self._due.wait()
            self._due = trio.Event()
            if not self._is_due():
                continue  # it was noticed while the last one was being written
            if not self._journal.in_place and not self._report.journal_error:
                _log.error("the state file was removed, replaced or cut by somebody else; writing it anew")
            try:
                await self._checkpoint()
                self._journal.append(())
                self._report.journal_error, self._failed = "", False
            except NotDurableError as error:
                self._failed = True
                self.journal_failed(error)

    async def _checkpoint(self) -> None:
        """Write all that the ledger is; where there is no room for that, what it has promised."""
        until, self._bare_until = self._bare_until, None
        first = until is None
        if until is None or trio.current_time() >= until:
            with suppress(JournalFullError):
                await self._journal.checkpoint(self._ledger.checkpoint())
                return
            until = trio.current_time() + RETRY
        if self._is_pressing():
            await self._journal.checkpoint(self._ledger.checkpoint(images=False))
        if first:
            _log.warning(
                "no room for the images of blocks in the state file: a start without the store would wait for it"
            )
        self._bare_until = until

    def check(self) -> Mapping[str, object]:
        """For ``GET /v1/check``: broken invariants of memory, and what an administrator should look at."""
        return {"memory": check(self._ledger), "findings": sorted(self._found())}

    def _found(self) -> set[str]:
        return findings(self._ledger, self._quarantine) | set(self.elsewhere())

    def _complain(self) -> None:
        """Say each finding once, as long as it lasts."""
        found = self._found()
        for finding in found - self._findings:
            _log.error("records disagree", finding=finding)
        self._findings = found

    def journal_failed(self, error: NotDurableError) -> None:
        """The state file cannot be written: say so, once for all that comes of it, and write it anew at once.

        Unless that failed before: then once a second.
        """
        if not self._failed:
            self._due.set()
        if not self._report.journal_error and self._bare_until is None:
            self._told.clear()
        if str(error) not in self._told:  # a full disk has a text for each file that cannot be written
            _log.error("cannot write the state file", error=str(error))
        self._told.add(str(error))
        self._report.journal_error = str(error)
