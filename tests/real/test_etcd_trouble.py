"""What befalls an etcd in a year, under real daemons: each is served from the reserve, and made good soon after.

How long it took until etcd and the daemon said the same again is printed (``pytest -rP``).
"""

import datetime as dt
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import trustme

from tests.calico_state import State, differences
from tests.daemon_process import POOLS, Daemon, addresses_of, wait_for
from tests.etcd_process import EtcdCluster, EtcdProcess, free_port
from tests.nodes import pool_record
from tests.real.pods import Addresses, Load

pytestmark = pytest.mark.real

PAUSE = float(os.environ.get("IPAMD_TEST_PAUSE", "5"))
"""Seconds that the longest pause takes; ``make soak-outage`` asks for 60."""
GENEROUS = 10.0
"""Seconds in which all must be right again, on a machine that does other things too; 2 is what it is made for."""
RESERVE = 40
FLAGS = (*POOLS, "--reserve-min", str(RESERVE), "--reserve-max", str(RESERVE), "--etcd-timeout", "1")

Trouble = Callable[[EtcdProcess], AbstractContextManager[None]]


@contextmanager
def paused(etcd: EtcdProcess, seconds: float = PAUSE) -> Iterator[None]:
    """It hangs, for so long in all."""
    began = time.monotonic()
    etcd.pause()
    yield
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    etcd.resume()


@contextmanager
def compacted(etcd: EtcdProcess) -> Iterator[None]:
    """It is out of reach; others write meanwhile, and it forgets how it came to what it holds."""
    known, etcd.endpoint = etcd.endpoint, f"http://127.0.0.1:{free_port()}"
    etcd.restart()
    for number in range(20):
        revision = etcd.put(*pool_record("late", "10.77.0.0/24", disabled=bool(number % 2)))
    etcd.compact(revision)
    yield
    etcd.endpoint = known
    etcd.restart()


def fill(etcd: EtcdProcess) -> None:
    """Write until it refuses."""
    for number in range(1000):
        etcd.put(f"/other/{number}", b"x" * 100_000)


@contextmanager
def full(etcd: EtcdProcess) -> Iterator[None]:
    """Its quota is used up; then somebody makes room and disarms the alarm."""
    with pytest.raises(RuntimeError, match="database space exceeded"):
        fill(etcd)
    assert "NOSPACE" in etcd.ctl("alarm", "list")
    yield
    etcd.ctl("del", "/other/", "--prefix")
    etcd.compact(etcd.revision())
    etcd.ctl("defrag")
    etcd.ctl("alarm", "disarm")


class Certificates:
    """A CA, and a certificate for both sides in files that ``issue`` replaces."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._authority = trustme.CA()
        self.files = (folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
        self._authority.cert_pem.write_to_path(self.files[0])
        self.issue(days=1)

    def issue(self, days: int) -> None:
        """A certificate that is valid for so many days, or has not been for as many."""
        expires = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
        issued = self._authority.issue_cert("127.0.0.1", not_before=expires - dt.timedelta(days=30), not_after=expires)
        blobs = (b"".join(blob.bytes() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes())
        for path, content in zip(self.files[1:], blobs, strict=True):
            new = path.with_suffix(".new")
            new.write_bytes(content)
            new.replace(path)


class Outage:
    """A node with a reserve through a trouble of its etcd: served from memory meanwhile, made good afterwards."""

    def __init__(self, etcd: EtcdProcess, daemon: Daemon) -> None:
        self.etcd, self.daemon = etcd, daemon
        self.held: dict[str, list[str]] = {}
        for number in range(10):
            self.add(f"old{number}")
        self.settle()

    def add(self, container: str) -> None:
        """An ADD that must succeed, with an address that nobody has."""
        status, body = self.daemon.post("ADD", container)
        assert status == 200, body
        told = addresses_of(body)
        assert not {address for other in self.held.values() for address in other} & set(told)
        self.held[container] = told

    def delete(self, container: str) -> None:
        """A DEL that must succeed."""
        assert self.daemon.post("DEL", container)[0] == 200
        del self.held[container]

    def serve(self) -> None:
        """More ADDs than one transaction would hold, repeated ones and DELs, all answered; etcd hears of none."""
        for number in range(RESERVE // 2 - 2):
            self.add(f"new{number}")
        for number in range(5):
            self.delete(f"old{number}")
            self.delete(f"new{number}")
        status, body = self.daemon.post("ADD", "old9")
        assert (status, addresses_of(body)) == (200, self.held["old9"])
        assert not all(view["flushed"] for view in self.daemon.get("/v1/allocations"))

    def settle(self) -> float:
        """Wait until etcd and the daemon say the same; returns the seconds that it took."""
        began = time.monotonic()
        why = lambda: differences(State.of(self.etcd), [self.daemon])  # noqa: E731
        wait_for(lambda: not why(), GENEROUS, why)
        took = time.monotonic() - began
        views = self.daemon.get("/v1/allocations")
        assert sorted(view["container"] for view in views) == sorted(self.held)
        assert {view["address"] for view in views} == {a for told in self.held.values() for a in told}
        return took


@contextmanager
def outage(folder: Path, etcd: EtcdProcess, *flags: str) -> Iterator[Outage]:
    """A daemon on this etcd, with a full reserve."""
    with Daemon(folder / "node-a", "node-a", "--etcd-endpoints", etcd.endpoint, *FLAGS, *flags) as daemon:
        wait_for(lambda: sum(view["available"] >= RESERVE for view in daemon.get("/v1/reserve")) == 2)
        yield Outage(etcd, daemon)


def told(what: str, seconds: float) -> None:
    """Print a figure."""
    sys.stdout.write(f"{what}: etcd right again after {seconds:.2f} s\n")


@pytest.mark.parametrize("trouble", [paused, compacted])
def test_served_from_the_reserve_and_right_soon_afterwards(tmp_path: Path, trouble: Trouble) -> None:
    """While etcd hangs or is out of reach ADDs and DELs are answered; soon after its return it has all of them."""
    with EtcdProcess(tmp_path / "etcd") as etcd, outage(tmp_path, etcd) as node:
        with trouble(etcd):
            node.serve()
        told(trouble.__name__, node.settle())
        if trouble is compacted:  # what was written meanwhile, and is in no history any more
            wait_for(lambda: any(pool["name"] == "late" and pool["disabled"] for pool in node.daemon.get("/v1/pools")))


def test_an_etcd_without_space(tmp_path: Path) -> None:
    """The quota's alarm costs no ADD that the reserve can serve, is told, and leaves nothing behind once disarmed."""
    with (
        EtcdProcess(tmp_path / "etcd", options=["--quota-backend-bytes=4000000"]) as etcd,
        outage(tmp_path, etcd) as node,
    ):
        with full(etcd):
            node.serve()
            wait_for(lambda: "database space exceeded" in json.dumps(node.daemon.get("/v1/status")))
        told("no space", node.settle())


