"""What a found state file may be used for: never a wrong fact, never fewer acknowledged facts in silence."""

import re
import zlib
from collections.abc import Callable, Iterator

import pytest

from ipamd.journal.errors import JournalDamagedError, JournalForeignError, JournalVersionError
from ipamd.journal.format import HEADER_SIZE, Header, encode_page, encode_slot, frame
from ipamd.journal.recovery import Recovered, recover
from tests.journal.examples import BOOT, EACH_KIND, NODE, OTHER_BOOT, assigned, state
from tests.journal.test_format import record

FIRST, SECOND, THIRD = (assigned(1),), (assigned(2), assigned(3)), EACH_KIND
FACTS = [*FIRST, *SECOND, *THIRD]
FILE = state(FIRST, SECOND, THIRD)
ENDS = [HEADER_SIZE + len(b"".join(map(frame, (FIRST, SECOND, THIRD)[:n]))) for n in range(4)]


def same_boot(data: bytes) -> Recovered:
    """Recover after the death of the process."""
    return recover(data, NODE, BOOT, "state")


def after_reboot(data: bytes) -> Recovered:
    """Recover after the death of the machine."""
    return recover(data, NODE, OTHER_BOOT, "state")


def whole_records(length: int) -> int:
    """Where the last whole record of the file's first ``length`` bytes ends."""
    return max(end for end in ENDS if end <= length)


