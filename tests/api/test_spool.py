"""DELs that the plugin kept while the daemon was away: carried out once, in order, and never against a later ADD."""

import os
import time
from collections.abc import Sequence
from pathlib import Path as File

import pytest

from ipamd.api.spool import Spool
from ipamd.core.clock import THIS_BOOT
from ipamd.core.facts import Attachment, Fact, Rebooted, Released
from ipamd.core.ledger import Ledger
from ipamd.core.reserve import ReservePolicy
from tests.api.plugin_call import ENVIRONMENT, NODE, Path, addresses_of, call
from tests.core.snapshot import snapshot

BOOT = "0b6c1f3e-0000-4000-8000-000000000001"
EARLIER = "ffffffff-0000-4000-8000-000000000009"


class Kept:
    """A node's request path with a spool; ``keep`` is what the plugin does when it cannot deliver a DEL."""

    def __init__(self, directory: File) -> None:
        self.path = Path()
        self.path.supply("10.0.0.0/29", 8)
        self.directory = directory / "del.d"
        self.unix = time.time_ns()
        self.told: list[tuple[str, dict[str, str]]] = []
        self.spool = Spool(
            self.directory,
            BOOT,
            self.path.handlers.cni,
            lambda: not self.path.owed,
            lambda: self.unix,
            lambda *words: self.told.append(words),
        )
        self.spool.prepare()
        self.path.handlers.steps.catch_up = self.spool.carry_out

    def add(self, started: int, container: str = "c1") -> str:
        """ADD a container; its address."""
        return addresses_of(self.path.ask(call(CNI_CONTAINERID=container, IPAMD_STARTED=str(started))))[0]

    def keep(self, started: int, container: str = "c1", boot: str = BOOT, **changes: str) -> File:
        """Keep a DEL as the plugin does."""
        variables = {**ENVIRONMENT, "CNI_COMMAND": "DEL", "CNI_CONTAINERID": container, **changes}
        body = call().body
        fields = {name.title().replace("_", "-"): value for name, value in variables.items()}
        fields |= {"Ipamd-Started": str(started), "Content-Length": str(len(body))}
        head = "POST /v1/cni HTTP/1.1\r\nHost: ipamd\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
        file = self.directory / f"{boot}.{started:020d}.77"
        file.write_bytes(head.encode() + body)
        return file

    @property
    def held(self) -> list[str]:
        """The containers that hold an address."""
        return [attachment.container for attachment in self.path.ledger.holdings]


@pytest.fixture
def kept(tmp_path: File) -> Kept:
    """A node that was away for some DELs."""
    return Kept(tmp_path)


def test_what_was_kept_is_carried_out_and_goes(kept: Kept) -> None:
    """The address is released, durably, and the file is gone; a second time there is nothing to do."""
    kept.add(10)
    kept.add(11, "c2")
    kept.keep(20)
    kept.spool.carry_out()
    kept.spool.carry_out()
    assert kept.held == ["c2"]
    assert [fact.attachment.container for fact in kept.path.journal if isinstance(fact, Released)] == ["c1"]
    assert (list(kept.directory.iterdir()), kept.told, kept.spool.carried_out) == ([], [], 1)


def test_the_directory_is_its_owners_alone(kept: Kept) -> None:
    """Nobody else may put a DEL there, or read whose pods go."""
    assert kept.directory.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_made_is_told(tmp_path: File) -> None:
    """Without the directory the daemon runs; the plugin's DELs fail while it is away, which an operator should know."""
    (tmp_path / "del.d").write_text("a file")
    told: list[str] = []
    spool = Spool(
        tmp_path / "del.d", BOOT, lambda *_: None, lambda: True, lambda: 0, lambda event, _values: told.append(event)
    )
    spool.prepare()
    spool.carry_out()
    assert told == ["cannot keep DELs while the daemon is away"]


def test_an_add_that_came_later_keeps_its_address(kept: Kept) -> None:
    """A DEL that is carried out late does not end the life that began after it."""
    kept.keep(20)
    address = kept.add(30)
    kept.spool.carry_out()
    assert kept.held == ["c1"]
    assert kept.add(40) == address


