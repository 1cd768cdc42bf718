"""Pods whose annotations and namespaces choose the pool, at the plugin's edge: real daemon, etcd, TLS, an API server."""

import base64
import json
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trustme

from ipamd.core.pod import ADDRESSES, POOLS
from tests.daemon_process import Answer, Daemon, network, wait_for
from tests.etcd_process import EtcdProcess
from tests.kubernetes_server import ApiServer, ApiServerThread, Fault, namespace, node, pod
from tests.nodes import pool_record
from tests.real.conftest import Start

pytestmark = pytest.mark.real

NODE = "node-a"
PTP = {"cniVersion": "1.0.0", "name": "pods", "type": "ptp", "ipam": {"type": "ipamd"}}
CIDRS = {"default": "10.0.0.0/16", "red": "10.1.0.0/16", "green": "10.2.0.0/16", "blue": "10.3.0.0/16"}


def named(*pools: str, family: int = 4) -> dict[str, str]:
    """The annotation that names pools."""
    return {POOLS[family]: json.dumps(list(pools))}


class Cluster:
    """An API server with one namespace, demanding a client's certificate, and the kubeconfig to reach it."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.verify_mode = ssl.CERT_REQUIRED
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.configure_trust(context)
        self.api = ApiServerThread(lambda: ApiServer(namespace("default"), node(NODE, "10.9.0.0/24")), context)
        self.kubeconfig = folder / "kubeconfig"
        self._authority = authority

    def write_kubeconfig(self) -> None:
        """With everything inline, as kubeadm does."""
        issued = self._authority.issue_cert("node-a@example.org")

        def data(pem: bytes) -> str:
            return base64.b64encode(pem).decode()

        self.kubeconfig.write_text(
            f"""\
apiVersion: v1
kind: Config
clusters:
- name: test
  cluster:
    server: {self.api.url}
    certificate-authority-data: {data(self._authority.cert_pem.bytes())}
users:
- name: node
  user:
    client-certificate-data: {data(b"".join(blob.bytes() for blob in issued.cert_chain_pems))}
    client-key-data: {data(issued.private_key_pem.bytes())}
contexts:
- name: node@test
  context: {{cluster: test, user: node}}
current-context: node@test
"""
        )

    def pod(self, name: str, annotations: Mapping[str, str] | None = None, of: str = "default") -> None:
        """A pod of the node, with the uid that ``add`` says."""
        made = pod(name, f"uid-of-{name}", annotations, namespace=of)
        self.api.do(lambda server: server.put(made))

    def namespace(self, name: str, annotations: Mapping[str, str] | None = None, **labels: str) -> None:
        """A namespace."""
        self.api.do(lambda server: server.put(namespace(name, annotations, **labels)))

    def calls(self, kind: str = "") -> int:
        """How many calls the API has had, of a kind or of all."""
        return self.api.do(lambda server: server.count(kind) if kind else len(server.calls))

    def break_watches(self) -> None:
        """Nothing new arrives by itself, until ``mend``."""

        def act(server: ApiServer) -> None:
            for kind in ("watch", "list"):
                server.always[f"{kind} pods"] = server.always[f"{kind} namespaces"] = Fault(503, "broken")
            server.drop()

        self.api.do(act)

    def mend(self) -> None:
        """All calls are answered again."""
        self.api.do(lambda server: server.always.clear())


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A running API server."""
    made = Cluster(tmp_path)
    with made.api.running():
        made.write_kubeconfig()
        yield made


@pytest.fixture
def daemon(etcd: EtcdProcess, cluster: Cluster, start: Start) -> Daemon:
    """A daemon with one pool that serves everybody, two for who names them, one for namespaces of team blue."""
    manual = {"assignmentMode": "Manual"}
    specs = {"default": {}, "red": manual, "green": manual, "blue": {"namespaceSelector": "team == 'blue'"}}
    for name, spec in specs.items():
        etcd.put(*pool_record(name, CIDRS[name], **spec))
    daemon = start(NODE, *flags(cluster))
    wait_for(lambda: daemon.get("/v1/status")["kubernetes"]["connected"])
    return daemon


def flags(cluster: Cluster) -> tuple[str, ...]:
    """What makes a daemon ask the API, and give up soon."""
    return ("--kubernetes-config", str(cluster.kubeconfig), "--kubernetes-timeout", "1")


def args(name: str, of: str = "default", uid: str = "") -> str:
    """What a runtime says of the pod."""
    uid = uid or f"uid-of-{name}"
    return f"IgnoreUnknown=1;K8S_POD_NAMESPACE={of};K8S_POD_NAME={name};K8S_POD_UID={uid}"


def add(daemon: Daemon, name: str, config: Mapping[str, object] = PTP, of: str = "default", uid: str = "") -> Answer:
    """ADD by the plugin, for a pod."""
    return daemon.plugin("ADD", f"of-{name}", config, args=args(name, of, uid))


def pool_of(answer: Answer) -> str:
    """The pool that an answer's address is from."""
    assert answer.code == 0, answer.text
    (address,) = answer.addresses
    (found,) = [name for name, cidr in CIDRS.items() if address.startswith(cidr.removesuffix("0.0/16"))]
    return found