def flips(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """The data with each bit from byte ``start`` on flipped in turn."""
    for bit in range(start * 8, len(data) * 8):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        yield bit // 8, bytes(bad)


def refusal(data: bytes) -> str:
    """Why the data is refused after the death of the process; empty if it is not."""
    try:
        same_boot(data)
    except JournalDamagedError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("recovered", [same_boot, after_reboot])
def test_a_whole_file_gives_all_facts(recovered: Callable[[bytes], Recovered]) -> None:
    """Nothing is cut from a file that was closed in order, before or after a reboot."""
    found = recovered(FILE)
    assert found.facts == FACTS
    assert (found.records, found.end, found.missing) == (3, len(FILE), 0)
    assert found.rebooted is (recovered is after_reboot)


def test_a_file_that_lost_committed_bytes_is_refused() -> None:
    """While the machine runs nothing takes away what was committed: each shorter file is refused."""
    for length in range(len(FILE)):
        with pytest.raises(JournalDamagedError):
            same_boot(FILE[:length])


def test_what_a_killed_write_leaves_is_kept_or_cut() -> None:
    """Cut anywhere beyond the committed length, the file gives the committed facts and the whole records after them."""
    data = state(FIRST, SECOND, THIRD, committed=ENDS[1])
    for length in range(ENDS[1], len(data) + 1):
        found = same_boot(data[:length])
        assert found.end == whole_records(length)
        assert found.facts == FACTS[: len(found.facts)]
        assert found.records == ENDS.index(found.end)


def test_a_power_cut_leaves_a_prefix() -> None:
    """After a reboot a file cut anywhere gives the facts of its whole records, and says how much is missing."""
    for length in range(HEADER_SIZE, len(FILE) + 1):
        found = after_reboot(FILE[:length])
        assert found.end == whole_records(length)
        assert found.facts == FACTS[: len(found.facts)]
        assert found.missing == len(FILE) - found.end
        assert found.rebooted


def test_what_was_on_the_disk_is_not_taken_by_a_power_cut() -> None:
    """After a reboot too, a file without what its header calls durable is refused, cut or damaged."""
    data = state(FIRST, SECOND, THIRD, durable=ENDS[2])
    for length in range(len(data)):
        if length < ENDS[2]:
            with pytest.raises(JournalDamagedError):
                after_reboot(data[:length])
        else:
            assert after_reboot(data[:length]).end == whole_records(length)
    torn_page = data[: ENDS[2] - 1] + bytes(len(data) - ENDS[2] + 1)
    with pytest.raises(JournalDamagedError, match="on the disk before the reboot"):
        after_reboot(torn_page)


@pytest.mark.parametrize("committed", ENDS)
def test_a_flipped_bit_is_refused_while_the_machine_runs(committed: int) -> None:
    """No flip of any bit of any record gives other facts or fewer: each is refused, committed or not."""
    for at, data in flips(state(FIRST, SECOND, THIRD, committed=committed), HEADER_SIZE):
        assert re.search(r"byte \d+ is wrong; keep it for a report", refusal(data)), f"a flip in byte {at}"


def test_a_flipped_bit_is_cut_only_at_the_end() -> None:
    """After a reboot a damaged last record is cut; one with a whole record behind it is refused."""
    for at, data in flips(FILE, HEADER_SIZE):
        if at >= ENDS[2]:
            assert after_reboot(data).facts == FACTS[: len(FIRST) + len(SECOND)]
        else:
            with pytest.raises(JournalDamagedError, match="whole records follow"):
                after_reboot(data)


def test_a_flipped_bit_of_a_slot_costs_nothing() -> None:
    """With one slot damaged the other one counts, and the records after it are taken for what they are."""
    data = bytearray(FILE)
    data[1024:1036] = encode_slot(ENDS[2])
    for at in (512, 1024):
        for bit in range(96):
            bad = bytearray(data)
            bad[at + bit // 8] ^= 1 << bit % 8
            assert same_boot(bytes(bad)).facts == FACTS


def test_without_a_good_slot_only_a_reboot_is_an_excuse() -> None:
    """Both slots damaged: refused while the machine runs, of no account after a reboot."""
    data = FILE[:512] + bytes(1024) + FILE[1536:]
    with pytest.raises(JournalDamagedError, match="slots"):
        same_boot(data)
    assert after_reboot(data).facts == FACTS


def test_a_committed_length_inside_a_record_is_refused() -> None:
    """A slot that no append can have written is damage."""
    with pytest.raises(JournalDamagedError):
        same_boot(state(FIRST, SECOND, THIRD, committed=ENDS[2] - 5))


def test_zeros_at_the_end_are_cut_after_a_reboot() -> None:
    """Pages that never reached the disk read as zeros: the records before them are good."""
    data = FILE[: ENDS[1] + 20] + bytes(len(FILE) - ENDS[1] - 20)
    found = after_reboot(data)
    assert found.facts == list(FIRST)
    assert (found.end, found.missing) == (ENDS[1], len(FILE) - ENDS[1])


def test_a_hole_is_refused_after_a_reboot() -> None:
    """Zeros with whole records behind them are no torn end, and nothing is guessed."""
    data = FILE[: ENDS[1]] + bytes(ENDS[2] - ENDS[1]) + FILE[ENDS[2] :]
    with pytest.raises(JournalDamagedError, match=f"whole records follow from byte {ENDS[2]}"):
        after_reboot(data)


def test_a_header_that_is_damaged_is_refused_even_after_a_reboot() -> None:
    """The header is written and synced when nothing else is: no crash explains it."""
    data = FILE[:20] + b"\xff" + FILE[21:]
    for recovered in (same_boot, after_reboot):
        with pytest.raises(JournalDamagedError, match="header"):
            recovered(data)


def test_another_nodes_file_is_refused() -> None:
    """The text names both nodes and says what to do."""
    with pytest.raises(JournalForeignError, match=r"'node-1' and this is node 'node-2'; set the node's name back"):
        recover(FILE, "node-2", BOOT, "state")


@pytest.mark.parametrize("recovered", [same_boot, after_reboot])
def test_a_later_format_is_refused(recovered: Callable[[bytes], Recovered]) -> None:
    """A sound file of another format is not called damaged: the text says which ipamd to start."""
    page = bytearray(FILE)
    page[8:12] = (2).to_bytes(4, "little")
    page[508:512] = zlib.crc32(page[:508]).to_bytes(4, "little")
    with pytest.raises(JournalVersionError, match=r"version 2, and this ipamd knows version 1; start the ipamd that"):
        recovered(bytes(page))


@pytest.mark.parametrize("recovered", [same_boot, after_reboot])
def test_a_fact_of_a_later_version_is_refused_and_not_cut(recovered: Callable[[bytes], Recovered]) -> None:
    """Neither boot makes an unknown fact a damaged end: the text names its kind and the way out."""
    body = frame(FIRST) + record([{"t": "leased"}])
    data = encode_page(Header(NODE, BOOT, 0, HEADER_SIZE, HEADER_SIZE), HEADER_SIZE + len(body)) + body
    with pytest.raises(JournalVersionError, match=r"kind 'leased'.*; start the ipamd that wrote it"):
        recovered(data)