def test_a_repeated_add_comes_after_the_del_between(kept: Kept) -> None:
    """ADD, a DEL that was kept, ADD again: the second is a new life, and the DEL does not end it."""
    kept.add(10)
    kept.keep(20)
    kept.add(30)
    kept.spool.carry_out()
    assert kept.held == ["c1"]
    assert [type(fact).__name__ for fact in kept.path.journal] == ["Assigned", "Released", "Assigned"]


def test_an_add_that_began_before_is_refused(kept: Kept) -> None:
    """A kept DEL leaves the mark of any DEL: an ADD that it overtook fails instead of leaking."""
    kept.keep(20)
    kept.spool.carry_out()
    with pytest.raises(AssertionError, match='"code": 103'):
        kept.add(19)


def test_a_del_of_an_earlier_boot_ends_what_was_then(kept: Kept) -> None:
    """Its clock says nothing in this boot, whatever it shows: it is before everything that will be served."""
    kept.add(10)
    kept.add(11, "c2")
    kept.path.ledger.apply(Rebooted())
    kept.path.journal.append(Rebooted())
    kept.keep(1 << 60, boot=EARLIER)
    kept.keep(5, "c2", boot=EARLIER)
    kept.spool.carry_out()
    assert kept.held == []
    assert set(kept.path.ledger.tombstones.values()) == {THIS_BOOT}  # no mark from the future


def test_a_del_of_an_earlier_boot_ends_no_life_of_this_one(kept: Kept) -> None:
    """Also when it is carried out late, as after a start on a full disk: the container was made again meanwhile."""
    kept.path.full = True
    kept.keep(5, boot=EARLIER)
    kept.spool.carry_out()
    kept.path.full = False
    kept.path.owed.clear()
    kept.add(kept.path.now().boot)
    kept.spool.carry_out()
    assert kept.held == ["c1"]
    assert list(kept.directory.iterdir()) == []


def test_after_a_reboot_every_add_is_earlier_than_any_del(kept: Kept) -> None:
    """The clock begins anew: an ADD of the boot before does not look later than a DEL of this one."""
    kept.add(4_000_000_000)
    kept.path.ledger.apply(Rebooted())
    kept.path.journal.append(Rebooted())
    kept.keep(1_000_000_000)
    kept.spool.carry_out()
    assert kept.held == []


def test_a_reboot_is_replayed(kept: Kept) -> None:
    """The facts up to and after a reboot give the same state again, and so does a checkpoint."""
    kept.add(10)
    kept.path.ledger.apply(Rebooted())
    facts: Sequence[Fact] = [*kept.path.ledger.checkpoint()]
    again = Ledger(NODE, ReservePolicy(minimum=4))
    again.replay(facts)
    assert again.holdings == kept.path.ledger.holdings
    assert [held.began for held in again.holdings.values()] == [0]
    assert snapshot(again) == snapshot(kept.path.ledger)


def test_what_is_not_durable_stays(kept: Kept) -> None:
    """While the disk is full the file stays: if the daemon is killed now, the DEL is carried out by the next."""
    kept.add(10)
    file = kept.keep(20)
    kept.path.full = True
    kept.spool.carry_out()
    assert (kept.held, file.exists()) == ([], True)
    kept.path.full = False
    kept.path.owed.clear()
    kept.spool.carry_out()
    assert not file.exists()


@pytest.mark.parametrize("boots", [(BOOT, BOOT), (EARLIER, BOOT)])
def test_the_order_is_that_of_the_starts(kept: Kept, boots: tuple[str, str]) -> None:
    """Of one boot by the clock; what is of another boot comes first."""
    kept.keep(30, "c2", boot=boots[1])
    kept.keep(20, "c1", boot=boots[0])
    kept.spool.carry_out()
    marked = [fact.attachment.container for fact in kept.path.journal if isinstance(fact, Released)]
    assert marked == ["c1", "c2"]


def test_a_hidden_file_is_not_finished(kept: Kept) -> None:
    """A plugin is writing it: left alone."""
    kept.add(10)
    file = kept.keep(20)
    hidden = file.rename(file.with_name(f".{file.name}"))
    kept.spool.carry_out()
    assert (kept.held, hidden.exists()) == (["c1"], True)


