"""What a reply waits for, by ``durability``, on a real daemon and a real etcd."""

import json
import threading
from pathlib import Path

import pytest

from tests.daemon_process import POOLS, Daemon, addresses_of, wait_for
from tests.etcd_process import EtcdProcess

pytestmark = pytest.mark.real


def test_with_durability_etcd_the_reply_waits_for_the_store(tmp_path: Path) -> None:
    """The moment an ADD is answered its block and handle are in etcd; without etcd no answer comes. A DEL waits not."""
    with EtcdProcess(tmp_path / "etcd") as etcd:
        flags = ("--etcd-endpoints", etcd.endpoint, "--durability", "etcd", *POOLS)
        with Daemon(tmp_path / "d", "node-a", *flags) as daemon:
            address = daemon.add("a")
            handles = etcd.get_prefix("/calico/ipam/v2/handle/k8s-pod-network.")
            assert list(handles) == ["/calico/ipam/v2/handle/k8s-pod-network.a"]
            etcd.pause()
            answers: list[tuple[int, bytes]] = []
            asking = threading.Thread(target=lambda: answers.append(daemon.post("ADD", "b")), daemon=True)
            asking.start()
            wait_for(lambda: daemon.get("/v1/status")["attachments"] == 2)
            asking.join(0.3)
            assert not answers
            etcd.resume()
            asking.join(10)
            assert addresses_of(answers[0][1]) != address
            daemon.delete("a")
            daemon.delete("b")
            wait_for(lambda: etcd.get_prefix("/calico/ipam/v2/handle/k8s-pod-network.") == {})


def test_many_adds_share_a_transaction_with_durability_etcd(tmp_path: Path) -> None:
    """Group commit: 64 ADDs at once, each answered from etcd, take far fewer transactions."""
    with EtcdProcess(tmp_path / "etcd") as etcd:
        flags = ("--etcd-endpoints", etcd.endpoint, "--durability", "etcd", "--reserve-min", "64", *POOLS)
        with Daemon(tmp_path / "d", "node-a", *flags) as daemon:
            before = daemon.get("/v1/status")["store"]["calls"]["commit"]
            threads = [threading.Thread(target=daemon.post, args=("ADD", f"c{index}")) for index in range(64)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            assert all(entry["flushed"] for entry in daemon.get("/v1/allocations"))
            assert daemon.get("/v1/status")["attachments"] == 64
            assert daemon.get("/v1/status")["store"]["calls"]["commit"] - before <= 40


def test_with_durability_fsync_the_reply_waits_for_the_disk(tmp_path: Path) -> None:
    """ADD and DEL are answered, and a kill right after loses nothing."""
    with Daemon(tmp_path / "d", "node-a", *POOLS, "--durability", "fsync") as daemon:
        address = daemon.add("a")
        daemon.delete("never")
        daemon.kill()
        daemon.start()
        assert daemon.add("a") == address


@pytest.mark.parametrize("linger", ["0", "0.1"])
def test_a_full_disk_refuses_add_in_words_and_still_takes_del(tmp_path: Path, linger: str) -> None:
    """When the state file cannot grow, ADD is error 5 in words and DEL succeeds; with room again nothing is lost.

    Flushed often, the file is full of images of blocks long before it holds more pods than a new one has room for.
    """
    script = 'ulimit -f 48; exec "$@"'  # in KiB: the state file grows to that and no further
    limited = ("/bin/bash", "-c", script, "limited")
    with EtcdProcess(tmp_path / "etcd") as etcd:
        flags = ("--etcd-endpoints", etcd.endpoint, *POOLS, "--flush-linger", linger)
        with Daemon(tmp_path / "d", "node-a", *flags, wrapper=limited) as daemon:
            held, body = fill(daemon)
            error = json.loads(body)
            assert error["code"] == 5
            assert "cannot append to the state file" in error["msg"]
            assert "make room" in error["msg"]
            assert sorted(entry["container"] for entry in daemon.get("/v1/allocations")) == sorted(held)
            for container in held:
                assert daemon.post("DEL", container)[0] == 200
            wait_for(lambda: etcd.get_prefix("/calico/ipam/v2/handle/k8s-pod-network.") == {})
            wait_for(lambda: daemon.get("/readyz")["ready"])
            assert daemon.post("ADD", "after")[0] == 200
            daemon.kill()
        with Daemon(tmp_path / "d", "node-a", *flags) as again:
            assert [entry["container"] for entry in again.get("/v1/allocations")] == ["after"]


def fill(daemon: Daemon) -> tuple[list[str], bytes]:
    """ADD until one is refused; returns the containers that were not, and the refusal."""
    held: list[str] = []
    while len(held) < 500:
        status, body = daemon.post("ADD", f"c{len(held)}")
        if status != 200:
            return held, body
        held.append(f"c{len(held)}")
    raise AssertionError("500 ADDs fitted into 48 KiB")
