"""Edits of records, and what is said of bytes that are no record."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.pool import decode_pool
from ipamd.core.records import (
    BlockRecord,
    HandleRecord,
    Owner,
    RecordError,
    affinity_record,
    affinity_state,
    attribute,
    datastore_locked,
    decode_config,
    go_json,
    go_time,
    new_block,
    reserved_cidrs,
    rfc3339,
)
from tests.core.captured import captured

SECOND = 1_000_000_000


def block(value: bytes) -> None:
    """Read and write a block."""
    record = BlockRecord(value)
    record.deleted  # noqa: B018 - whatever can be asked of a record
    record.encode()


def affinity(value: bytes) -> None:
    """Read and write an affinity."""
    affinity_record(affinity_state(value) or "confirmed", value)


READERS: dict[keys.Kind, Callable[[bytes], object]] = {
    keys.Kind.BLOCK: block,
    keys.Kind.HANDLE: lambda value: HandleRecord(value).encode(),
    keys.Kind.AFFINITY: affinity,
    keys.Kind.POOL: decode_pool,
    keys.Kind.RESERVATION: reserved_cidrs,
    keys.Kind.CONFIG: decode_config,
    keys.Kind.CLUSTER_INFORMATION: datastore_locked,
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[keys.Kind, bytes]:
    """A captured record with some of its values, wherever they are, replaced by any JSON."""
    kind = draw(st.sampled_from(sorted(READERS, key=str)))
    _name, _key, value = draw(st.sampled_from(captured(kind)))
    tree = json.loads(value)
    for _ in range(draw(st.integers(1, 3))):
        node, parent, key = tree, None, None
        while isinstance(node, dict | list) and node and (parent is None or draw(st.booleans())):
            parent = node
            key = draw(st.sampled_from(sorted(node))) if isinstance(node, dict) else draw(st.integers(0, len(node) - 1))
            node = node[key]
        if parent is not None:
            parent[key] = draw(JSON)
    return kind, json.dumps(tree).encode()


def refused_or_read(kind: keys.Kind, value: bytes) -> None:
    """Reading gives a value, or RecordError in words."""
    try:
        READERS[kind](value)
    except RecordError as error:
        words = str(error)
    else:
        return
    assert len(words) > 10


@settings(max_examples=400, deadline=None)
@given(mutated())
def test_a_record_with_wrong_values_is_read_or_refused_in_words(case: tuple[keys.Kind, bytes]) -> None:
    """Whatever JSON a record holds, reading it gives a value or RecordError, never another error."""
    refused_or_read(*case)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(READERS, key=str)), st.data())
def test_damaged_bytes_are_refused_in_words(kind: keys.Kind, data: st.DataObject) -> None:
    """Bytes flipped, cut out or put in: RecordError or a value, never another error."""
    _name, _key, value = data.draw(st.sampled_from(captured(kind)))
    start = data.draw(st.integers(0, len(value)))
    end = data.draw(st.integers(start, min(len(value), start + 5)))
    refused_or_read(kind, value[:start] + data.draw(st.binary(max_size=4)) + value[end:])


@pytest.mark.parametrize("kind", sorted(READERS, key=str))
def test_a_bottomless_record_is_refused(kind: keys.Kind) -> None:
    """Nesting without end, in a known field or an unknown one, is refused like any other damage."""
    for value in (b"[" * 100_000, b'{"x":' * 50_000, b'{"x":' + b"[" * 100_000, b'{"spec":' + b'{"x":' * 50_000):
        with pytest.raises(RecordError, match=r"^\S+ .*"):
            READERS[kind](value)


BLOCK = (
    '{"cidr":"10.0.0.0/30","affinity":"host:n","allocations":[0,null,null,null],"unallocated":[1,2,3],'
    '"attributes":[{"handle_id":"h"}],"sequenceNumber":1,"sequenceNumberForAllocation":{},"deleted":false}'
)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"10.0.0.0/30"', '"10.0.0.1/30"', "not an allocation block: 10.0.0.1/30 has host bits set"),
        ('"10.0.0.0/30"', '"10.0.0.0"', "not an allocation block: '10.0.0.0' is not a CIDR: it has no prefix length"),
        ('"10.0.0.0/30"', '"10.0.0.0/29"', "block 10.0.0.0/29 has 4 allocations, not 8"),
        ("[1,2,3]", "[1,2]", "block 10.0.0.0/30: unallocated and allocations do not agree"),
        ("[1,2,3]", "[1,2,2]", "block 10.0.0.0/30: unallocated and allocations do not agree"),
        ("[1,2,3]", "[0,1,2,3]", "block 10.0.0.0/30: unallocated and allocations do not agree"),
        ("[0,null", "[1,null", "block 10.0.0.0/30: an allocation points at an attribute that does not exist"),
        ("[0,null", "[-1,null", "block 10.0.0.0/30: an allocation points at an attribute that does not exist"),
        ('"h"', "5", "not an allocation block: Expected `str | null`, got `int`"),
        (',"attributes"', ',"Attributes"', "not an allocation block: Object missing required field `attributes`"),
    ],
)
def test_what_is_wrong_with_a_block_is_said(old: str, new: str, says: str) -> None:
    """A block's error names the block, if it can, and the field that does not fit."""
    BlockRecord(BLOCK.encode())
    with pytest.raises(RecordError) as refused:
        BlockRecord(BLOCK.replace(old, new, 1).encode())
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a&b", rb'"a\u0026b"'),
        ("<script>", rb'"\u003cscript\u003e"'),
        ("\u2028\u2029", rb'"\u2028\u2029"'),
        ('"\\', rb'"\"\\"'),
        ("ä€😀", '"ä€😀"'.encode()),
        ("\n\r\t", rb'"\n\r\t"'),
    ],
)
def test_strings_are_escaped_as_go_escapes_them(text: str, expected: bytes) -> None:
    """HTML's special characters and the two line separators are written as escapes, other text as it is."""
    assert go_json(text) == expected


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (1_785_578_400 * SECOND + 123_456_789, "2026-08-01 10:00:00.123456789 +0000 UTC"),
        (1_785_578_400 * SECOND + 120_000_000, "2026-08-01 10:00:00.12 +0000 UTC"),
        (1_785_578_400 * SECOND + 1, "2026-08-01 10:00:00.000000001 +0000 UTC"),
        (1_785_578_400 * SECOND, "2026-08-01 10:00:00 +0000 UTC"),
        (0, "1970-01-01 00:00:00 +0000 UTC"),
    ],
)
def test_times_have_gos_form(at: int, text: str) -> None:
    """A timestamp has the form of Go's time.String() in UTC: a fraction without trailing zeros, none if it is zero."""
    assert go_time(at) == text