def test_what_a_killed_plugin_began_to_write_goes_after_a_minute(kept: Kept) -> None:
    """It would count among the files that may be kept; its DEL never succeeded. Other hidden files are not ours."""
    kept.add(10)
    file = kept.keep(20)
    hidden, other = file.rename(file.with_name(f".{file.name}")), kept.directory / ".keep"
    other.touch()
    kept.unix = hidden.stat().st_mtime_ns + 59 * 1_000_000_000
    kept.spool.carry_out()
    assert hidden.exists()
    kept.unix += 2_000_000_000
    kept.spool.carry_out()
    assert list(kept.directory.iterdir()) == [other]
    assert (kept.held, kept.told) == (["c1"], [])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is not complete"),
        (b"GARBAGE\r\n\r\n", "its first line is not"),
        (b"POST /v1/cni HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{}", "it is not complete"),
        (b"POST /v1/cni HTTP/1.1\r\nHost: a\r\nCni-Command: ADD\r\nContent-Length: 2\r\n\r\n{}", "it is not a DEL"),
    ],
)
def test_what_is_no_del_is_told_and_left_out(kept: Kept, content: bytes, problem: str) -> None:
    """It can never be carried out: it goes, with a word in the log, and the others are carried out."""
    kept.add(10)
    (kept.directory / f"{BOOT}.00000000000000000001.1").write_bytes(content)
    kept.keep(20)
    kept.spool.carry_out()
    assert kept.held == []
    ((event, values),) = kept.told
    assert event == "cannot carry out a kept DEL, leaving it out"
    assert problem in values["error"]
    assert list(kept.directory.iterdir()) == []


def test_a_del_that_is_refused_is_told(kept: Kept) -> None:
    """The runtime was told of a success: all that is left is to tell the operator."""
    kept.keep(20, "a/b")
    kept.spool.carry_out()
    ((event, values),) = kept.told
    assert event == "a kept DEL was refused"
    assert "CNI_CONTAINERID 'a/b' is not a container id" in values["answer"]
    assert list(kept.directory.iterdir()) == []


def test_a_link_is_not_followed(kept: Kept, tmp_path: File) -> None:
    """Only files of root or the daemon's user count, and no way leads out of the directory."""
    kept.add(10)
    kept.keep(20).rename(tmp_path / "elsewhere")
    (kept.directory / f"{BOOT}.1.1").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(kept.directory / f"{BOOT}.2.1")
    kept.spool.carry_out()
    assert kept.held == ["c1"]
    assert len(kept.told) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a file of another user")
def test_a_strangers_file_does_not_count(kept: Kept) -> None:
    """A file that neither root nor the daemon's user wrote is left out."""
    kept.add(10)
    os.chown(kept.keep(20), 12345, 12345)
    kept.spool.carry_out()
    assert kept.held == ["c1"]
    assert "it is not a file of root or of the daemon's user" in kept.told[0][1]["error"]


def test_the_mark_of_a_kept_del_is_its_own_start(kept: Kept) -> None:
    """Not the moment at which it was carried out: an ADD that began in between is served."""
    kept.keep(20)
    kept.spool.carry_out()
    assert kept.path.ledger.tombstones == {Attachment("k8s-pod-network", "c1", "eth0"): 20}


def test_what_cannot_be_removed_is_told_once_and_costs_nothing(kept: Kept) -> None:
    """A directory among the kept DELs: no line in the log and no descriptor for each look."""
    (kept.directory / "lost+found").mkdir()
    kept.spool.carry_out()
    told, descriptors = list(kept.told), len(list(File("/proc/self/fd").iterdir()))
    for _ in range(3):
        kept.spool.carry_out()
    assert [words for words, _values in told][-1] == "cannot remove what lies among the kept DELs"
    assert kept.told == told
    assert len(list(File("/proc/self/fd").iterdir())) == descriptors


def test_a_removed_directory_is_made_again(kept: Kept) -> None:
    """The next DEL that finds the daemon away can be kept."""
    kept.directory.rmdir()
    kept.spool.carry_out()
    assert kept.directory.is_dir()
