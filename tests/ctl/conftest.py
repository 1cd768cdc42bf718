"""``ipamctl`` on each of the three ways to records."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.ctl.places import BehindSocket, Ctl, Done, made, run
from tests.etcd_process import EtcdProcess


@pytest.fixture(autouse=True)
def _bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration but what a test gives."""
    for name in [name for name in os.environ if name.startswith("IPAMD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("ipamd.config.sources.DEFAULT_FILE", tmp_path / "default.toml")


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """A running etcd that all tests share."""
    with EtcdProcess(tmp_path_factory.mktemp("etcd")) as process:
        yield process


@pytest.fixture(params=["etcd", "embedded", "daemon"])
def ctl(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Ctl]:
    """``ipamctl`` on each kind of place in turn, empty at first."""
    etcd = request.getfixturevalue("etcd") if request.param == "etcd" else None
    with ExitStack() as stack:
        yield Ctl(made(request.param, etcd, tmp_path, stack), capsys, monkeypatch)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[BehindSocket]:
    """A store in memory behind the daemon's server."""
    with BehindSocket(tmp_path / "ipamd.sock").serving() as place:
        yield place


@pytest.fixture
def ipamctl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """``ipamctl`` with nothing but the arguments of the test."""
    return lambda *argv, stdin="": run(*argv, stdin=stdin, capsys=capsys, monkeypatch=monkeypatch)