def test_the_claim_time_has_seconds() -> None:
    """A claim's time is RFC 3339 in UTC, without a fraction."""
    assert rfc3339(1_785_578_400 * SECOND + 999_999_999) == "2026-08-01T10:00:00Z"


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (b"", "confirmed"),
        (b"{}", "confirmed"),
        (b'{"state":""}', "confirmed"),
        (b'{"state":"pending","deleted":false}', "pending"),
        (b'{"state":"pendingDeletion","deleted":false}', "pendingDeletion"),
        (b'{"state":"confirmed","deleted":true}', ""),
    ],
)
def test_old_affinities_are_confirmed_ones(value: bytes, state: str) -> None:
    """An affinity without a value or a state is confirmed; a softly deleted one is absent."""
    assert affinity_state(value) == state


@pytest.mark.parametrize("deleted", [True, False])
def test_a_softly_deleted_block_says_so(deleted: bool) -> None:
    """It is to be treated as absent."""
    value = new_block(parse_cidr("10.0.0.0/30"), "host:n1", 1).encode()
    assert (
        BlockRecord(value.replace(b'"deleted":false', f'"deleted":{json.dumps(deleted)}'.encode())).deleted == deleted
    )


def test_a_handle_that_holds_nothing_is_deleted() -> None:
    """A handle without a block has no record; a softly deleted one holds nothing."""
    handle = HandleRecord(b'{"block":{"10.0.0.0/30":1},"deleted":false}')
    handle.set("10.0.0.0/30", 0)
    handle.set("10.0.0.4/30", 0)
    assert handle.encode() is None
    assert HandleRecord(None).encode() is None
    assert HandleRecord(b'{"block":{"10.0.0.0/30":1},"deleted":true}').blocks == {}


