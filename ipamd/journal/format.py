"""The state file's format, version 1: a header page, then records of facts. All integers are little-endian.

Header page (4096 bytes)::

    0     magic (8), version u32, length u16, ``Header`` (MessagePack), zeros, at 508 crc32 of bytes 0 to 508
    512   commit slot A: committed length of the file u64, crc32 of these 8 bytes
    1024  commit slot B

What ``Header`` says is written rarely and fits in one 512-byte sector, which disks write whole. The slots are
written in turn, one with each append, so that one of them is good whenever the process dies; the larger good one
counts. Later versions keep magic, version and the first checksum where they are, so that any ipamd can tell.

Records, from byte 4096 on: length of the payload u32, crc32 of the payload u32, crc32 of these 8 bytes u32, payload
(MessagePack: array of facts). One record is one append: its facts are there together or not at all. The second
checksum makes the length trustworthy: a record that runs past the end was cut off, not damaged.

Pure: no file, no clock. May import of ipamd only ``core``. Order of calls: none.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import islice
from typing import get_args

import msgspec
from msgspec import Struct

from ipamd.core.facts import Fact
from ipamd.core.records import MALFORMED

MAGIC = b"\x89IPAMD\r\n"
VERSION = 1
HEADER_SIZE = 4096
SLOTS = (512, 1024)
"""Offsets of the commit slots: sectors of their own, so that no slot shares the fate of the other or the header."""

_FRONT = struct.Struct("<8sIH")
_CHECK = struct.Struct("<I")
_CHECK_AT = 508
_LENGTH = struct.Struct("<Q")
SLOT_SIZE = _LENGTH.size + _CHECK.size
_RECORD = struct.Struct("<II")
_RECORD_HEAD = _RECORD.size + _CHECK.size
_CHUNK = 64

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Fact]).decode
_KINDS = tuple(kind.__struct_config__.tag for kind in get_args(Fact))  # no set: what is looked for may be anything


class Header(Struct, frozen=True, array_like=True):
    """What the file says of itself."""

    node: str
    boot: str
    """The kernel's boot id when the file was last opened for writing."""
    created: int
    """Unix time in ns."""
    snapshot: int
    """Where the last checkpoint ends, in bytes from the start of the file."""
    durable: int
    """How many bytes were known to be on the disk when the header was written: no power cut explains a loss there."""
    instance: str = ""
    """A random name that the file got when it was made, and keeps: a state file that was lost has a successor."""
    earlier: int = 0
    """Where the facts of earlier boots end, in bytes from the start of the file; 0: there are none."""


class Fault(Enum):
    """Why a scan stopped before the end."""

    TORN = "torn"
    """The last record is a prefix: what a write leaves that was interrupted."""
    DAMAGED = "damaged"
    """Something no interrupted write leaves."""
    UNKNOWN = "unknown"
    """A record whose checksums are right and that is no list of known facts: another version's."""


class Problem(Struct, frozen=True):
    """Where, in bytes from the start, and why a scan stopped; ``cause`` is for people."""

    offset: int
    fault: Fault
    cause: str


class Scan(Struct, frozen=True):
    """The facts of consecutive records, how many records, where the last one ends, and what stopped the scan."""

    facts: list[Fact]
    records: int
    end: int
    problem: Problem | None


class Contents(Struct, frozen=True):
    """All that can be read of a file: None for what cannot; ``problem`` is the first cause, for people."""

    header: Header | None
    committed: int | None
    facts: list[Fact]
    records: int
    problem: str | None


class Salvaged(Struct, frozen=True):
    """The facts of all whole records of a damaged file, in order: those in between are missing.

    ``unreadable`` is how many bytes hold no whole record or are gone; None: more may be, as no commit slot is good.
    """

    facts: list[Fact]
    unreadable: int | None


class HeaderError(Exception):
    """The header page is not one that this version wrote; the text says why."""


class NewerHeaderError(Exception):
    """The header page is sound and of another version; the text says which."""


def encode_page(header: Header, length: int) -> bytes:
    """The header page of a file of ``length`` bytes. Raises ValueError if the node's name is absurdly long."""
    text = _encode(header)
    front = _FRONT.pack(MAGIC, VERSION, len(text)) + text
    if len(front) > _CHECK_AT:
        raise ValueError(f"cannot write the state file's header: {len(text)} bytes; give the node a shorter name")
    page = bytearray(HEADER_SIZE)
    page[: len(front)] = front
    page[_CHECK_AT : _CHECK_AT + _CHECK.size] = _CHECK.pack(zlib.crc32(page[:_CHECK_AT]))
    for offset in SLOTS:
        page[offset : offset + SLOT_SIZE] = encode_slot(length)
    return bytes(page)


def encode_slot(length: int) -> bytes:
    """A commit slot."""
    text = _LENGTH.pack(length)
    return text + _CHECK.pack(zlib.crc32(text))


