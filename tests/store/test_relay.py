"""The daemon's store for administrators: pages, bounds, and words for what is refused."""

import msgspec
import pytest

from ipamd.core.errors import Code, RefusedError
from ipamd.store import wire
from ipamd.store.base import Change, KeyRange, Outcome, Record
from ipamd.store.relay import Relay
from ipamd.store.wire import CommitRequest, Page, ReadRequest
from tests.memory_store import MemoryStore


class Served:
    """A relay over a store in memory."""

    def __init__(self) -> None:
        self.store: MemoryStore | None = MemoryStore()
        self.changed: list[tuple[list[str], int]] = []
        self._relay = Relay(lambda: self.store, lambda keys, uid: self.changed.append((list(keys), uid)))

    async def read(self, request: ReadRequest) -> Page:
        """A page."""
        return msgspec.msgpack.decode(await self._relay.read(msgspec.msgpack.encode(request)), type=Page)

    async def commit(self, *alternatives: tuple[Change, ...], window: KeyRange | None = None) -> Outcome:
        """A commit by user 7."""
        body = msgspec.msgpack.encode(CommitRequest(alternatives, window))
        return msgspec.msgpack.decode(await self._relay.commit(body, 7), type=Outcome)

    async def refused(self, request: bytes, *, commit: bool = False) -> tuple[Code, str]:
        """How a body is refused."""
        with pytest.raises(RefusedError) as caught:
            await (self._relay.commit(request, 7) if commit else self._relay.read(request))
        return caught.value.code, caught.value.msg


@pytest.fixture
def served() -> Served:
    """See Served."""
    return Served()


async def test_records_by_key(served: Served) -> None:
    """Those that exist, in the order asked for, with the store's revision."""
    assert served.store
    served.store.put("/calico/a", b"1")
    served.store.put("/calico/b", b"2")
    page = await served.read(ReadRequest(("/calico/b", "/calico/none", "/calico/a")))
    assert sorted(record.key for record in page.records) == ["/calico/a", "/calico/b"]
    assert (page.revision, page.next) == (3, "")
    assert (await served.read(ReadRequest())).revision == 3


async def test_a_range_comes_in_pages(served: Served) -> None:
    """A page has at most KEYS records, and ends after BYTES of values; the next begins where it ended."""
    assert served.store
    for number in range(wire.KEYS + 50):
        served.store.put(f"/calico/{number:04}", b"x" * 10)
    first = await served.read(ReadRequest(window=KeyRange("/calico/", "/calico0", 10_000)))
    assert len(first.records) == wire.KEYS
    second = await served.read(ReadRequest(window=KeyRange(first.next, "/calico0", 10_000)))
    assert [record.key for record in second.records] == [f"/calico/{n:04}" for n in range(wire.KEYS, wire.KEYS + 50)]
    assert second.next == ""
    for number in range(150):
        served.store.put(f"/calico/{number:04}", b"x" * (wire.BYTES // 50))
    page = await served.read(ReadRequest(window=KeyRange("/calico/", "/calico0", 10_000)))
    assert len(page.records) == 100
    assert page.next == "/calico/0100"


async def test_a_limit_below_a_page(served: Served) -> None:
    """A window with a limit has no next page, as in the store's own protocol; names only costs no values."""
    assert served.store
    for name in "abc":
        served.store.put(f"/calico/{name}", b"")
    page = await served.read(ReadRequest(window=KeyRange("/calico/", "/calico0", 2), names_only=True))
    assert (page.names, page.records, page.next) == (("/calico/a", "/calico/b"), (), "")
    assert served.store.calls["read"] == 0


async def test_a_commit_is_the_stores(served: Served) -> None:
    """What the store's commit says is the answer; what was changed, and by whom, is told to the daemon."""
    assert served.store
    made = await served.commit((Change("/calico/a", b"1", 0),))
    assert made == Outcome(0, 2, {})
    window = KeyRange("/calico/", "/calico0", 5)
    lost = await served.commit((Change("/calico/a", b"2", 0),), (Change("/calico/b", None, 5),), window=window)
    assert lost == Outcome(None, 2, {"/calico/a": Record("/calico/a", b"1", 2)}, ("/calico/a",))
    assert served.changed == [(["/calico/a"], 7)]


def _read(**fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


REFUSED = {
    b"\xc1": (Code.UNDECODABLE, "cannot read the request: "),
    b"\x81\xa1x" + b"\x91" * 5000 + b"\xc0": (Code.UNDECODABLE, "cannot read the request: maximum recursion depth"),
    _read(keys=["/calico/a"] * (wire.KEYS + 1)): (Code.INVALID_CONFIGURATION, "cannot serve 501 keys at once: 500 are"),
    _read(keys=["/etc/passwd"]): (Code.INVALID_CONFIGURATION, "cannot serve the key '/etc/passwd': only keys below"),
    _read(window={"start": "/", "end": "0", "limit": 1}): (
        Code.INVALID_CONFIGURATION,
        "cannot serve the key '/': only",
    ),
    _read(window={"start": "/calico/", "end": "/d", "limit": 1}): (Code.INVALID_CONFIGURATION, "cannot serve the key"),
    _read(window={"start": "/calico/", "end": "/calico/b", "limit": 0}): (
        Code.INVALID_CONFIGURATION,
        "cannot serve a range of no keys",
    ),
    _read(window={"start": "/calico/", "end": "/calico/b", "limit": 1 << 63}): (
        Code.INVALID_CONFIGURATION,
        "cannot serve the number 9223372036854775808: limits and revisions are smaller than 2^63",
    ),
}


@pytest.mark.parametrize("body", REFUSED)
async def test_what_is_out_of_bounds(served: Served, body: bytes) -> None:
    """Too many keys, keys of others, nonsense: each is refused before the store is asked."""
    code, told = await served.refused(body)
    assert (code, told[: len(REFUSED[body][1])]) == REFUSED[body]
    assert served.store
    assert not any(served.store.calls.values())


async def test_a_commit_out_of_bounds(served: Served) -> None:
    """The same holds for what is to be written, and nothing at all is no commit."""
    stray = CommitRequest(((Change("/registry/pods/x", b"", 0),),))
    assert (await served.refused(msgspec.msgpack.encode(stray), commit=True))[0] == Code.INVALID_CONFIGURATION
    for number in (Change("/calico/a", b"", 1 << 63), Change("/calico/a", None, (1 << 64) - 1)):
        assert await served.refused(msgspec.msgpack.encode(CommitRequest(((number,),))), commit=True) == (
            Code.INVALID_CONFIGURATION,
            f"cannot serve the number {number.expected}: limits and revisions are smaller than 2^63",
        )
    for empty in (CommitRequest(()), CommitRequest(((),))):
        assert await served.refused(msgspec.msgpack.encode(empty), commit=True) == (
            Code.UNDECODABLE,
            "cannot commit nothing; give at least one change",
        )


async def test_while_the_store_is_away(served: Served) -> None:
    """The refusal is TRY_AGAIN_LATER with the store's words, and so before the daemon has opened it."""
    assert served.store
    served.store.away = True
    assert await served.refused(msgspec.msgpack.encode(ReadRequest(("/calico/a",)))) == (
        Code.TRY_AGAIN_LATER,
        "cannot read the store: memory: away",
    )
    served.store = None
    changes = msgspec.msgpack.encode(CommitRequest(((Change("/calico/a", b"", 0),),)))
    assert await served.refused(changes, commit=True) == (
        Code.TRY_AGAIN_LATER,
        "cannot commit to the store: it is not open yet; try again in a moment",
    )
