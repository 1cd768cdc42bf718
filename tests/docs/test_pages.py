"""The pages of tasks, each worked through on real daemons: every command does what the page says."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from ipamd import __version__
from tests.api.host_local import HostLocal
from tests.calico_objects import put_node
from tests.calico_state import State
from tests.daemon_process import Answer, Daemon, network, wait_for
from tests.docs.conftest import Cluster
from tests.docs.walk import DOCS, LONG, ROOT, plain, same
from tests.etcd_process import EtcdProcess
from tests.runtime.results import cached

pytestmark = [pytest.mark.real, LONG]

V4 = ("--default-pools-ipv4-cidr", "192.168.0.0/16")


def test_what_a_page_shows_is_compared_with_what_was_printed() -> None:
    """The comparison bites, and knows what may differ."""
    same("A  B\n...\nC at 2026-11-21T21:39:57Z\n", "A B\nx\ny\nC at 2025-01-02T03:04:05Z\n")
    for printed in ("A B\nC\n", "A\nx\nC at 2025-01-02T03:04:05Z\n"):
        with pytest.raises(AssertionError):
            same("A  B\n...\nC at 2026-11-21T21:39:57Z\n", printed)
    assert plain("a\t b \n\n") == "a b\n"


def test_the_api(cluster: Cluster) -> None:
    """The routes by hand, of reference/api.md."""
    node = cluster.start("node-a", *V4)
    node.add("web-1")
    wait_for(lambda: node.get("/v1/allocations")[0]["flushed"])
    with cluster.walk("reference/api.md") as page:
        assert "/v1/pools" in page.run()
        page.run(2)
        assert json.loads(page.run().partition("\n}")[0] + "}")["ips"][0]["address"] == "192.168.67.65/32"
        assert '"pod": "default/web-1"' in page.run()
        assert '"kind": "add"' in page.run()


def lies_in(address: str, cidr: str) -> bool:
    """Whether a CIDR holds an address."""
    return ip_address(address) in ip_network(cidr)


def refused(node: Daemon, container: str, config: dict[str, object] | None = None) -> tuple[int, str]:
    """The code and text with which an ADD is refused."""
    answer = node.plugin("ADD", container, config)
    assert answer.code != 0, answer.text
    return answer.json["code"], answer.json["msg"]


def shown_config(page: str) -> dict[str, object]:
    """The network configuration that a page shows."""
    (text,) = re.findall(r"```json\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    config = json.loads(text)
    assert isinstance(config, dict)
    return config


def put_nodes(cluster: Cluster, *names: str) -> None:
    """The Node records that Calico's node agents write."""
    for name in names:
        put_node(cluster.etcd, name)


def test_choose_pools(cluster: Cluster) -> None:
    """Racks by label, some nodes only, by name; refusals say which selector excludes the node."""
    put_nodes(cluster, "node-a", "node-b")
    a, b = (cluster.start(name, ready=False) for name in ("node-a", "node-b"))
    wait_for(lambda: a.get("/v1/status", quiet=True).get("store", {}).get("synced"))
    with cluster.walk("how-to/choose-pools.md") as page:
        page.run(2)
        for node, rack in ((a, "192.168.0.0/24"), (b, "192.168.1.0/24")):
            node.wait_ready()
            assert lies_in(node.add("web")[0], rack)
        assert "rack-1 (192.168.1.0/24) excludes node node-a" in page.run()
        printed = page.run()
        assert "192.168.0." in printed
        page.run()
        wait_for(lambda: b.get("/v1/pools")[1]["node_selector"] == 'type == "test"')
        assert refused(b, "more")[0] == 100
        named = shown_config("how-to/choose-pools.md")
        assert lies_in(b.add("named", named)[0], "192.168.0.0/24")
        assert "refused with code 100" in page.run()
        wait_for(lambda: not a.get("/v1/pools")[0]["excluded"])
        page.run()
        wait_for(lambda: a.get("/v1/pools")[0]["namespace_selector"] == 'team == "red"')


