"""Configurations with ranges: which ones are host-local's, what they are refused for, what is answered and kept."""

import json
import os
from collections.abc import Mapping
from pathlib import Path as File

import pytest
import trio

from ipamd.api import views
from ipamd.core.check import check
from ipamd.core.facts import RangeAssigned, RangeReleased
from tests.api.plugin_call import Path, addresses_of, call, error_of

LIMIT = 1 << 20


@pytest.fixture
def path() -> Path:
    """A node with eight addresses of an IPv4 pool in reserve, beside the ranges."""
    made = Path()
    made.supply("10.0.0.0/29", 8)
    return made


def network(version: str = "1.0.0", *, plugin: str = "host-local", **ipam: object) -> dict[str, object]:
    """A configuration of ``bridge`` with ranges."""
    return {"cniVersion": version, "name": "net", "type": "bridge", "ipam": {"type": plugin, **ipam}}


SUBNET = {"subnet": "10.1.0.0/24"}
DUAL = {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]}


# --- when -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plugin", "changes", "address"),
    [
        ("host-local", {}, "10.1.0.2/24"),
        ("ipamd", {}, "10.1.0.2/24"),
        ("calico-ipam", {}, "10.0.0.0/29"),
        ("ipamd", {"runtimeConfig": {"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}}, "10.7.0.2/24"),
    ],
)
def test_which_configurations_are_served_from_ranges(
    path: Path, plugin: str, changes: Mapping[str, object], address: str
) -> None:
    """Those of host-local, and of ipamd if they have ranges; for Calico's plugin ranges are keys without a meaning."""
    assert addresses_of(path.ask(call({**network(plugin=plugin, **SUBNET), **changes})))[0] == address


def test_nothing_of_pools_applies(path: Path) -> None:
    """Named pools, assigned IP versions and a locked datastore do not concern an ADD from ranges."""
    path.ledger.settings.locked = True
    body = network(**SUBNET, ipv4_pools=["no-such-pool"], assign_ipv4="false", assign_ipv6="true")
    assert addresses_of(path.ask(call(body))) == ["10.1.0.2/24"]
    assert path.ledger.available("four") == 8


def test_ranges_need_no_store() -> None:
    """A daemon that has never seen the store serves them, and says so to STATUS."""
    path = Path()
    path.ledger.synced = False
    path.handlers.ready = lambda: "no pool is known yet"
    assert addresses_of(path.ask(call(network(**DUAL)))) == ["10.1.0.2/24", "fd00:1::2/64"]
    assert path.ask(call(network("1.1.0", **DUAL), CNI_COMMAND="STATUS")).status == 200
    path.handlers.able = lambda: "the daemon is stopping"
    answer = error_of(path.ask(call(network("1.1.0", **DUAL), CNI_COMMAND="STATUS")))
    assert (answer["code"], answer["msg"]) == (50, "cannot serve ADD: the daemon is stopping")


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "ipam", "why"),
    [
        ({}, {}, "there is neither ipam.subnet nor ipam.ranges"),
        ({}, {"ranges": [[]]}, "range set 0 is empty"),
        ({}, {"subnet": "10.1.0.0/31"}, "subnet 10.1.0.0/31 is too small; the longest prefix is /30"),
        ({}, {**SUBNET, **DUAL}, "the ranges 10.1.0.1-10.1.0.254 and 10.1.0.1-10.1.0.254 overlap"),
        ({}, {**SUBNET, "gateway": ["10.1.0.1"]}, "ipam.gateway is a list; a range has one gateway"),
        ({}, {**SUBNET, "routes": [{"dst": "10.9.0.0"}]}, "route '10.9.0.0' is not a CIDR"),
        (
            {"cniVersion": "0.2.0"},
            {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]},
            "a result of CNI version 0.2.0 has one address of each IP version at most",
        ),
        (
            {"runtimeConfig": {"ipRanges": [[{}]]}},
            SUBNET,
            "runtimeConfig.ipRanges: Object missing required field `subnet` - at `$[0][0]`",
        ),
    ],
)
def test_a_configuration_that_is_refused(
    path: Path, changes: Mapping[str, object], ipam: Mapping[str, object], why: str
) -> None:
    """Code 7, and nothing is assigned."""
    answer = error_of(path.ask(call({**network(**ipam), **changes})))
    text = f"cannot use the network configuration: {why}; correct the CNI configuration"
    assert (answer["code"], answer["msg"]) == (7, text)
    assert path.journal == []


