"""A real etcd of the test's own, and real daemons on it."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ipamd.cni import build
from tests.daemon_process import PLUGIN, Daemon
from tests.etcd_process import EtcdProcess, binary

Start = Callable[..., Daemon]


def missing(what: str) -> None:
    """A part of the system is not there: a failure in CI, elsewhere a reason to skip."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    """A running etcd; whoever kills it may start it again."""
    try:
        binary("etcd")
    except RuntimeError as error:
        missing(str(error))
    with EtcdProcess(tmp_path / "etcd") as process:
        yield process


@pytest.fixture
def start(etcd: EtcdProcess, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the daemon of a node on that etcd, ready to serve, until the test's end."""
    if not PLUGIN.exists():
        build.build()
    with ExitStack() as stack:

        def start(node: str = "node-a", *flags: str, ready: bool = True) -> Daemon:
            daemon = Daemon(tmp_path / node, node, "--etcd-endpoints", etcd.endpoint, *flags, ready=ready)
            return stack.enter_context(daemon)

        yield start