def test_migrate_pools(cluster: Cluster) -> None:
    """From pool to pool: no pod is refused, and nothing of the old pool is left."""
    nodes = [cluster.start(name, *V4) for name in ("node-a", "node-b")]
    pods = [(node, f"pod{number}") for number in range(3) for node in nodes]
    for node, pod in pods:
        assert lies_in(node.add(pod)[0], "192.168.0.0/16")
    with cluster.walk("how-to/migrate-pools.md") as page:
        page.run(2)
        wait_for(lambda: all(node.get("/v1/pools")[0]["disabled"] for node in nodes))
        for node, pod in pods:
            node.delete(pod)
            assert lies_in(node.add(f"new-{pod}")[0], "10.0.0.0/16")
        wait_for(
            lambda: not any(block["cidr"].startswith("192.168.") for node in nodes for block in node.get("/v1/blocks"))
        )
        wait_for(lambda: all(node.get("/v1/status")["flush"]["unflushed"] == 0 for node in nodes))
        page.run(2)
    assert all("192.168." not in key for key in cluster.etcd.get_prefix("/calico/"))


def test_change_block_size(cluster: Cluster) -> None:
    """By way of a temporary pool; in the end all blocks have the new size."""
    nodes = [cluster.start(name, *V4) for name in ("node-a", "node-b")]

    def recreate(old: str, new: str, cidr: str) -> None:
        for node in nodes:
            if old:
                node.delete(old)
            assert lies_in(node.add(new)[0], cidr)

    def follow(pool: str, **wanted: object) -> None:
        wait_for(
            lambda: all(
                [view for view in node.get("/v1/pools") if view["name"] == pool and view.items() >= wanted.items()]
                for node in nodes
            )
        )

    recreate("", "first", "192.168.0.0/16")
    with cluster.walk("how-to/change-block-size.md") as page:
        page.run()
        follow("default-ipv4-ippool", disabled=True)
        recreate("first", "second", "10.0.0.0/16")
        wait_for(lambda: not any(b["cidr"].startswith("192.168.") for node in nodes for b in node.get("/v1/blocks")))
        page.run(2)
        follow("temporary-pool", disabled=True)
        recreate("second", "third", "192.168.0.0/16")
        wait_for(lambda: all(node.get("/v1/status")["flush"]["unflushed"] == 0 for node in nodes))
        page.run()
    assert {block["size"] for node in nodes for block in node.get("/v1/blocks")} == {16}


def test_ipv6(cluster: Cluster) -> None:
    """Both versions for a pod that asks for both, and an explanation of each."""
    node = cluster.start("node-a", *V4)
    with cluster.walk("how-to/ipv6.md") as page:
        page.run()
        four, six = node.add("web", shown_config("how-to/ipv6.md"))
        assert lies_in(four, "192.168.0.0/16")
        assert lies_in(six, "fd00:10:244::/64")
        assert len(node.add("one")) == 1
        page.run()


