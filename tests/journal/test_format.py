"""The state file's format: what is written is read, and what is not understood is said in words."""

import zlib

import msgspec
import pytest

from ipamd.journal.format import (
    HEADER_SIZE,
    Fault,
    Header,
    HeaderError,
    NewerHeaderError,
    Salvaged,
    committed_length,
    decode_header,
    describe,
    encode_page,
    encode_slot,
    frame,
    frames,
    next_record,
    salvage,
    scan,
)
from tests.journal.examples import EACH_KIND, NODE, assigned, state


def record(payload: object) -> bytes:
    """A sound record of anything, made without the module's own ``frame``."""
    body = msgspec.msgpack.encode(payload)
    head = len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little")
    return head + zlib.crc32(head).to_bytes(4, "little") + body


def test_every_kind_of_fact_is_read_as_it_was_written() -> None:
    """Records of one or many facts give the same facts in the same order."""
    found = scan(frame(EACH_KIND) + frame([assigned(2)]), 0)
    assert found.facts == [*EACH_KIND, assigned(2)]
    assert (found.records, found.problem) == (2, None)


def test_the_layout_is_the_documented_one() -> None:
    """A record made by hand from the format's description is what the module writes."""
    assert record(EACH_KIND) == frame(EACH_KIND)


def test_many_facts_are_many_records() -> None:
    """A snapshot is written in records small enough to let other threads run, and none is lost at their edges."""
    facts = [assigned(n) for n in range(200)]
    records = list(frames(iter(facts)))
    assert len(records) > 1
    assert scan(b"".join(records), 0).facts == facts


def test_a_field_of_a_later_version_is_passed_over() -> None:
    """A fact with a field that this version does not know is read without it."""
    later = msgspec.to_builtins(assigned(1)) | {"zone": "a"}
    later["attachment"] = [*later["attachment"], "extra"]
    assert scan(record([later]), 0).facts == [assigned(1)]


def test_a_kind_of_a_later_version_is_named() -> None:
    """A fact of an unknown kind stops the scan, and the cause names the kind."""
    found = scan(frame([assigned(1)]) + record([{"t": "leased", "until": 3}]), 0)
    assert found.facts == [assigned(1)]
    assert found.problem is not None
    assert found.problem.fault is Fault.UNKNOWN
    assert "kind 'leased'" in found.problem.cause


@pytest.mark.parametrize("payload", [7, [7], [{"t": "assigned"}], {"t": "assigned"}, [{}], [{"t": ["a"]}]])
def test_a_sound_record_of_something_else_is_no_damage(payload: object) -> None:
    """Right checksums around what is no list of facts: another version wrote it, and nothing is raised."""
    problem = scan(record(payload), 0).problem
    assert problem is not None
    assert problem.fault is Fault.UNKNOWN


def test_the_header_survives_the_longest_node_name() -> None:
    """A node name of 253 characters, Kubernetes' limit, fits in the header's sector; an absurd one is refused."""
    header = Header("n" * 253, "b" * 36, 2**63, 2**63, 2**63)
    page = encode_page(header, 4096)
    assert len(page) == HEADER_SIZE
    assert decode_header(page) == header
    with pytest.raises(ValueError, match="shorter name"):
        encode_page(Header("n" * 600, "", 0, 0, 0), 4096)


def test_a_flipped_bit_of_the_header_never_goes_unnoticed() -> None:
    """Each bit of the header's sector is under its checksum."""
    page = encode_page(Header(NODE, "boot", 1, 2, 3), 4096)
    for bit in range(512 * 8):
        bad = bytearray(page)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(HeaderError):
            decode_header(bytes(bad))


def test_a_later_format_is_told_from_damage() -> None:
    """A sound header of version 2 is recognised as such."""
    page = bytearray(encode_page(Header(NODE, "boot", 1, 2, 3), 4096))
    page[8:12] = (2).to_bytes(4, "little")
    page[508:512] = zlib.crc32(page[:508]).to_bytes(4, "little")
    with pytest.raises(NewerHeaderError, match="version 2"):
        decode_header(bytes(page))