def test_a_requested_address_that_is_none(path: Path) -> None:
    """Code 7, as with pools."""
    answer = error_of(path.ask(call({**network(**SUBNET), "runtimeConfig": {"ips": ["10.1.0.9/x"]}})))
    text = "cannot assign the requested address: runtimeConfig.ips: '10.1.0.9/x' is not an address; correct it"
    assert (answer["code"], answer["msg"]) == (7, text)
    assert path.journal == []


def test_a_range_set_without_a_free_address(path: Path) -> None:
    """Code 106, as HTTP 409."""
    full = {"subnet": "10.1.0.0/30"}
    path.ask(call(network(**full)))
    response = path.ask(call(network(**full), CNI_CONTAINERID="c2"))
    assert response.status == 409
    assert error_of(response)["code"] == 106


# --- what is answered -----------------------------------------------------------------------------------------


def test_routes_in_the_newest_version(path: Path) -> None:
    """host-local 1.1.1 does not speak 1.1.0: the form of 1.0.0, with the routes' new fields."""
    route = {"dst": "10.9.8.7/16", "gw": "10.1.0.1", "mtu": 1400, "priority": 5}
    answer = json.loads(path.ask(call(network("1.1.0", **SUBNET, routes=[route]))).body)
    assert answer == {
        "cniVersion": "1.1.0",
        "ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}],
        "routes": [route],
        "dns": {},
    }


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda _file: None, "No such file or directory"),
        (os.mkdir, f"it is no file of at most {LIMIT} bytes"),
        (os.mkfifo, f"it is no file of at most {LIMIT} bytes"),
        (lambda file: file.write_bytes(b"#" * (LIMIT + 1)), f"it is no file of at most {LIMIT} bytes"),
    ],
)
def test_dns_settings_that_cannot_be_read(path: Path, tmp_path: File, make: object, why: str) -> None:
    """Neither a missing file nor a pipe nor a huge file assigns an address or keeps the daemon waiting."""
    file = tmp_path / "resolv.conf"
    assert callable(make)
    make(file)
    answer = error_of(path.ask(call(network(**SUBNET, resolvConf=str(file)))))
    assert answer["code"] == 7
    assert answer["msg"] == (
        f"cannot use the network configuration: ipam.resolvConf {file} cannot be read: {why}; correct it"
    )
    assert path.journal == []


@pytest.mark.parametrize(
    ("args", "changes"),
    [
        ("IP=10.1.0.9", {}),
        ("IP=10.1.0.9/24", {"args": {"cni": {"ips": ["10.1.0.9"]}}}),
        ("", {"args": {"cni": {"ips": ["10.1.0.9"]}}}),
        ("", {"runtimeConfig": {"ips": ["::ffff:10.1.0.9"]}}),
    ],
)
def test_where_an_address_can_be_requested(path: Path, args: str, changes: Mapping[str, object]) -> None:
    """IP= in CNI_ARGS, args.cni.ips and the ips capability; the same address twice is one request."""
    assert addresses_of(path.ask(call({**network(**SUBNET), **changes}, CNI_ARGS=args))) == ["10.1.0.9/24"]


# --- the node's CIDR ------------------------------------------------------------------------------------------


class Kubernetes:
    """Knows the node's CIDRs from the start, or tells them to who waits."""

    def __init__(self, *known: str, told: tuple[str, ...] = ()) -> None:
        self.known, self.told = known, told

    def pod_cidrs(self) -> tuple[str, ...]:
        """What is known."""
        return self.known

    async def wait_for_pod_cidrs(self) -> tuple[str, ...]:
        """A second later."""
        await trio.sleep(1)
        return self.told