def test_static_addresses(cluster: Cluster) -> None:
    """Given on request, refused with who has it, and no pool: no address."""
    node = cluster.start("node-a", *V4)
    wanted = {"args": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;IP=192.168.67.99"}
    with cluster.walk("how-to/static-addresses.md") as page:
        assert "192.168.67.99" in page.run()
    assert node.add("web", **wanted) == ["192.168.67.99"]
    answer = node.plugin("ADD", "other", **wanted)
    assert (answer.json["code"], "default/web" in answer.json["msg"]) == (104, True)
    assert node.plugin("ADD", "other", args=wanted["args"].replace("192.168.67.99", "10.1.1.1")).json["code"] == 105


def test_reserve_addresses(cluster: Cluster) -> None:
    """Nobody gets them but who asks; the reserve gives back what it had."""
    node = cluster.start("node-a", *V4)
    kept = {"192.168.67.64", *(f"192.168.67.{number}" for number in range(96, 112))}

    def reserve() -> set[str]:
        (view,) = node.get("/v1/reserve")
        return set(view["addresses"])

    assert reserve() & kept
    with cluster.walk("how-to/reserve-addresses.md") as page:
        assert "routers" in page.run()
        wait_for(lambda: len(reserve()) >= 16 and not reserve() & kept)
        printed = page.run()
        assert "IPReservation routers" in printed or "routers" in printed
        got = {node.add(f"c{number}")[0] for number in range(30)}
        assert not got & kept
        asks = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;IP=192.168.67.97"
        assert node.add("web", args=asks) == ["192.168.67.97"]
        page.run()


def test_limits(cluster: Cluster) -> None:
    """Each setting takes effect on a running daemon, and goes back."""
    node = cluster.start("node-a", *V4)
    with cluster.walk("how-to/limits.md") as page:
        page.run()
        wait_for(lambda: node.get("/v1/explain?node")["strict_affinity"])
        told = node.get("/v1/explain?node")
        assert (told["max_blocks"], told["cooldown_seconds"]) == (4, 30)
        node.add("web")
        wait_for(lambda: node.get("/v1/reserve")[0]["available"] > 32, why=lambda: node.get("/v1/reserve"))
        page.run(2)
        wait_for(lambda: not node.get("/v1/explain?node")["strict_affinity"])
        assert node.get("/v1/explain?node")["max_blocks"] == 20


def folders(cluster: Cluster) -> dict[str, str]:
    """Folders of the test's own in place of the system's."""
    places = {
        name: cluster.folder / "root" / name.strip("/")
        for name in ("/opt/cni/bin", "/etc/cni/net.d", "/var/lib/cni/networks")
    }
    for path in places.values():
        path.mkdir(parents=True)
    return {name: str(path) for name, path in places.items()}


def call(node: Daemon, plugin: Path, command: str, container: str, config: Mapping[str, object]) -> Answer:
    """A call of an installed plugin, as the runtime makes it."""
    environment = {
        "CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": "/n", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
        "IPAMD_SOCKET": str(node.socket), "CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={container}",
    }  # fmt: skip
    done = subprocess.run(
        [plugin], env=environment, input=json.dumps(config).encode(), capture_output=True, check=False, timeout=60
    )
    return Answer(done.returncode, done.stdout)


def test_move_from_calico(cluster: Cluster) -> None:
    """On records as Calico's programs left them: taken over, used, drained; the old pods and the new ones keep theirs."""
    records = json.loads((ROOT / "tests" / "data" / "calico" / "basic.json").read_text())["etcd"]
    for key, value in records.items():
        cluster.etcd.put(key, value.encode())
    before = State.of(cluster.etcd)
    node = cluster.start("node-a")
    places = folders(cluster)
    plugins, configs = Path(places["/opt/cni/bin"]), Path(places["/etc/cni/net.d"])
    (plugins / "calico-ipam").write_text("#!/bin/sh\necho the old one\n")
    second = configs / "20-second.conflist"
    second.write_text(json.dumps({"name": "second", "plugins": [{"type": "ptp", "ipam": {"type": "calico-ipam"}}]}))
    with cluster.walk("how-to/move-from-calico.md", places) as page:
        page.run(2)
        assert (plugins / "calico-ipam.before").read_text().endswith("the old one\n")
        new = call(node, plugins / "calico-ipam", "ADD", "new", network())
        assert call(node, plugins / "calico-ipam", "DEL", "v100", network()).code == 0
        page.run()
        (ipam,) = [plugin["ipam"] for plugin in json.loads(second.read_text())["plugins"]]
        assert ipam == {"type": "ipamd"}
        other = call(
            node,
            plugins / "ipamd",
            "ADD",
            "other",
            {"cniVersion": "1.0.0", "name": "second", "type": "ptp", "ipam": ipam},
        )
        wait_for(lambda: not node.get("/v1/status")["flush"]["unflushed"])
        page.run(2)
        assert call(node, plugins / "calico-ipam", "ADD", "late", network()).json["code"] == 11
        page.run()
        assert (plugins / "calico-ipam").read_text().endswith("the old one\n")
    node.stop()
    after = State.of(cluster.etcd)
    assert not after.problems()
    assert not [key for key in cluster.etcd.get_prefix("/calico/") if "ipamd" in key]
    kept = {address: handle for address, handle in before.pods().items() if handle != "k8s-pod-network.v100"}
    gained = {new.addresses[0]: "k8s-pod-network.new", other.addresses[0]: "second.other"}
    assert after.pods() == kept | gained


def test_move_from_host_local(cluster: Cluster) -> None:
    """What the real host-local gave out is the same containers' afterwards, and nobody else gets it."""
    node = cluster.start("node-a", *V4)
    places = folders(cluster)
    config = network("1.0.0", "host-local", subnet="10.1.0.0/24")
    theirs = HostLocal(Path(places["/var/lib/cni/networks"]))
    for container in ("a", "b"):
        assert theirs.call(config, {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": container})
    with cluster.walk("how-to/move-from-host-local.md", places) as page:
        page.run()
        assert not node.get("/v1/allocations")
        page.run()
        held = {view["container"]: view["address"] for view in json.loads(page.run())}
    assert held == {"a": "10.1.0.2", "b": "10.1.0.3"}
    plugin = Path(places["/opt/cni/bin"]) / "host-local"
    assert call(node, plugin, "ADD", "c", config).addresses == ["10.1.0.4"]
    assert call(node, plugin, "DEL", "a", config).code == 0


def test_host_local_ranges(cluster: Cluster) -> None:
    """An address of the range, as the explanation said."""
    node = cluster.start("node-a", *V4)
    config = shown_config("how-to/host-local-ranges.md")
    (cluster.folder / "20-lan.conf").write_text(json.dumps(config))
    with cluster.walk("how-to/host-local-ranges.md") as page:
        assert "10.1.0.20" in page.run()
    assert node.add("web-1", config) == ["10.1.0.20"]


def test_upgrade(cluster: Cluster) -> None:
    """The version of program and daemon, and a daemon that is well after a restart under a pod."""
    node = cluster.start("node-a", *V4)
    (address,) = node.add("web")
    with cluster.walk("how-to/upgrade.md") as page:
        assert __version__ in page.run()
        node.stop()
        node.start()
        assert node.add("web") == [address]
        wait_for(lambda: not node.get("/v1/status")["flush"]["unflushed"])
        page.run()
    wait_for(lambda: json.loads(node.request("POST", "/v1/drain")[1])["drained"])
    node.stop()
    shutil.rmtree(node.directory / "state")
    node.start()
    assert node.add("web") == [address], "drained, and begun anew with an empty folder"
    assert "quarantined" not in node.log.read_text()


def test_ipv6_alone(cluster: Cluster) -> None:
    """Without any IPv4 pool."""
    node = cluster.start("node-a", "--default-pools-ipv6-cidr", "fd00:10:244::/64")
    (address,) = node.add("web", network(assign_ipv4="false", assign_ipv6="true"))
    assert lies_in(address, "fd00:10:244::/64")


def test_troubleshooting(cluster: Cluster) -> None:
    """Each symptom is made, and what the page has one type shows it."""
    cache = cluster.folder / "results"
    node = cluster.start("node-a", *V4, "--runtime-results-dir", str(cache))
    cached(cache, "web", node.add("web"))
    with cluster.walk("how-to/troubleshoot.md") as page:
        assert "ready" in page.run()
        node.plugin(
            "ADD", "other", network(ipv4_pools=["none-such"]), args="K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-web"
        )
        assert "none-such" in page.run()
        assert "default-ipv4-ippool" in page.run()
        assert "P" in page.run()
        page.run(2)
        node.stop()
        shutil.rmtree(node.directory / "state")
        node.start()
        wait_for(
            lambda: node.metric("ipamd_addresses") and "quarantined" in node.request("GET", "/metrics")[1].decode()
        )
        printed = page.run()
        assert re.search(r"QUARANTINED", printed)
        page.run(code=1)
        page.run()
    assert (cluster.folder / "report.tar.gz").stat().st_size > 1000


def test_troubleshooting_without_a_store(cluster: Cluster, tmp_path: Path) -> None:
    """The daemon's own words are to be had; pods start and end; what asks for records says that it cannot."""
    with EtcdProcess(tmp_path / "own") as etcd:
        cluster.etcd = etcd
        node = cluster.start("node-a", *V4)
        etcd.kill()
        node.add("web")
        node.delete("web")
        for words, code in (("reserve", 0), ("events", 0), ("explain node", 0), ("get ippool", 1)):
            done = subprocess.run(
                [sys.executable, "-m", "ipamd.ctl", "--socket", str(node.socket), *words.split()],
                cwd=ROOT, capture_output=True, check=False, timeout=60,
            )  # fmt: skip
            assert bool(done.returncode) == bool(code), (words, done.stderr)