def known(cluster: Cluster, daemon: Daemon, count: int) -> None:
    """Wait until the daemon has heard of so many pods."""
    wait_for(lambda: daemon.get("/v1/status")["kubernetes"]["pods"] == count)


def test_annotations_and_namespaces_choose_the_pool(cluster: Cluster, daemon: Daemon) -> None:
    """The pod's annotation, else its namespace's, else the CNI configuration's, else what selects the namespace."""
    cluster.namespace("green", named("green"))
    cluster.namespace("blue", team="blue")
    cluster.pod("plain")
    cluster.pod("red", named("red"))
    cluster.pod("by-cidr", named("10.1.0.0/16"))
    cluster.pod("of-green", of="green")
    cluster.pod("red-of-green", named("red"), of="green")
    cluster.pod("of-blue", of="blue")
    known(cluster, daemon, 6)
    before = cluster.calls()
    named_green = {**PTP, "ipam": {"type": "ipamd", "ipv4_pools": ["green"]}}
    assert pool_of(add(daemon, "plain")) == "default"
    assert pool_of(add(daemon, "red")) == "red"
    assert pool_of(add(daemon, "by-cidr")) == "red"
    assert pool_of(add(daemon, "of-green", of="green")) == "green"
    assert pool_of(add(daemon, "red-of-green", of="green")) == "red"
    assert pool_of(add(daemon, "of-blue", of="blue")) == "blue"
    daemon.delete("of-plain", PTP)
    assert pool_of(add(daemon, "plain", named_green)) == "green"
    daemon.delete("of-red", PTP)
    assert pool_of(add(daemon, "red", named_green)) == "red"
    assert cluster.calls() == before


def test_a_pod_asks_for_its_addresses(cluster: Cluster, daemon: Daemon) -> None:
    """From a pool that serves nobody by itself; a second pod that asks for the same is told who has it."""
    cluster.pod("first", {ADDRESSES: '["10.1.0.77"]'})
    cluster.pod("second", {ADDRESSES: '["10.1.0.77"]'})
    known(cluster, daemon, 2)
    assert add(daemon, "first").addresses == ["10.1.0.77"]
    taken = add(daemon, "second").json
    assert taken["code"] == 104
    assert "default/first" in taken["msg"]
    assert add(daemon, "first").addresses == ["10.1.0.77"]


def test_calicos_main_plugin_passes_annotations_on_by_itself(cluster: Cluster, daemon: Daemon) -> None:
    """Under the name calico-ipam only the configuration names pools; the namespace's labels count all the same."""
    cluster.namespace("blue", team="blue")
    cluster.pod("red", named("red"), of="blue")
    known(cluster, daemon, 1)
    assert pool_of(add(daemon, "red", network(ipv4_pools=["green"]), of="blue")) == "green"
    daemon.delete("of-red")
    assert pool_of(add(daemon, "red", network(), of="blue")) == "blue"


def test_a_pod_nobody_heard_of_is_asked_for_by_name(cluster: Cluster, daemon: Daemon) -> None:
    """One call for the pod and one for its new namespace; a namesake's uid is not it."""
    cluster.break_watches()
    cluster.namespace("new", named("green"))
    cluster.pod("late", named("red"))
    cluster.pod("later", of="new")
    assert pool_of(add(daemon, "late")) == "red"
    assert (cluster.calls("get pods"), cluster.calls("get namespaces")) == (1, 0)
    assert pool_of(add(daemon, "later", of="new")) == "green"
    assert (cluster.calls("get pods"), cluster.calls("get namespaces")) == (2, 1)
    wrong = add(daemon, "late", uid="older", config={**PTP, "name": "other"})
    assert (wrong.code, wrong.json["code"]) == (1, 107)
    assert "another pod of this name, with uid uid-of-late and not older" in wrong.json["msg"]
    gone = add(daemon, "gone")
    assert (gone.json["code"], gone.json["msg"]) == (
        107,
        (
            "cannot assign an address to default/gone: the Kubernetes API has no such pod; the pod was deleted, nothing needs "
            "to be done"
        ),
    )
    assert daemon.metric("ipamd_kubernetes_fetches_total") == 4


def test_a_known_pods_successor_gets_its_own_pool(cluster: Cluster, daemon: Daemon) -> None:
    """Deleted and made anew under the same name while the watch is cut: the old annotation does not count."""
    cluster.pod("db-0", named("red"))
    known(cluster, daemon, 1)
    cluster.break_watches()
    successor = pod("db-0", "second", named("green"))
    cluster.api.do(lambda server: server.put(successor))
    assert pool_of(add(daemon, "db-0", uid="second")) == "green"