def test_the_nodes_cidr_as_subnet(path: Path) -> None:
    """The subnets usePodCidr and usePodCidrIPv6, in any case and also in ranges: the node's CIDR of that IP version."""
    path.handlers.ranges.cidrs = Kubernetes("fd00:244::/64", "10.244.1.0/24")
    both = {"ranges": [[{"subnet": "usePodCIDR"}], [{"subnet": "usePodCidrIPv6"}]]}
    assert addresses_of(path.ask(call(network(**both)))) == ["10.244.1.2/24", "fd00:244::2/64"]
    top = network(subnet="usePodCidr")
    assert addresses_of(path.ask(call(top, CNI_CONTAINERID="c2"))) == ["10.244.1.3/24"]


def test_the_nodes_cidr_without_kubernetes(path: Path) -> None:
    """Code 7: nobody asks Kubernetes, so waiting would not help."""
    answer = error_of(path.ask(call(network(subnet="usePodCidr"))))
    assert (answer["code"], answer["msg"]) == (
        7,
        (
            "cannot use the network configuration: subnet usePodCidr is what Kubernetes says, which is not asked; "
            "set kubernetes.config, or name the subnet"
        ),
    )


def test_a_node_without_a_cidr_of_the_ip_version(path: Path) -> None:
    """Code 7: Kubernetes never adds one."""
    path.handlers.ranges.cidrs = Kubernetes("10.244.1.0/24")
    answer = error_of(path.ask(call(network(subnet="usePodCidrIPv6"))))
    assert (answer["code"], answer["msg"]) == (
        7,
        (
            "cannot use the network configuration: subnet is usePodCidrIPv6, and this node's podCIDRs are "
            "10.244.1.0/24; correct the CNI configuration"
        ),
    )
    assert path.journal == []