def decode_header(data: bytes) -> Header:
    """What the file says of itself; raises HeaderError and NewerHeaderError."""
    if len(data) < HEADER_SIZE:
        raise HeaderError(f"it has {len(data)} bytes, less than its header of {HEADER_SIZE}")
    magic, version, length = _FRONT.unpack_from(data)
    if magic != MAGIC:
        raise HeaderError("it does not begin like a state file")
    if _CHECK.unpack_from(data, _CHECK_AT)[0] != zlib.crc32(data[:_CHECK_AT]):
        raise HeaderError("the checksum of its header is wrong")
    if version != VERSION:
        raise NewerHeaderError(f"its format is version {version}, and this ipamd knows version {VERSION}")
    try:
        return msgspec.msgpack.decode(data[_FRONT.size : _FRONT.size + length], type=Header)
    except MALFORMED as error:
        raise HeaderError(f"its header cannot be understood ({error})") from None


def committed_length(data: bytes) -> int | None:
    """The larger good slot's length; None: neither is good."""
    lengths = [_LENGTH.unpack_from(data, at)[0] for at in SLOTS]
    good = [n for at, n in zip(SLOTS, lengths, strict=True) if data[at : at + SLOT_SIZE] == encode_slot(n)]
    return max(good, default=None)


def frame(facts: Sequence[Fact]) -> bytes:
    """One record."""
    payload = _encode(facts)
    head = _RECORD.pack(len(payload), zlib.crc32(payload))
    return head + _CHECK.pack(zlib.crc32(head)) + payload


def frames(facts: Iterable[Fact]) -> Iterator[bytes]:
    """Many facts as records of moderate size: whoever writes them lets other threads run between two of them."""
    rest = iter(facts)
    while chunk := list(islice(rest, _CHUNK)):
        yield frame(chunk)


def scan(data: bytes, start: int = HEADER_SIZE, stop: int | None = None) -> Scan:
    """Read the records between two offsets; never raises."""
    stop = len(data) if stop is None else stop
    facts: list[Fact] = []
    records, offset, view = 0, start, memoryview(data)
    problem = None
    while offset < stop and problem is None:
        body = _payload(view, offset, stop)
        if isinstance(body, Problem):
            problem = body
            continue
        try:
            facts += _decode(body)
        except MALFORMED as error:
            problem = Problem(offset, Fault.UNKNOWN, _unknown(body, error))
            continue
        records, offset = records + 1, offset + _RECORD_HEAD + len(body)
    return Scan(facts, records, offset, problem)


def describe(data: bytes) -> Contents:
    """What can be read of a file, also of a damaged one or one in use; never raises."""
    header, problem = None, None
    try:
        header = decode_header(data)
    except (HeaderError, NewerHeaderError) as error:
        problem = str(error)
    found = scan(data)
    if problem is None and found.problem is not None:
        problem = found.problem.cause
    committed = committed_length(data) if len(data) >= HEADER_SIZE else None
    return Contents(header, committed, found.facts, found.records, problem)


def salvage(data: bytes) -> Salvaged:
    """What a damaged file still says; never raises."""
    facts: list[Fact] = []
    committed = committed_length(data) if len(data) >= HEADER_SIZE else None
    unreadable = max(0, (committed or 0) - len(data))
    offset: int | None = HEADER_SIZE
    while offset is not None:
        found = scan(data, offset)
        facts += found.facts
        offset = None if found.problem is None else next_record(data, found.end)
        unreadable += (len(data) if offset is None else offset) - found.end
    return Salvaged(facts, None if committed is None else unreadable)


def next_record(data: bytes, offset: int) -> int | None:
    """Where the first whole record after ``offset`` begins, looking at every byte."""
    view = memoryview(data)
    for at in range(offset + 1, len(data) - _RECORD_HEAD):
        # The length alone rules out nearly all offsets, at a fraction of the cost of a checksum.
        if 0 < _CHECK.unpack_from(data, at)[0] <= len(data) - at - _RECORD_HEAD and not isinstance(
            _payload(view, at, len(data)), Problem
        ):
            return at
    return None


def _payload(view: memoryview, offset: int, stop: int) -> memoryview | Problem:
    if stop - offset < _RECORD_HEAD:
        return Problem(offset, Fault.TORN, f"the record at byte {offset} breaks off in its head")
    length, check = _RECORD.unpack_from(view, offset)
    start = offset + _RECORD_HEAD
    if zlib.crc32(view[offset : offset + _RECORD.size]) != _CHECK.unpack_from(view, start - _CHECK.size)[0]:
        return Problem(offset, Fault.DAMAGED, f"the checksum of the head of the record at byte {offset} is wrong")
    if length > stop - start:
        return Problem(
            offset, Fault.TORN, f"the record at byte {offset} breaks off {stop - start} of {length} bytes in"
        )
    body = view[start : start + length]
    if zlib.crc32(body) != check:
        return Problem(offset, Fault.DAMAGED, f"the checksum of the record at byte {offset} is wrong")
    return body


def _unknown(body: memoryview, error: Exception) -> str:
    try:
        for fact in msgspec.msgpack.decode(body, type=list[dict[str, object]]):
            if fact.get("t") not in _KINDS:
                return f"it holds a fact of the kind {fact.get('t')!r}, which this ipamd does not know"
    except MALFORMED:
        pass
    return f"it holds a fact that this ipamd does not understand ({error})"
