"""What the housekeeping tells the log."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipamd import housekeeping
from ipamd.core.errors import NotDurableError
from ipamd.housekeeping import Housekeeping
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