def test_a_sound_header_with_other_contents_is_refused_in_words() -> None:
    """A header whose checksum is right and whose contents are not raises no decoder's error."""
    page = bytearray(encode_page(Header(NODE, "boot", 1, 2, 3), 4096))
    page[12:14] = (3).to_bytes(2, "little")
    page[508:512] = zlib.crc32(page[:508]).to_bytes(4, "little")
    with pytest.raises(HeaderError, match="cannot be understood"):
        decode_header(bytes(page))


def test_the_larger_good_slot_counts() -> None:
    """The slots may be in either order, and one that is torn is passed over."""
    page = bytearray(encode_page(Header(NODE, "boot", 1, 2, 3), 4096))
    for first, second, expected in ((5000, 6000, 6000), (6000, 5000, 6000)):
        page[512:524], page[1024:1036] = encode_slot(first), encode_slot(second)
        assert committed_length(bytes(page)) == expected
    page[512:520] = b"\xff" * 8
    assert committed_length(bytes(page)) == 5000
    page[1024:1036] = bytes(12)
    assert committed_length(bytes(page)) is None


def test_zeros_are_no_record() -> None:
    """A hole in the file, as a power cut may leave it, is neither a record nor a place to find one."""
    problem = scan(bytes(4096), 0).problem
    assert problem is not None
    assert problem.fault is Fault.DAMAGED
    assert next_record(bytes(4096), 0) is None


def test_the_next_record_is_found_at_any_offset() -> None:
    """What follows damage is found wherever it begins; a record that breaks off is none."""
    good = frame([assigned(1)])
    for gap in (1, 2, 3, 511):
        data = b"\x07" * gap + good
        assert next_record(data, 0) == gap
        assert next_record(data[:-1], 0) is None


def test_a_file_can_be_listed_whatever_its_state() -> None:
    """A listing gives the facts up to the first problem, and says what the problem is."""
    data = state((assigned(1),), (assigned(2), assigned(3)))
    sound = describe(data)
    assert sound.header is not None
    assert (sound.header.node, sound.committed, sound.records, sound.problem) == (NODE, len(data), 2, None)
    assert sound.facts == [assigned(1), assigned(2), assigned(3)]
    torn = describe(data[:-1])
    assert torn.facts == [assigned(1)]
    assert "breaks off" in (torn.problem or "")
    headless = describe(b"\0" * HEADER_SIZE + data[HEADER_SIZE:])
    assert headless.header is None
    assert headless.records == 2
    assert "state file" in (headless.problem or "")
    assert "0 bytes" in (describe(b"").problem or "")


@pytest.mark.parametrize("payload", [b"\x91\x81\xa1t\xa1\xff", b"\x91" * 5000], ids=["not UTF-8", "too deep"])
def test_a_sound_record_of_what_cannot_be_decoded_is_no_crash(payload: bytes) -> None:
    """Whatever lies under a right checksum, a scan ends with a problem: it never raises."""
    problem = scan(record(msgspec.Raw(payload)), 0).problem
    assert problem is not None
    assert problem.fault is Fault.UNKNOWN


def test_all_whole_records_of_a_damaged_file_can_be_salvaged() -> None:
    """Whichever record is damaged, the others' facts come, in order; a damaged header costs nothing."""
    records = [(assigned(number),) for number in range(5)]
    data = state(*records)
    every = [fact for (fact,) in records]
    assert salvage(data) == Salvaged(every, 0)
    assert salvage(bytes(HEADER_SIZE) + data[HEADER_SIZE:]) == Salvaged(every, None)
    offset = HEADER_SIZE
    for number, record in enumerate(records):
        size = len(frame(record))
        middle = offset + size // 2
        damaged = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        assert salvage(damaged) == Salvaged([fact for fact in every if fact.at != number], size)
        offset += size
    assert salvage(b"") == Salvaged([], None)
    assert salvage(data[:-1]) == Salvaged(every[:-1], size)
