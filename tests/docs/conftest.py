"""A cluster for the pages: one etcd, and a real daemon for each node that a page has."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from ipamd.cni import build
from tests.daemon_process import PLUGIN, Daemon
from tests.docs.walk import Walk
from tests.etcd_process import EtcdProcess


class Cluster:
    """Nodes on one etcd. The first that is started is the one on which the page's commands are typed."""

    def __init__(self, etcd: EtcdProcess, folder: Path, stack: ExitStack) -> None:
        self.etcd, self.folder, self._stack = etcd, folder, stack
        self.nodes: dict[str, Daemon] = {}

    def start(self, node: str = "node-a", *flags: str, ready: bool = True) -> Daemon:
        """Start the daemon of a node; with a flag ``--default-pools-...`` it makes pools."""
        store = () if "--store" in flags else ("--etcd-endpoints", self.etcd.endpoint)
        daemon = Daemon(self.folder / node, node, *store, *flags, ready=ready)
        self.nodes[node] = self._stack.enter_context(daemon)
        return daemon

    def walk(self, page: str, places: Mapping[str, str] | None = None) -> Walk:
        """The page, typed on the first node; ``places``: folders to use in place of the system's."""
        first = next(iter(self.nodes.values()))
        return Walk(page, self.folder, {"IPAMD_SOCKET": str(first.socket)}, places)


@pytest.fixture(scope="module")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """A running etcd."""
    if not PLUGIN.exists():
        build.build()
    with EtcdProcess(tmp_path_factory.mktemp("etcd")) as process:
        yield process


@pytest.fixture
def cluster(shared_etcd: EtcdProcess, tmp_path: Path) -> Iterator[Cluster]:
    """An empty cluster without nodes."""
    for key in shared_etcd.get_prefix("/calico/"):
        shared_etcd.delete(key)
    with ExitStack() as stack:
        yield Cluster(shared_etcd, tmp_path, stack)
