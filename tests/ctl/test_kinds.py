"""The kinds beside pools: reservations, configuration, nodes and their labels, affinities of blocks."""

import json
import re
from typing import Any

import pytest
import yaml

from tests.ctl.places import Ctl, capture

CONFIG = "/calico/ipam/v2/config"
NODES = "/calico/resources/v3/projectcalico.org/nodes/"
VERSION = re.compile(r'resourceVersion: "\d+"')


def captured(name: str, *argv: str) -> str:
    """What ``calicoctl`` printed."""
    return next(step["stdout"] for step in capture(name)["steps"] if step.get("argv") == ["calicoctl", *argv])


def resource(kind: str, name: str, spec: object = None, **metadata: object) -> str:
    """A manifest."""
    given = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name, **metadata}}
    return json.dumps({**given, **({} if spec is None else {"spec": spec})})


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("pools", ("get", "ipreservation", "-o", "yaml")),
        ("basic", ("get", "ipamconfig", "-o", "yaml")),
        ("basic", ("get", "node", "node-a", "-o", "yaml")),
    ],
)
def test_yaml_is_calicos(ctl: Ctl, name: str, argv: tuple[str, ...]) -> None:
    """Each kind in YAML is the captured one but for the revisions."""
    ctl.load(capture(name)["etcd"])
    printed, expected = ctl.run(*argv).out, captured(name, *argv)
    assert VERSION.sub("", printed) == VERSION.sub("", expected)


def test_what_is_shown_can_be_applied(ctl: Ctl) -> None:
    """YAML of every captured record of these kinds, applied again, changes nothing."""
    for name in ("pools", "limits", "basic"):
        ctl.load(capture(name)["etcd"])
    before = ctl.place.all()
    for kind in ("ipreservations", "ipamconfigs", "nodes"):
        assert ctl.ok("apply -f -", ctl.ok(f"get {kind} -o yaml")).startswith("Successfully applied")
    assert ctl.place.all() == before


def test_tables(ctl: Ctl) -> None:
    """Reservations and nodes with Calico's columns, the configuration with its own."""
    ctl.load(capture("pools")["etcd"])
    ctl.load({CONFIG: capture("limits")["etcd"][CONFIG]})
    assert ctl.ok("get reservations -o wide") == (
        "NAME   CIDRS                        \nresv   10.10.0.0/30,10.10.1.16/29   \n\n"
    )
    assert ctl.ok("get nodes -o wide").splitlines()[1] == "node-a   (default)   172.18.0.2/16          "
    assert ctl.ok("get ipamconfig").splitlines()[1].split() == ["default", "true", "true", "2"]


def test_reservations(ctl: Ctl) -> None:
    """A reservation names CIDRs and single addresses, of either IP version."""
    cidrs = ["10.0.0.5/30", "10.0.0.9", "fd00::/120"]
    ctl.ok("create -f -", resource("IPReservation", "r", {"reservedCIDRs": cidrs}))
    assert json.loads(ctl.ok("get ipreservation r -o json"))["spec"] == {"reservedCIDRs": cidrs}
    done = ctl("apply -f -", resource("IPReservation", "r", {"reservedCIDRs": ["10.0.0.0/33"]}))
    told = "spec.reservedCIDRs has '10.0.0.0/33', which is no address and no CIDR; write 10.0.0.1 or 10.0.0.0/30"
    assert done == (1, "", f"ipamctl: cannot apply IPReservation r: {told}\n")
    assert ctl.ok("delete ipreservation r") == "Successfully deleted 1 'IPReservation' resource(s)\n"
    assert ctl.place.all() == {}