def test_the_blocks_of_a_handle_are_sorted_as_strings() -> None:
    """A handle's blocks are written in the order of their texts, as Go sorts a map."""
    handle = HandleRecord(None)
    for cidr in ("fd00::/122", "10.0.0.64/26", "10.0.0.128/26", "9.0.0.0/26"):
        handle.set(cidr, 1)
    assert list(json.loads(handle.encode() or b"")["block"]) == [
        "10.0.0.128/26",
        "10.0.0.64/26",
        "9.0.0.0/26",
        "fd00::/122",
    ]


def test_a_handle_is_cut_at_its_carriage_return() -> None:
    """A stored handle id may carry an annotation after a carriage return, which is no part of it."""
    record = BlockRecord(BLOCK.replace('"h"', '"h\\r{}"').encode())
    owner = record.owner(0)
    assert owner is not None
    assert (owner.handle, record.count("h")) == ("h", 1)


def test_taking_and_freeing_keep_order_sequences_and_attributes() -> None:
    """Ordinals leave the head and return to the tail; unused attributes go, the indexes close up."""
    record = new_block(parse_cidr("10.0.0.0/29"), "host:n", 100)
    record.take({0, 1}, attribute("a", {"node": "n"}))
    record.take({2}, attribute("b", {"node": "n"}))
    record.encode()
    record.free(0)
    record.free(1)
    stored = json.loads(record.encode())
    assert stored["allocations"] == [None, None, 0, None, None, None, None, None]
    assert stored["unallocated"] == [3, 4, 5, 6, 7, 0, 1]
    assert [each["handle_id"] for each in stored["attributes"]] == ["b"]
    assert stored["sequenceNumberForAllocation"] == {"2": 100}
    assert stored["sequenceNumber"] == 102


def test_equal_attributes_are_shared() -> None:
    """Two ordinals of one owner point at one attribute."""
    record = new_block(parse_cidr("10.0.0.0/30"), "host:n", 100)
    record.take({0}, attribute("a", {"pod": "p", "node": "n"}))
    record.take({3}, attribute("a", {"node": "n", "pod": "p"}))
    assert json.loads(record.encode())["attributes"] == [{"handle_id": "a", "secondary": {"node": "n", "pod": "p"}}]


def test_an_owner_is_assigned_what_its_attribute_would_give() -> None:
    """To assign an ordinal to an owner writes what giving it the owner's attribute does, be it free or another's."""
    said = {"pod": "p", "node": "n"}
    given, assigned = (new_block(parse_cidr("10.0.0.0/29"), "host:n", 100) for _ in range(2))
    for record in (given, assigned):
        record.take({1, 2}, attribute("reserve", {"node": "n"}))
    given.take({0}, attribute("a", said))
    given.give(1, attribute("a", said))
    given.take({3}, attribute("a", {**said, "pod": "q"}))
    for ordinal in (0, 1):
        assigned.assign(ordinal, Owner("a", "n", said))
    assigned.assign(3, Owner("a", "n", {**said, "pod": "q"}))
    assert assigned.counts() == given.counts() == {"a": 3, "reserve": 1}
    assert assigned.encode() == given.encode()