async def test_an_add_waits_for_the_nodes_cidr(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Until Kubernetes tells it, which it does soon after the daemon's start; an ADD with a subnet does not wait."""
    path.handlers.ranges.cidrs = Kubernetes(told=("10.244.1.0/24",))
    assert path.ask(call(network(**SUBNET), CNI_CONTAINERID="c2")).status == 200
    assert addresses_of(await path.answer(call(network(subnet="usePodCidr")))) == ["10.244.1.2/24"]
    assert path.log[-1] == "observe 0"


async def test_the_nodes_cidr_does_not_come(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    """Code 11 then, and 50 for STATUS at once."""
    path.handlers.ranges.cidrs = Kubernetes()
    body = network("1.1.0", subnet="usePodCidrIPv6")
    answer = error_of(await path.answer(call(body)))
    text = (
        "cannot assign an address: subnet is usePodCidrIPv6, and Kubernetes has not told this node's podCIDRs yet; "
        "the runtime will try again"
    )
    assert (answer["code"], answer["msg"]) == (11, text)
    status = error_of(path.ask(call(body, CNI_COMMAND="STATUS")))
    assert (status["code"], status["msg"]) == (50, f"cannot serve ADD: {text}")
    assert path.journal == []


# --- what is kept ---------------------------------------------------------------------------------------------


def test_an_add_and_its_del_are_written_down_before_they_are_told(path: Path) -> None:
    """The fact reaches the state file before the reply, and a repeated ADD has nothing to write."""
    first = path.ask(call(network(**DUAL)))
    assert path.ask(call(network(**DUAL))).body == first.body
    path.ask(call(network(**DUAL), CNI_COMMAND="DEL"))
    assert path.log == [
        "append RangeAssigned", "wake", "observe 0", "observe 0", "append Released RangeReleased", "wake", "observe 0",
    ]  # fmt: skip
    assigned = path.journal[0]
    assert isinstance(assigned, RangeAssigned)
    assert assigned.addresses == ("10.1.0.2", "fd00:1::2")
    assert assigned.labels == {"namespace": "default", "pod": "web"}


def test_a_second_del_asks_nobody(path: Path) -> None:
    """Runtimes delete more than once: with ranges nothing is looked up in the store, as it is with pools."""
    for body, looked_up in ((network(**SUBNET), 0), (network(plugin="ipamd"), 2)):
        path.ask(call(network(**SUBNET)))
        path.ask(call(body, CNI_COMMAND="DEL"))
        path.ask(call(body, CNI_COMMAND="DEL"))
        assert len(path.ledger.strays) == looked_up


def test_an_add_that_cannot_be_written_down_leaves_nothing(path: Path) -> None:
    """A full disk refuses the ADD with code 5; a DEL succeeds all the same."""
    path.full = True
    assert error_of(path.ask(call(network(**SUBNET))))["code"] == 5
    assert (path.ledger.ranges.holdings, check(path.ledger)) == ({}, [])
    path.full = False
    path.ask(call(network(**SUBNET)))
    path.full = True
    assert path.ask(call(network(**SUBNET), CNI_COMMAND="DEL")).status == 200
    assert any(isinstance(fact, RangeReleased) for fact in path.owed)
    assert path.ledger.ranges.holdings == {}


async def test_a_reply_waits_for_the_durability_that_was_asked_for(autojump_clock: trio.testing.MockClock) -> None:
    """An ADD from ranges is told only when what ``durability`` asks for is reached."""
    path = Path(durable=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(path.answer, call(network(**SUBNET)))
        await trio.testing.wait_all_tasks_blocked()
        assert path.log[-1] == "durable begins RangeAssigned"
        path.written.set()
    assert path.log[-2:] == ["durable ends", "observe 0"]


def test_check_of_an_attachment_with_ranges(path: Path) -> None:
    """CHECK succeeds while it has its addresses and prevResult has them too; else 108, and 3 if it has none."""
    answered = json.loads(path.ask(call(network(**DUAL))).body)
    body = {**network(**DUAL), "prevResult": answered}
    assert path.ask(call(body, CNI_COMMAND="CHECK")).status == 200
    answered["ips"][0]["address"] = "10.1.0.9/24"
    answer = error_of(path.ask(call({**body, "prevResult": answered}, CNI_COMMAND="CHECK")))
    assert (answer["code"], "it has 10.1.0.2, fd00:1::2 here" in str(answer["msg"])) == (108, True)
    path.ask(call(body, CNI_COMMAND="DEL"))
    assert error_of(path.ask(call(body, CNI_COMMAND="CHECK")))["code"] == 3


def test_garbage_collection_releases_ranges(path: Path) -> None:
    """What the runtime no longer knows of a network is released after a minute, and an ADD that comes late refused."""
    for container in ("c1", "c2"):
        path.ask(call(network(**SUBNET), CNI_CONTAINERID=container))
    path.ask(call({**network(**SUBNET), "name": "other"}))
    body = {**network("1.1.0", **SUBNET), "cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}
    path.ask(call(body, CNI_COMMAND="GC"))
    assert len(path.ledger.ranges.holdings) == 3, "all of them are young"
    aged = {a: RangeAssigned(a, held.addresses, {}, held.at - 90 * 10**9) for a, held in _holdings(path)}
    path.ledger.ranges.holdings.update(aged)
    path.ask(call(body, CNI_COMMAND="GC"))
    assert [(a.network, a.container) for a, _held in _holdings(path)] == [("net", "c2"), ("other", "c1")]
    assert check(path.ledger) == []
    assert error_of(path.ask(call(network(**SUBNET))))["code"] == 103


def test_ranges_among_the_allocations(path: Path) -> None:
    """GET /v1/allocations shows each address with its attachment and pod; there is no block, nor a store to hold it."""
    path.ask(call(network(**DUAL)))
    four, six = views.allocations(path.ledger)
    assert isinstance(four, views.RangeAllocationView)
    assert (four.address, four.network, four.container, four.interface) == ("10.1.0.2", "net", "c1", "eth0")
    assert (four.namespace, four.pod, six.address) == ("default", "web", "fd00:1::2")


def _holdings(path: Path) -> list[tuple[object, RangeAssigned]]:
    return list(path.ledger.ranges.holdings.items())
