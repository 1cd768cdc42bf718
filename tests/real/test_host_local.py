"""host-local mode of a real daemon, asked by the real plugin, beside the real ``host-local``."""

import json
from pathlib import Path

import pytest

from tests.api.host_local import HostLocal
from tests.api.plugin_call import ENVIRONMENT
from tests.daemon_process import Daemon, network, wait_for
from tests.kubernetes_server import ApiServer, ApiServerThread, node

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


def test_the_documentations_page_on_host_local(tmp_path: Path) -> None:
    """Get started with IP address management, Host-local IPAM: a node's CIDR is its Node.Spec.PodCIDR in Kubernetes.

    Pods are assigned addresses only from within the CIDR of their node, statically; nothing that chooses pools for
    calico-ipam has a say.
    """
    cidrs = {"node-1": ("10.48.0.0/24", "fd00:48::/120"), "node-2": ("10.48.1.0/24", "fd00:48::100/120")}
    both = {"ranges": [[{"subnet": "usePodCidr"}], [{"subnet": "usePodCidrIPv6"}]]}
    api = ApiServerThread(lambda: ApiServer(node("node-1", *cidrs["node-1"]), node("node-2")))
    with api.running():
        flags = (*NOWHERE, "--kubernetes-config", str(_kubeconfig(tmp_path, api.url)))
        with (
            Daemon(tmp_path / "one", "node-1", *flags, ready=False) as one,
            Daemon(tmp_path / "two", "node-2", *flags, ready=False) as two,
        ):
            assert one.add("a", network("1.0.0", "host-local", subnet="usePodCidr")) == ["10.48.0.2"]
            assert one.add("b", network("1.0.0", "host-local", **both)) == ["10.48.0.3", "fd00:48::2"]
            named = network("1.0.0", "host-local", subnet="usePodCidr", ipv4_pools=["192.168.0.0/16"])
            assert one.add("c", named) == ["10.48.0.4"]
            late = two.plugin("ADD", "d", network("1.0.0", "host-local", subnet="usePodCidr"))
            assert late.json["code"] == 11, late.text
            api.do(lambda server: server.put(node("node-2", *cidrs["node-2"])))
            assert two.add("d", network("1.0.0", "host-local", **both)) == ["10.48.1.2", "fd00:48::102"]
            one.kill()
            one.start(ready=False)
            assert one.add("e", network("1.0.0", "host-local", **both)) == ["10.48.0.5", "fd00:48::3"]
            assert one.add("a", network("1.0.0", "host-local", subnet="usePodCidr")) == ["10.48.0.2"]


def _kubeconfig(directory: Path, url: str) -> Path:
    path = directory / "kubeconfig"
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url}}], "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }  # fmt: skip
    path.write_text(json.dumps(config))
    return path


def _allocations(daemon: Daemon) -> list[dict[str, str]]:
    wait_for(lambda: daemon.get("/healthz", quiet=True))
    listed = daemon.get("/v1/allocations")
    assert isinstance(listed, list)
    return listed