def test_the_configuration_is_calicos_record(ctl: Ctl) -> None:
    """It is written as Calico's own program writes it, and fields of it that are not known stay."""
    spec = {"strictAffinity": True, "maxBlocksPerHost": 2, "ipCooldownSeconds": 60}
    ctl.ok("apply -f -", resource("IPAMConfiguration", "default", spec))
    assert ctl.place.all() == {CONFIG: capture("limits")["etcd"][CONFIG].encode()}
    ctl.place.put(CONFIG, b'{"strict_affinity":false,"newer":7}')
    ctl.ok("""patch ipamconfig default -p '{"spec":{"ipCooldownSeconds":5,"autoAllocateBlocks":true}}'""")
    written = '{"strict_affinity":false,"auto_allocate_blocks":true,"kubeVirtVMAddressPersistence":"Enabled",'
    assert ctl.place.all() == {CONFIG: f'{written}"ipCooldownSeconds":5,"newer":7}}'.encode()}
    crd = {"apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMConfig", "metadata": {"name": "default"}, "spec": {}}
    ctl.ok("apply -f -", json.dumps(crd))
    assert json.loads(ctl.place.all()[CONFIG])["auto_allocate_blocks"] is True
    ctl.ok("delete ipamconfig default")
    assert ctl.place.all() == {}


CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "metadata.name must be default: a cluster has one configuration": ("other", {}),
    "spec.maxBlocksPerHost needs spec.strictAffinity: true, ": ("default", {"maxBlocksPerHost": 2}),
    "spec.autoAllocateBlocks: false needs spec.strictAffinity: true, ": ("default", {"autoAllocateBlocks": False}),
    "spec.ipCooldownSeconds must not be negative": ("default", {"ipCooldownSeconds": -1}),
    "spec.strictaffinity is not known; did you mean strictAffinity?": ("default", {"strictaffinity": True}),
}


@pytest.mark.parametrize("told", CONFIGURATIONS)
def test_what_is_no_configuration(ctl: Ctl, told: str) -> None:
    """Settings that would do the opposite of what they seem to are refused, as by Calico's own program."""
    name, spec = CONFIGURATIONS[told]
    done = ctl("apply -f -", resource("IPAMConfiguration", name, spec))
    assert done.code == 1
    assert done.err.startswith(f"ipamctl: cannot apply IPAMConfiguration {name}: {told}")


def test_labels_of_a_node(ctl: Ctl) -> None:
    """``label`` sets and removes labels of a node, and changes one only if told to; the rest of the record stays."""
    ctl.load({NODES + "node-a": capture("pools")["etcd"][NODES + "node-a"]})
    before = json.loads(ctl.place.all()[NODES + "node-a"])
    assert ctl.ok("label nodes node-a type=test zone=b") == (
        "Successfully set label type on nodes node-a\nSuccessfully set label zone on nodes node-a\n"
    )
    done = ctl("label node node-a rack=1")
    told = "cannot label Node node-a: it has rack=0 already; change it with --overwrite"
    assert done == (1, "", f"ipamctl: {told}\n")
    ctl.ok("label node node-a rack=1 --overwrite")
    assert ctl.ok("label node node-a zone-") == "Successfully removed label zone on nodes node-a\n"
    before["metadata"]["labels"] = {"rack": "1", "type": "test"}
    assert json.loads(ctl.place.all()[NODES + "node-a"]) == before
    assert ctl("label node node-x a=b").code == 1
    assert ctl("label node node-a banana").code == 2


def test_a_node_is_not_deleted(ctl: Ctl) -> None:
    """More than its record would have to go."""
    ctl.load(capture("pools")["etcd"])
    done = ctl("delete node node-a")
    assert done.code == 1
    assert "use `calicoctl delete node`, or delete the node in Kubernetes" in done.err


def test_a_node_keeps_what_is_not_said(ctl: Ctl) -> None:
    """Labels applied to a node leave its specification alone."""
    ctl.load(capture("pools")["etcd"])
    ctl.ok("apply -f -", resource("Node", "node-a", labels={"rack": "9"}))
    node = json.loads(ctl.place.all()[NODES + "node-a"])
    assert (node["metadata"]["labels"], node["spec"]["bgp"]) == ({"rack": "9"}, {"ipv4Address": "172.18.0.2/16"})


AFFINITIES = "/calico/ipam/v2/host/calico-ipam-{}/ipv{}/block/{}"