def test_certificates_that_expired(tmp_path: Path) -> None:
    """With expired certificates on both sides pods start all the same; new files are enough to go on."""
    certificates = Certificates(tmp_path / "tls")
    ca, cert, key = certificates.files
    with EtcdProcess(tmp_path / "etcd", tls=certificates.files) as etcd:
        flags = ("--etcd-ca-file", str(ca), "--etcd-cert-file", str(cert), "--etcd-key-file", str(key))
        with outage(tmp_path, etcd, *flags) as node:
            certificates.issue(days=-1)
            etcd.restart()
            node.serve()
            wait_for(lambda: "certificate" in json.dumps(node.daemon.get("/v1/status")).lower())
            certificates.issue(days=1)
            told("certificates", node.settle())


def test_a_token_that_expired(tmp_path: Path) -> None:
    """An etcd that has forgotten this user's token is logged into again, without a word lost."""
    with EtcdProcess(tmp_path / "etcd", options=["--auth-token-ttl=2"]) as etcd:
        for line in (
            "user add root:secret",
            "user grant-role root root",
            "role add node",
            "role grant-permission node readwrite /calico/ --prefix",
            "user add node:pass",
            "user grant-role node node",
            "auth enable",
        ):
            etcd.ctl(*line.split())
        etcd.user = "root:secret"
        (tmp_path / "password").write_text("pass")
        login = ("--etcd-username", "node", "--etcd-password-file", str(tmp_path / "password"))
        with outage(tmp_path, etcd, *login) as node:
            with paused(etcd, 4):  # etcd's own clock: tokens cannot be made to expire otherwise
                node.serve()
            told("token", node.settle())


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    """Three members."""
    with EtcdCluster(tmp_path / "etcd") as members:
        yield members


@contextmanager
def member_killed(cluster: EtcdCluster) -> Iterator[EtcdProcess]:
    """The one that the daemon talks to; gives one that lives."""
    cluster.members[0].kill()
    yield cluster.members[1]
    cluster.members[0].start()


@contextmanager
def leader_hangs(cluster: EtcdCluster) -> Iterator[EtcdProcess]:
    """The one that the daemon talks to leads, and hangs; the others choose another one."""
    while (leader := cluster.leader()) is not cluster.members[0]:
        cluster.move_leader()
    leader.pause()
    yield cluster.members[1]
    leader.resume()


@contextmanager
def leader_moves(cluster: EtcdCluster) -> Iterator[EtcdProcess]:
    """Time and again, in order."""
    for _ in range(5):
        cluster.move_leader()
    yield cluster.members[0]


@pytest.mark.parametrize("trouble", [member_killed, leader_hangs, leader_moves])
def test_a_cluster_that_loses_a_member_or_its_leader_under_load(
    tmp_path: Path, cluster: EtcdCluster, trouble: Callable[[EtcdCluster], AbstractContextManager[EtcdProcess]]
) -> None:
    """Pods come and go all the time; two members are enough for all that was acknowledged to reach etcd soon."""
    with Daemon(tmp_path / "node-a", "node-a", "--etcd-endpoints", ",".join(cluster.endpoints), *FLAGS) as daemon:
        wait_for(lambda: len(daemon.get("/v1/pools")) == 2)
        cluster.members[0].put(*pool_record("named", "10.99.0.0/16", assignmentMode="Manual"))
        addresses = Addresses()

        def work(answers: int) -> None:
            """Wait for so many more ADDs."""
            enough = addresses.done["ADD by socket"] + answers
            wait_for(lambda: addresses.done["ADD by socket"] >= enough or load.failed(), 60)

        with Load(daemon, addresses, [f"10.99.0.{number}" for number in range(256)]) as load:
            work(100)
            began = time.monotonic()
            with trouble(cluster) as member:
                work(100)
                with load.at_rest():
                    why = lambda: differences(State.of(member), [daemon])  # noqa: E731
                    wait_for(lambda: not why(), GENEROUS, why)
                    told(f"{trouble.__name__}, 100 ADDs later", time.monotonic() - began)
                    held = {container: set(told) for container, told in load.held.items()}
                    views = daemon.get("/v1/allocations")
                    assert {(view["container"], view["address"]) for view in views} == {
                        (container, address) for container, told in held.items() for address in told
                    }
            work(100)
