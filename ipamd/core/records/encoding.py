"""Bytes as Go's programs write them: JSON, times; and what is raised for bytes that are no such record."""

from datetime import UTC, datetime
from functools import lru_cache

import msgspec
from msgspec import Raw


class RecordError(ValueError):
    """A record's bytes do not have the form of its kind; the text says what is wrong."""


MALFORMED = (ValueError, RecursionError)
"""What decoding bytes that are no such record raises: msgspec's errors are ValueErrors, too deep nesting is not."""


def go_json(value: object) -> bytes:
    """Encode as Go's ``encoding/json`` does: compact, with HTML's special characters and U+2028/9 escaped."""
    text = msgspec.json.encode(value)
    for character, escaped in _GO_ESCAPES:
        if character in text:
            text = text.replace(character, escaped)
    return text


_GO_ESCAPES = (
    (b"&", b"\\u0026"),
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)


def go_time(at: int) -> str:
    """Unix nanoseconds in the form of Go's ``time.Time.String()`` in UTC, as in ``timestamp`` attributes."""
    seconds, nanoseconds = divmod(at, 1_000_000_000)
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return f"{_second(seconds)}{fraction} +0000 UTC"


@lru_cache(maxsize=64)  # many pods of a burst have theirs in common
def _second(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"


def parse_go_time(text: str) -> int | None:
    """Unix nanoseconds, in seconds' resolution, of what ``go_time`` writes; None if it is no such time."""
    seconds, zone = text[:19], text[-10:]
    return parse_rfc3339(f"{seconds}+00:00") if zone == " +0000 UTC" else None


def rfc3339(at: int) -> str:
    """Unix nanoseconds in seconds' resolution, as in ``affinity_claim_time``."""
    return f"{datetime.fromtimestamp(at // 1_000_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def parse_rfc3339(text: str) -> int | None:
    """Unix nanoseconds of a time such as ``2026-11-20T23:47:55Z``; None if it is no such time."""
    try:
        return int(datetime.fromisoformat(text).timestamp()) * 1_000_000_000
    except (ValueError, OverflowError):
        return None


def raw_fields(value: bytes | None) -> dict[str, Raw]:
    """The fields of a JSON object, each as it stands; none if there is no record. Raises RecordError."""
    if not value:
        return {}
    try:
        return msgspec.json.decode(value, type=dict[str, Raw])
    except MALFORMED as error:
        raise RecordError(f"not a JSON object: {error}") from error
