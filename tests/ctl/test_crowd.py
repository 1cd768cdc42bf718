"""A cluster with 100,000 addresses in use: what it takes to look at all of them. ``tests.ctl.crowd`` has the seconds."""

import pytest

from ipamd.ctl.target import Target
from ipamd.ctl.usage import look, usage
from tests.ctl.crowd import cost, crowd, fill
from tests.ctl.places import OnFile
from tests.ctl.terminal import on_terminal
from tests.memory_store import MemoryStore


@pytest.fixture(scope="module")
def records() -> dict[str, bytes]:
    """The cluster's records, without handles: nobody looks at them here."""
    return crowd(handles=False)


@pytest.fixture(scope="module")
def place(records: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> OnFile:
    """They in an embedded store's file."""
    path = tmp_path_factory.mktemp("crowd") / "store.db"
    made = OnFile(path)
    fill(Target(db=str(path)), records)
    return made


def test_all_are_counted_in_little_memory(place: OnFile) -> None:
    """Each of 2,000 blocks has a row, and the process stays below 300 MB."""
    took = cost(place.flags, ["ipam", "show", "--show-blocks"])
    rows = [line for line in took.out.splitlines() if "| Block " in line]
    assert len(rows) == 2000
    assert all("50 (78%)" in row for row in rows)
    assert "100000 (10%)" in took.out
    assert took.memory < 300_000_000


async def test_blocks_are_read_many_at_a_time(records: dict[str, bytes], autojump_clock: object) -> None:
    """One look at what counts beside them, one at their names by IP version, and a hundred in each read."""
    store = MemoryStore()
    for key, value in records.items():
        store.put(key, value)
    used = await usage(store, await look(store))
    assert used.pools[0].in_use == 100_000
    assert (store.calls["list"], store.calls["read"]) == (2, 1 + 20)


def test_progress_is_shown_on_a_terminal_only(place: OnFile) -> None:
    """A bar on standard error while the blocks are read, if that is a terminal; nothing of it in the output."""
    shown, printed = on_terminal([*place.flags, "ipam", "show"], 80, piped=True)
    assert "blocks" in shown
    assert "100%" in shown
    assert printed.splitlines()[1].startswith("| GROUPING ")
    assert cost(place.flags, ["ipam", "show"]).out == printed
