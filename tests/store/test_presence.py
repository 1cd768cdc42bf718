"""Two hosts with one node's name: the one that comes second yields; a restart or a reboot is no second host."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Fact
from ipamd.store.base import StoreRefusedError
from ipamd.store.presence import PAUSE, SOON, TTL, Host, Presence
from tests.memory_store import MemoryStore
from tests.nodes import Node, add_request, pool_record

KEY = keys.DAEMONS + "n1"
FIRST = Host("alpha", "4a", "boot-1", "aaaaaaaa", "net:[1]")
SECOND = Host("beta", "7c", "boot-2", "bbbbbbbb", "net:[1]")


@pytest.fixture
def store() -> MemoryStore:
    """A store with one pool."""
    made = MemoryStore(delay=0.001)
    made.put(*pool_record("p", "10.0.0.0/24"))
    return made


class Server:
    """What a host runs for node ``n1``: on exit of ``serving`` it is dead at once, and says nothing any more."""

    def __init__(self, host: Host, store: MemoryStore, facts: list[Fact] | None = None) -> None:
        self.node = Node("n1", store, instance=host.instance, facts=facts or [])
        self.presence = Presence(self.node.ledger, store, host, self._changed, self._report)
        self.changes: list[str] = []
        self.reports: list[str] = []

    def _report(self, event: str, values: dict[str, str]) -> None:
        self.reports.append(f"{event}: {values['error']}")

    def _changed(self) -> None:
        self.changes.append(self.node.ledger.rival)
        self.node.waiting.serve()
        self.node.writer.wake(hurry=True)

    @property
    def rival(self) -> str:
        """The other host, if this one yields."""
        return self.node.ledger.rival


@asynccontextmanager
async def serving(host: Host, store: MemoryStore, *, look: bool = True) -> AsyncIterator[Server]:
    """Run a daemon on a host."""
    server = Server(host, store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.presence.run)
        async with server.node.running(look=look):
            await trio.sleep(SOON + 0.1)
            yield server
        nursery.cancel_scope.cancel()


def recorded(store: MemoryStore) -> Host | None:
    """Who serves the node by the store."""
    store.expire()
    return msgspec.json.decode(store.records[KEY].value, type=Host) if KEY in store.records else None


async def test_the_second_host_yields(autojump_clock: MockClock, store: MemoryStore) -> None:
    """Its ADDs are refused with a word on both hosts and on what to do; the first serves on."""
    async with serving(FIRST, store) as first, serving(SECOND, store) as second:
        with pytest.raises(RefusedError) as refused:
            await second.node.add(add_request("a"))
        assert (refused.value.code, refused.value.msg) == (
            Code.TRY_AGAIN_LATER,
            (
                "cannot assign an address to default/pod-a: host alpha (machine id 4a, state file aaaaaaaa) serves node "
                "n1, too, and was there first; give one of the two hosts another node name, or stop ipamd on it"
            ),
        )
        assert (await first.node.add(add_request("b"))).places
        await trio.sleep(10 * TTL)
        assert recorded(store) == FIRST
        assert (first.changes, first.rival) == ([], "")
        assert second.changes == [str(FIRST)]


@pytest.mark.parametrize(
    "host",
    [
        FIRST,
        replace(FIRST, boot="boot-9"),
        replace(FIRST, instance="cccccccc"),
        replace(FIRST, boot="boot-9", instance="cccccccc"),
        replace(FIRST, boot="boot-9", machine=""),
        replace(FIRST, network="net:[2]"),
        replace(FIRST, boot="boot-9", network="net:[2]"),
    ],
    ids=["restarted", "booted", "state lost", "both", "no machine id", "another namespace", "booted into another"],
)
async def test_the_same_host_takes_over_at_once(autojump_clock: MockClock, store: MemoryStore, host: Host) -> None:
    """After ``kill -9``, a reboot, the loss of the state: its own record is no other's."""
    async with serving(FIRST, store):
        pass
    async with serving(host, store) as again:
        assert recorded(store) == host
        assert again.changes == []
        assert (await again.node.add(add_request("a"))).places
        await trio.sleep(2 * TTL)
        assert recorded(store) == host


