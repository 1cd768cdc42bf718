"""A state file that cannot be read, as the daemon opens it: what only that file knew is in its successor, or not lost."""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ipamd.config import Config
from ipamd.config.sources import load
from ipamd.core.clock import THIS_BOOT
from ipamd.core.facts import Attachment, Fact, RangeAssigned, RangeCursors, RangeReleased
from ipamd.daemon import open_journal
from ipamd.journal.aside import aside
from ipamd.journal.errors import JournalError
from ipamd.journal.format import HEADER_SIZE
from ipamd.journal.journal import Journal
from tests.journal.examples import BOOT, NODE, assigned

CALLS = ("pwrite", "fsync", "fdatasync", "link", "rename")
"""How a state file reaches the disk and gets its name."""


def held(number: int, began: int = 7) -> RangeAssigned:
    """A container with an address of a range."""
    return RangeAssigned(Attachment("lan", f"c{number}", "eth0"), (f"10.9.0.{number}",), {}, number, began)


class Killed(BaseException):
    """The process dies at this call."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A node's, in whose state file one bit of the header is another."""
    config: Config = load({"node": NODE, "state_dir": str(tmp_path)}, {}, None).config
    journal, _, _ = Journal.open(tmp_path, NODE, BOOT)
    for fact in (
        held(2),
        assigned(1),
        held(3),
        RangeReleased(held(3).attachment),
        RangeCursors("lan", {0: "10.9.0.3"}),
    ):
        journal.append([fact])
    journal.close()
    flip(tmp_path / "state", 20)
    return config


def flip(path: Path, at: int) -> None:
    """Make one bit another."""
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def reopened(config: Config) -> list[Fact]:
    """The facts that a start finds."""
    journal, facts, _report = open_journal(config, BOOT)
    journal.close()
    return facts


SAVED = [
    held(2, THIS_BOOT),
    held(3, THIS_BOOT),
    RangeReleased(held(3).attachment),
    RangeCursors("lan", {0: "10.9.0.3"}),
]


def test_what_is_held_of_ranges_goes_over(config: Config) -> None:
    """It is in the successor, with nothing of what the store knows better; a second start finds the same."""
    assert reopened(config) == SAVED
    assert reopened(config) == SAVED
    assert len(aside(config.state_dir)) == 1


@pytest.mark.parametrize("harm", [OSError(errno.ENOSPC, "No space left on device"), Killed()], ids=["full", "killed"])
def test_no_moment_loses_what_only_the_damaged_file_knew(
    config: Config, monkeypatch: pytest.MonkeyPatch, harm: BaseException
) -> None:
    """The disk is full, or the process dies, from any call on: the next start finds all, and the evidence once."""
    evidence = (config.state_dir / "state").read_bytes()
    for number in range(100):
        for path in config.state_dir.iterdir():
            path.unlink()
        (config.state_dir / "state").write_bytes(evidence)
        left = [number]
        with monkeypatch.context() as patch, suppress(JournalError, Killed):
            for name in CALLS:
                patch.setattr(os, name, failing(getattr(os, name), left, harm))
            open_journal(config, BOOT)[0].close()
        assert reopened(config) == SAVED
        (kept,) = aside(config.state_dir)
        assert (config.state_dir / kept).read_bytes() == evidence
        if left[0]:
            break
    assert 5 < number < 99


def failing(call: Callable[..., object], left: list[int], harm: BaseException) -> Callable[..., object]:
    """The call, which fails for ever once ``left`` calls were made."""

    def wrapped(*args: Any) -> object:
        if len(args) == 3 and len(args[1]) < 10:
            return call(*args)  # the lock's pid: only a courtesy
        if left[0] == 0:
            raise harm
        left[0] -= 1
        return call(*args)

    return wrapped


@pytest.mark.parametrize("damage", ["header", "record", "slots"])
def test_the_log_says_whether_ranges_may_be_unknown(
    config: Config, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """Not if all records could be read; else it says what is unreadable, and what to do."""
    if damage == "record":
        flip(config.state_dir / "state", HEADER_SIZE + 20)
    elif damage == "slots":
        flip(config.state_dir / "state", 512)
        flip(config.state_dir / "state", 1024)
    saved = reopened(config)
    assert saved == (SAVED[1:] if damage == "record" else SAVED)
    said = "".join(capsys.readouterr())
    assert ("recreate the pods that have such an address" in said) == (damage != "header")
    assert {"header": "0 bytes", "slots": "unknown"}.get(damage, " bytes") in said