@pytest.fixture
def page(ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """The affinities of the documentation's page, two minutes old, and one that is softly deleted."""
    blocks = {"control-plane": "192.168.0.64-26", "worker": "192.168.1.64-26", "worker2": "192.168.2.0-26"}
    for node, block in blocks.items():
        ctl.place.put(AFFINITIES.format(node, 4, block), b'{"state":"confirmed","deleted":false}')
        cidr = block.replace("-", "/")
        record = {"cidr": cidr, "affinity": f"host:calico-ipam-{node}", "affinity_claim_time": "2026-11-20T10:00:00Z"}
        free = {"allocations": [None] * 64, "unallocated": [*range(64)], "attributes": []}
        ctl.place.put(f"/calico/ipam/v2/assignment/ipv4/block/{block}", json.dumps({**record, **free}).encode())
    ctl.place.put(AFFINITIES.format("worker", 4, "192.168.9.0-26"), b'{"state":"confirmed","deleted":true}')
    monkeypatch.setattr("ipamd.ctl.resources.blockaffinity.time", lambda: 1795168800.0 + 120 + 0.5)
    return ctl


def test_affinities_as_a_table(page: Ctl) -> None:
    """NAME and AGE, as kubectl prints them."""
    assert page.ok("get blockaffinities") == (
        "NAME                                  AGE\n"
        "ipam-block-affinity-192-168-0-64-26   2m\n"
        "ipam-block-affinity-192-168-1-64-26   2m\n"
        "ipam-block-affinity-192-168-2-0-26    2m\n"
    )


def test_affinities_as_yaml(page: Ctl) -> None:
    """A list with the specification of the page: cidr, deleted, node, state."""
    shown = yaml.safe_load(page.ok("get blockaffinities -o yaml"))
    assert {name: shown[name] for name in ("apiVersion", "kind")} == {"apiVersion": "v1", "kind": "List"}
    first = shown["items"][0]
    assert (first["apiVersion"], first["kind"]) == ("crd.projectcalico.org/v1", "BlockAffinity")
    assert first["metadata"]["name"] == "ipam-block-affinity-192-168-0-64-26"
    assert first["spec"] == {
        "cidr": "192.168.0.64/26", "deleted": False, "node": "calico-ipam-control-plane", "state": "confirmed",
    }  # fmt: skip


def test_affinities_by_a_template(page: Ctl) -> None:
    """The page's own line."""
    template = r'{range .items[*]}{.metadata.name}{"\t"}{.spec.node}{"\t"}{.spec.cidr}{"\n"}{end}'
    assert page.run("get", "blockaffinities", f"-o=jsonpath={template}").out == (
        "ipam-block-affinity-192-168-0-64-26\tcalico-ipam-control-plane\t192.168.0.64/26\n"
        "ipam-block-affinity-192-168-1-64-26\tcalico-ipam-worker\t192.168.1.64/26\n"
        "ipam-block-affinity-192-168-2-0-26\tcalico-ipam-worker2\t192.168.2.0/26\n"
    )


def test_an_affinity_by_its_name(ctl: Ctl) -> None:
    """One affinity alone; of a block that is not there the age is not known; a virtual owner is told."""
    ctl.place.put("/calico/ipam/v2/virtual/lb/ipv6/block/fd00::-122", b"")
    assert ctl.ok("get blockaffinity -o wide").splitlines()[1].split() == [
        "ipam-block-affinity-fd00---122", "<unknown>", "lb", "fd00::/122", "confirmed",
    ]  # fmt: skip
    one = json.loads(ctl.ok("get blockaffinities.crd.projectcalico.org ipam-block-affinity-fd00---122 -o json"))
    assert one["spec"]["type"] == "virtual"
    assert ctl("get blockaffinity nope").code == 1


@pytest.mark.parametrize(
    "line", ["delete blockaffinity x", "patch blockaffinity x -p {}", "label blockaffinity x a=b", "apply -f -"]
)
def test_affinities_are_the_nodes(ctl: Ctl, line: str) -> None:
    """Nobody changes an affinity by hand."""
    done = ctl(line, resource("BlockAffinity", "x", {}))
    verb, _, _ = line.partition(" ")
    assert done.code == 1
    assert f"cannot {verb} BlockAffinity: it can only be looked at; nodes claim blocks themselves" in done.err