def test_while_the_api_is_away_known_pods_are_served_and_no_pool_is_guessed(cluster: Cluster, daemon: Daemon) -> None:
    """Known pods from memory, at once; others get code 11 after the time-out, and an address when the API is back."""
    cluster.pod("red", named("red"))
    known(cluster, daemon, 1)
    cluster.api.stop()
    cluster.pod("later", named("green"))
    wait_for(lambda: not daemon.get("/v1/status")["kubernetes"]["connected"])
    assert pool_of(add(daemon, "red")) == "red"
    refused = add(daemon, "later")
    assert (refused.code, refused.json["code"]) == (1, 11)
    assert refused.json["msg"].startswith(
        "cannot assign an address to default/later: what Kubernetes says of the pod is not known yet, and the Kubernetes "
        "API cannot be reached ("
    )
    assert refused.json["msg"].endswith("); no pool is guessed; the runtime will try again")
    assert daemon.get("/v1/allocations")[0]["pod"] == "red"
    assert len(daemon.get("/v1/allocations")) == 1
    assert daemon.metric("ipamd_kubernetes_connected") == 0
    assert "cannot be reached" in daemon.get("/v1/status")["kubernetes"]["error"]
    assert 'event="cannot watch pods"' in daemon.log.read_text()
    cluster.api.start()
    assert pool_of(add(daemon, "later")) == "green"
    wait_for(lambda: daemon.metric("ipamd_kubernetes_connected") == 1, 20)


def test_a_daemon_that_starts_without_the_api_serves_what_it_promised(cluster: Cluster, daemon: Daemon) -> None:
    """Killed and started while the API is away: a repeated ADD has its address, a new pod waits for the API."""
    cluster.pod("red", named("red"))
    known(cluster, daemon, 1)
    first = add(daemon, "red")
    daemon.kill()
    cluster.api.stop()
    daemon.start()
    assert add(daemon, "red").output == first.output
    cluster.pod("new", named("green"))
    assert add(daemon, "new").json["code"] == 11
    cluster.api.start()
    assert pool_of(add(daemon, "new")) == "green"


def test_a_malformed_annotation_is_told_to_the_pod(cluster: Cluster, daemon: Daemon) -> None:
    """Code 7, which annotation, whose, and what is wrong; corrected, the pod starts."""
    cluster.pod("bad", {POOLS[4]: "red"})
    known(cluster, daemon, 1)
    refused = add(daemon, "bad")
    assert (refused.json["code"], refused.json["msg"]) == (
        7,
        (
            "cannot assign an address to default/bad: annotation cni.projectcalico.org/ipv4pools of pod default/bad is not a "
            "JSON list of texts (JSON is malformed: invalid character (byte 0)); correct it"
        ),
    )
    cluster.pod("bad", named("red"))
    wait_for(lambda: add(daemon, "bad").code == 0)
    assert pool_of(add(daemon, "bad")) == "red"


def test_a_pool_that_does_not_exist_is_told_with_its_annotation(cluster: Cluster, daemon: Daemon) -> None:
    """Code 100 says who names the pool; no other pool steps in."""
    cluster.namespace("lost", named("nowhere"))
    cluster.pod("one", of="lost")
    known(cluster, daemon, 1)
    assert add(daemon, "one", of="lost").json["msg"] == (
        "cannot assign an IPv4 address to lost/one: pool nowhere, which namespace annotation "
        "cni.projectcalico.org/ipv4pools names, does not exist; name an enabled pool of this IP version, by name or CIDR"
    )


def test_the_nodes_pod_cidr_is_a_host_local_range(cluster: Cluster, daemon: Daemon) -> None:
    """``usePodCidr`` stands for what Kubernetes gave the node; no pod is looked up for it."""
    wait_for(lambda: daemon.get("/v1/status")["kubernetes"]["pod_cidrs"])
    before = cluster.calls()
    lan = {"cniVersion": "1.0.0", "name": "lan", "type": "bridge", "ipam": {"type": "ipamd", "subnet": "usePodCidr"}}
    assert add(daemon, "any", lan).json["ips"] == [{"address": "10.9.0.2/24", "gateway": "10.9.0.1"}]
    assert cluster.calls() == before


def test_two_hundred_pods_cost_no_call(cluster: Cluster, etcd: EtcdProcess, daemon: Daemon) -> None:
    """Across pools, by annotations, with etcd stopped in its tracks: nobody is asked on the way to a reply."""
    daemon.stop()
    daemon.flags = (*daemon.flags, "--reserve-min", "80", "--reserve-max", "80", "--reserve-wait", "0.1")
    daemon.start()
    pools = ("default", "red", "green")
    for number in range(200 + len(pools)):
        cluster.pod(f"p{number}", named(pools[number % 3]))
    known(cluster, daemon, 203)
    for number in range(200, 203):  # a pool is in use from its first pod on, and gets a reserve

        def assigned(number: int = number) -> bool:
            return add(daemon, f"p{number}").code == 0

        wait_for(assigned)
    wait_for(
        lambda: all(view["available"] >= 70 for view in daemon.get("/v1/reserve") if view["pool"] in pools),
        20,
        lambda: [(view["pool"], view["available"], view["target"]) for view in daemon.get("/v1/reserve")],
    )
    before = cluster.calls()
    etcd.pause()
    try:
        for number in range(200):
            assert pool_of(add(daemon, f"p{number}")) == pools[number % 3]
    finally:
        etcd.resume()
    assert cluster.calls() == before
