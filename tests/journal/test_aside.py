"""State files that are set aside: evidence that nobody overwrites."""

import os
from pathlib import Path

import pytest

from ipamd.journal import aside as module
from ipamd.journal.aside import aside, set_aside_damaged, set_aside_of_cluster
from ipamd.journal.errors import JournalBusyError, JournalDamagedError, JournalError
from ipamd.journal.journal import Journal
from tests.journal.examples import BOOT, NODE, assigned


def damaged(directory: Path) -> bytes:
    """Leave a state file that cannot be read; returns its bytes."""
    journal, _, _ = Journal.open(directory, NODE, BOOT)
    journal.append([assigned(1)])
    journal.close()
    path = directory / "state"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(JournalDamagedError):
        Journal.open(directory, NODE, BOOT)
    return path.read_bytes()


def test_a_file_set_aside_makes_room_for_a_new_one_with_another_name(tmp_path: Path) -> None:
    """Its bytes and mode are untouched, and the new file's instance, which names the reserve, is another."""
    first, _, _ = Journal.open(tmp_path, NODE, BOOT)
    instance = first.instance
    first.close()
    data = damaged(tmp_path)
    kept = set_aside_damaged(tmp_path, NODE, BOOT).path
    journal, facts, report = Journal.open(tmp_path, NODE, BOOT)
    journal.close()
    assert (facts, report.created) == ([], False)
    assert journal.instance != instance
    assert kept.name.startswith("state.damaged-")
    assert kept.read_bytes() == data
    assert kept.stat().st_mode & 0o777 == 0o600
    assert aside(tmp_path) == [kept.name]


def test_no_file_set_aside_is_ever_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several within one second get names of their own."""
    monkeypatch.setattr(module.time, "strftime", lambda *_: "20261121T130000Z")
    kept = {}
    for number in range(3):
        (tmp_path / "state").write_bytes(b"%d" % number)
        kept[set_aside_damaged(tmp_path, NODE, BOOT).path] = b"%d" % number
    assert len(kept) == 3
    assert {path: path.read_bytes() for path in kept} == kept
    assert aside(tmp_path) == sorted(path.name for path in kept)


def test_a_file_of_another_cluster_bears_its_name(tmp_path: Path) -> None:
    """Whatever a record calls a cluster, the name is one file's in the same directory, and the second gets another."""
    for guid, name in (("0f3c", "0f3c"), ("0f3c", "0f3c.2"), ("../x y", "___x_y"), ("z" * 300, "z" * 64)):
        (tmp_path / "state").write_bytes(guid.encode())
        kept = set_aside_of_cluster(tmp_path, guid, NODE, BOOT).path
        assert kept == tmp_path / f"state.cluster-{name}"
        assert kept.read_bytes() == guid.encode()
    assert len(aside(tmp_path)) == 4


def test_a_file_in_use_is_not_set_aside(tmp_path: Path) -> None:
    """Another process's state file is left where it is."""
    journal, _, _ = Journal.open(tmp_path, NODE, BOOT)
    with pytest.raises(JournalBusyError):
        set_aside_damaged(tmp_path, NODE, BOOT)
    assert journal.in_place
    journal.close()


def test_what_cannot_be_renamed_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file stays, with a second name, the lock is let go, and the text names the directory."""
    data = damaged(tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(tmp_path / "state"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(JournalError, match=f"cannot use {tmp_path}: Operation not permitted"):
            set_aside_damaged(tmp_path, NODE, BOOT)
    assert (tmp_path / "state").read_bytes() == data
    (named,) = aside(tmp_path)
    assert set_aside_damaged(tmp_path, NODE, BOOT).path == tmp_path / named
    assert aside(tmp_path) == [named]
    assert (tmp_path / named).read_bytes() == data


def test_where_a_file_can_have_but_one_name_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems without hard links: the same bytes, for the same user alone, and the next start has its file."""
    data = damaged(tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    kept = set_aside_damaged(tmp_path, NODE, BOOT).path
    assert (kept.read_bytes(), kept.stat().st_mode & 0o777) == (data, 0o600)
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "state", kept.name}
    Journal.open(tmp_path, NODE, BOOT)[0].close()


def test_an_absent_directory_has_none(tmp_path: Path) -> None:
    """Before the first start there is nothing to list."""
    assert aside(tmp_path / "none") == []
