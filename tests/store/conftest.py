"""The stores under test: one etcd for the whole session, tests kept apart by key prefixes."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from ipamd.store.base import Change, Store
from ipamd.store.embedded import EmbeddedStore
from ipamd.store.etcd import EtcdSettings, EtcdStore
from tests.etcd_process import EtcdProcess
from tests.memory_store import MemoryStore
from tests.scale.store import IndexedStore

_numbers = itertools.count()


class Subject:
    """A store for the contract suite: ``root`` begins all keys of the test, ``forget`` compacts up to a revision."""

    def __init__(self, store: Store, forget: Callable[[int], Awaitable[None]]) -> None:
        self.store = store
        self.root = f"/contract/{next(_numbers)}/"
        self.forget = forget


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """A running etcd that all tests share: whoever stops it starts it again."""
    with EtcdProcess(tmp_path_factory.mktemp("etcd")) as process:
        yield process


def of_etcd(process: EtcdProcess, _: Path) -> Subject:
    """The shared etcd, compacted by hand."""

    async def forget(revision: int) -> None:
        process.compact(revision)

    return Subject(EtcdStore(EtcdSettings(endpoints=(process.endpoint,))), forget)


def of_embedded(_: EtcdProcess, folder: Path) -> Subject:
    """SQLite, which forgets as others write."""
    store = EmbeddedStore(folder / "store.db", history=20)

    async def forget(revision: int) -> None:
        last = await store.read(["/elsewhere"])
        while last.revision < revision + 20:
            expected = last.records[0].revision if last.records else 0
            await store.commit([Change("/elsewhere", b"", expected)])
            last = await store.read(["/elsewhere"])

    return Subject(store, forget)


def of_memory(_: EtcdProcess, __: Path) -> Subject:
    """The fake that other tests use."""
    store = MemoryStore()

    async def forget(revision: int) -> None:
        store.compacted = revision

    return Subject(store, forget)


def of_indexed(_: EtcdProcess, __: Path) -> Subject:
    """The fake with indexes, for clusters of thousands of nodes."""
    store = IndexedStore()

    async def forget(revision: int) -> None:
        store.compacted = revision

    return Subject(store, forget)


@pytest.fixture(
    params=[of_etcd, of_embedded, of_memory, of_indexed], ids=["etcd", "embedded", "memory", "memory with indexes"]
)
async def subject(request: pytest.FixtureRequest, etcd: EtcdProcess, tmp_path: Path) -> AsyncIterator[Subject]:
    """Each store in turn."""
    made: Subject = request.param(etcd, tmp_path)
    yield made
    await made.store.aclose()