def test_an_attribute_that_says_more_is_not_shared() -> None:
    """An ordinal of the same owner whose attribute has a field unknown here keeps it for itself."""
    record = new_block(parse_cidr("10.0.0.0/30"), "host:n", 100)
    record.take({0}, Raw(b'{"handle_id":"a","secondary":{"node":"n"},"tomorrow":1}'))
    record.assign(1, Owner("a", "n", {"node": "n"}))
    record.assign(2, Owner("a", "n", {"node": "n"}))
    stored = json.loads(record.encode())
    assert stored["allocations"][:3] == [0, 1, 1]
    assert ["tomorrow" in each for each in stored["attributes"]] == [True, False]


def test_sequences_are_sorted_as_strings() -> None:
    """The map of sequence numbers is written in the order of its keys as strings: 10 before 2."""
    record = new_block(parse_cidr("10.0.0.0/28"), "host:n", 100)
    record.take({2, 10, 1}, attribute("a", {}))
    assert list(json.loads(record.encode())["sequenceNumberForAllocation"]) == ["1", "10", "2"]


def test_a_block_without_affinity_has_no_claim_time() -> None:
    """A block that lost its affinity is written with a null affinity and without the time of the claim."""
    record = new_block(parse_cidr("10.0.0.0/30"), "host:n", 100)
    record.affinity = None
    stored = json.loads(record.encode())
    assert stored["affinity"] is None
    assert "affinity_claim_time" not in stored


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 15), st.sampled_from("abc")), max_size=40),
)
def test_any_history_of_a_block_reads_back(history: list[tuple[bool, int, str]]) -> None:
    """After any history of takes and frees a block's bytes are a block with the same owners, oldest free first.

    A copy is written as the bytes would be, whatever befell another copy.
    """
    record = new_block(parse_cidr("10.0.0.0/28"), "host:n", 100)
    owners: dict[int, str] = {}
    line = list(range(16))
    for take, ordinal, handle in history:
        if take and ordinal in line:
            record.take({ordinal}, attribute(handle, {}))
            line.remove(ordinal)
            owners[ordinal] = handle
        elif not take and ordinal in owners:
            record.free(ordinal)
            del owners[ordinal]
            line.append(ordinal)
        value = record.encode()
        record = BlockRecord(value)
        assert record.unallocated == line
        assert {o: owner.handle for o in range(16) if (owner := record.owner(o))} == owners
        assert set(record.sequences) == {str(ordinal) for ordinal in owners}
        assert len(record.attributes) == len(set(owners.values()))
        edited = record.copy()
        for each in owners:
            edited.free(each)
        edited.take({0}, attribute("d", {}))
        edited.revive("host:other")
        assert record.copy().encode() == BlockRecord(value).encode()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            b'{"strict_affinity":"yes"}',
            "not an IPAM configuration: Expected `bool`, got `str` - at `$.strict_affinity`",
        ),
        (b"", "not an IPAM configuration: Input data was truncated"),
    ],
)
def test_a_bad_configuration_is_refused(value: bytes, says: str) -> None:
    """A configuration that cannot be understood says which field."""
    with pytest.raises(RecordError) as refused:
        decode_config(value)
    assert str(refused.value) == says


def test_the_configurations_defaults_depend_on_the_record() -> None:
    """Without a record blocks are claimed automatically; in a record an absent boolean is false. 0 blocks means 20."""
    assert decode_config(None).auto_allocate_blocks
    assert not decode_config(b"{}").auto_allocate_blocks
    assert decode_config(None).block_limit == 20
    assert decode_config(b'{"maxBlocksPerHost":3}').block_limit == 3


def test_an_absent_cluster_information_locks_nothing() -> None:
    """Only an explicit false locks the datastore."""
    assert not datastore_locked(None)
    assert not datastore_locked(b'{"spec":{}}')
    assert datastore_locked(b'{"spec":{"datastoreReady":false}}')
