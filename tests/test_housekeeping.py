"""What the housekeeping does each second, and tells the log."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from ipamd import housekeeping
from ipamd.core.errors import NotDurableError
from ipamd.core.ledger import Ledger
from ipamd.core.reserve import ReservePolicy
from ipamd.housekeeping import Housekeeping
from ipamd.journal.journal import Journal
from tests.nodes import now


def test_a_full_disk_is_told_once_for_each_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """An append and a new file fail in turns, each in its own words; after a recovery both are news again."""
    told: list[str] = []
    log = SimpleNamespace(error=lambda _event, error: told.append(error))
    monkeypatch.setattr(housekeeping, "_log", log)
    report = SimpleNamespace(journal_error="")
    house = Housekeeping(cast("Any", None), cast("Any", None), cast("Any", report), now, 60.0)
    for _ in range(3):
        house.journal_failed(NotDurableError("append"))
        house.journal_failed(NotDurableError("new file"))
    assert told == ["append", "new file"]
    report.journal_error = ""
    house.journal_failed(NotDurableError("append"))
    assert told == ["append", "new file", "append"]


async def test_the_state_file_is_not_written_anew_twice_for_one_reason(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes seconds on a slow disk: what others look after goes on meanwhile, and each second finds the same reason."""
    journal, _facts, _report = Journal.open(tmp_path, "n1", "boot")
    report = SimpleNamespace(journal_error="the disk is full")
    house = Housekeeping(Ledger("n1", ReservePolicy()), journal, cast("Any", report), now, 60.0)
    written, looks = 0, 0

    async def slow(_facts: object) -> None:
        nonlocal written
        await trio.sleep(3.5)
        written += 1

    def look() -> None:
        nonlocal looks
        looks += 1

    monkeypatch.setattr(journal, "checkpoint", slow)
    house.looks = [look]
    with trio.move_on_after(9.5):
        await house.run()
    journal.close()
    assert (written, looks, report.journal_error) == (1, 10, "")