async def test_two_daemons_in_two_network_namespaces_of_one_host(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The lock of the one does not see the other, so the second yields; as it does if its own state was lost there."""
    async with serving(FIRST, store) as first:
        async with serving(replace(FIRST, instance="cccccccc", network="net:[2]"), store) as second:
            assert second.rival == str(FIRST)
            await trio.sleep(10 * TTL)
            assert (first.changes, second.changes) == ([], [str(FIRST)])
        async with serving(replace(FIRST, network=""), store) as older:
            assert not older.rival


async def test_a_host_that_died_leaves_it_to_the_next(autojump_clock: MockClock, store: MemoryStore) -> None:
    """After the time of its record, without a restart of the one that waited."""
    async with serving(FIRST, store):
        pass
    async with serving(SECOND, store) as second:
        assert second.rival == str(FIRST)
        await trio.sleep(TTL + 5)
        assert recorded(store) == SECOND
        assert second.changes == [str(FIRST), ""]
        assert (await second.node.add(add_request("a"))).places


async def test_one_that_stops_in_order_leaves_it_at_once(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The other assigns within a second or two."""
    async with serving(FIRST, store) as first, serving(SECOND, store) as second:
        await first.presence.release()
        await trio.sleep(2)
        assert recorded(store) == SECOND
        assert second.rival == ""


async def test_nobody_yields_while_the_store_is_away(autojump_clock: MockClock, store: MemoryStore) -> None:
    """What is in reserve is handed out; when the store answers, the one whose record is not there yields."""
    async with serving(SECOND, store) as earlier:
        while not earlier.node.ledger.available("p"):
            await trio.sleep(0.1)
        facts = list(earlier.node.ledger.checkpoint())
    await trio.sleep(TTL)
    async with serving(FIRST, store):
        store.away = True
        server = Server(SECOND, store, facts)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.presence.run)
            await trio.sleep(5)
            assert server.rival == ""
            assert (await server.node.add(add_request("a"))).places
            store.away = False
            server.node.ledger.synced = True  # it was read
            await trio.sleep(2)
            assert server.rival == str(FIRST)
            nursery.cancel_scope.cancel()


async def test_one_that_was_cut_off_for_long_yields_to_who_came_meanwhile(
    autojump_clock: MockClock, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record was over, another host took the node: it learns so with its next word."""
    async with serving(FIRST, store) as first:
        with monkeypatch.context() as cut:
            cut.setattr(first.presence._hold, "_store", gone := MemoryStore())
            gone.away = True
            await trio.sleep(TTL + PAUSE)
            async with serving(SECOND, store) as second:
                assert recorded(store) == SECOND
                cut.undo()
                await trio.sleep(PAUSE + 5)
                assert first.rival == str(SECOND)
                assert second.rival == ""


async def test_of_two_copies_of_one_machine_the_older_yields(autojump_clock: MockClock, store: MemoryStore) -> None:
    """State file, machine id and all are the same: only that the older one lives tells that it is not the same host."""
    copy = replace(FIRST, boot="boot-9")
    async with serving(FIRST, store) as first, serving(copy, store) as second:
        await trio.sleep(10 * TTL)
        assert recorded(store) == copy
        assert first.rival == str(copy)
        assert (len(first.changes), second.changes) == (1, [])


@pytest.mark.parametrize("value", [b"nonsense", b"{}", b'{"host":1}'])
async def test_a_record_that_says_nothing_is_written_anew(
    autojump_clock: MockClock, store: MemoryStore, value: bytes
) -> None:
    """Else somebody's mistake would keep a node from its addresses for ever."""
    store.put(KEY, value)
    async with serving(FIRST, store) as first:
        assert recorded(store) == FIRST
        assert first.changes == []


async def test_a_record_that_somebody_deleted_is_written_again(autojump_clock: MockClock, store: MemoryStore) -> None:
    """With the next word."""
    async with serving(FIRST, store) as first:
        store.put(KEY, None)
        await trio.sleep(PAUSE + 1)
        assert recorded(store) == FIRST
        assert first.changes == []


async def test_one_that_yields_frees_nothing_of_the_others(autojump_clock: MockClock, store: MemoryStore) -> None:
    """The reserve that an unknown state file has is the other host's, and no lost one's, however long it stays so."""
    async with serving(FIRST, store) as first, serving(SECOND, store) as second:
        await trio.sleep(60)
        handle = store.records[keys.handle_key(first.node.ledger.reserve_handle)]
        await trio.sleep(3 * 3600)
        assert store.records[handle.key] == handle
        assert any(block.stranded for block in second.node.ledger.blocks.values())
        assert second.rival == str(FIRST)


async def test_one_that_yields_claims_nothing(autojump_clock: MockClock, store: MemoryStore) -> None:
    """It would not hand it out; when the other is gone it does."""
    node = Node("n1", store)
    node.ledger.rival = "the other"
    async with node.running():
        await trio.sleep(60)
        assert not any(key.startswith(keys.IPAM) for key in store.records)
        node.ledger.rival = ""
        await trio.sleep(10)
        assert node.ledger.available("p")


async def test_a_store_that_refuses_is_told_of_once(
    autojump_clock: MockClock, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node serves all the same, and asks no more often than it would say a word."""
    asked = []

    async def refuse(_ttl: float) -> None:
        asked.append(trio.current_time())
        raise StoreRefusedError("permission denied")

    monkeypatch.setattr(store, "grant", refuse)
    async with serving(FIRST, store) as first:
        assert (await first.node.add(add_request("a"))).places
        await trio.sleep(10 * PAUSE)
        assert first.reports == ["cannot say to the cluster that this host serves the node: permission denied"]
        assert len(asked) <= 11
