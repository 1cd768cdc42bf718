"""host-local mode of a real daemon, asked by the real plugin, beside the real ``host-local``."""

from pathlib import Path

import pytest

from tests.api.host_local import HostLocal
from tests.api.plugin_call import ENVIRONMENT
from tests.daemon_process import Daemon, network, wait_for

pytestmark = pytest.mark.real

NOWHERE = ("--etcd-endpoints", "http://127.0.0.1:1")
CONFIG = network(
    "0.4.0",
    "host-local",
    ranges=[[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00:1::/64", "gateway": "fd00:1::99"}]],
    routes=[{"dst": "0.0.0.0/0"}],
)


@pytest.mark.parametrize("durability", ["journal", "fsync", "etcd"])
def test_a_daemon_that_never_saw_its_store(tmp_path: Path, durability: str) -> None:
    """With etcd nowhere from the first start on: host-local's answers, byte for byte, and all there after a kill -9."""
    reference = HostLocal(tmp_path / "host-local")
    with Daemon(tmp_path / "node", "node-a", *NOWHERE, "--durability", durability, ready=False) as daemon:
        for pod in ("a", "b", "c", "b", "d", "e", "f", "g"):
            verb = "DEL" if any(view["container"] == pod for view in _allocations(daemon)) else "ADD"
            theirs = reference.call(CONFIG, {**ENVIRONMENT, "CNI_COMMAND": verb, "CNI_CONTAINERID": pod})
            answer = daemon.plugin(verb, pod, CONFIG, name="host-local")
            assert (answer.output if answer.code == 0 else None) == theirs, (pod, answer.text)
            daemon.kill()
            daemon.start(ready=False)
        assert daemon.plugin("ADD", "g", CONFIG).json["code"] == 106
        assert not daemon.get("/v1/status")["store"]["synced"]
        assert daemon.metric("ipamd_range_addresses") == 10
        held = [view["address"] for view in _allocations(daemon) if view["container"] == "f"]
        assert daemon.add("f", CONFIG, name="host-local") == held, "a repeated ADD has the same answer"


def _allocations(daemon: Daemon) -> list[dict[str, str]]:
    wait_for(lambda: daemon.get("/healthz", quiet=True))
    listed = daemon.get("/v1/allocations")
    assert isinstance(listed, list)
    return listed
