"""host-local mode against the real ``host-local`` plugin: random configurations, random histories, the same answers."""

import ipaddress
import json
import tempfile
from collections.abc import Callable
from pathlib import Path as Directory

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipamd.api.cni import NetworkConfig
from ipamd.api.hostlocal import read_plan
from ipamd.core.check import check
from ipamd.core.clock import Now
from ipamd.core.errors import RefusedError
from ipamd.core.range_ledger import RangeLedger
from tests.api.host_local import HostLocal
from tests.api.plugin_call import Path, call

pytestmark = pytest.mark.real

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")
"""Those that host-local 1.1.1 speaks."""

Draw = Callable[[st.SearchStrategy[object]], object]
Config = dict[str, object]


def subnets(family: int) -> st.SearchStrategy[str]:
    """Small subnets: some of them overlap, are too small or have host bits."""
    bases = ("10.1.0.", "10.1.1.", "10.1.2.", "10.1.3.") if family == 4 else ("fd00::", "fd00:1::", "fd00:2::")
    lengths = (30, 30, 30, 29, 29, 29, 28, 24, 31) if family == 4 else (126, 126, 125, 125, 124, 64, 127)
    ends = st.sampled_from(["0"] * 8 + (["8", "16"] if family == 4 else ["8", "10"]))
    return st.builds("{}{}/{}".format, st.sampled_from(bases), ends, st.sampled_from(lengths))


@st.composite
def ranges(draw: Draw, family: int) -> Config:
    """A range: mostly of few addresses, some of them wrong."""
    subnet = draw(subnets(family))
    assert isinstance(subnet, str)
    made: Config = {"subnet": subnet}
    base = ipaddress.ip_interface(subnet).ip
    nearby = st.integers(-1, 7).map(lambda offset: str(base + offset))
    if draw(st.integers(0, 3)) == 0:
        made["rangeStart"] = draw(st.one_of(st.sampled_from([str(base), str(base + 2)]), nearby))
    if draw(st.integers(0, 1)) == 0:
        made["rangeEnd"] = draw(st.one_of(st.sampled_from([str(base + 3), str(base + 2)]), nearby))
    if made.get("rangeStart") == str(ipaddress.ip_interface(subnet).network.broadcast_address):
        made.setdefault("rangeEnd", made["rangeStart"])  # without it host-local goes on after the subnet's end
    if draw(st.integers(0, 3)) == 0:
        made["gateway"] = draw(st.one_of(nearby, st.sampled_from(["", "192.0.2.1", "fe80::1", "::ffff:10.1.0.2"])))
    return made


def range_sets() -> st.SearchStrategy[list[Config]]:
    """A range set: one or more ranges, of one IP version as a rule."""
    of_four, of_six = (st.lists(ranges(family), min_size=1, max_size=2) for family in (4, 6))
    mixed = st.lists(st.one_of(ranges(4), ranges(6)), max_size=2)
    return st.integers(0, 9).flatmap(lambda chance: mixed if chance == 0 else of_four if chance < 7 else of_six)


ROUTES = st.lists(
    st.sampled_from([
        {"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.9.8.7/16", "gw": "10.1.0.1"}, {"dst": "FD01:0::1/048"},
        {"dst": "::ffff:10.0.0.0/104", "gw": "FE80::0:1"}, {"dst": "192.0.2.0/24", "gw": ""},
    ]),
    max_size=3,
)  # fmt: skip
RESOLV = "; none\n# of these\nnameserver 192.0.2.53 ignored\nnameserver\nnameserver fd00::53\n\
domain a.example\ndomain b.example\nsearch a.example b.example\nsearch c.example\noptions ndots:5\n\toptions a<b&c>d\n"


@st.composite
def configs(draw: Draw) -> Config:
    """A network configuration of host-local."""
    ipam: Config = {"type": "host-local"}
    if draw(st.integers(0, 2)) == 0:
        ipam.update(draw(ranges(4)))  # type: ignore[arg-type]
    sets = draw(st.lists(range_sets(), min_size=draw(st.sampled_from([0, 1, 1, 1, 1])), max_size=2))
    if sets:
        ipam["ranges"] = sets
    if draw(st.booleans()):
        ipam["routes"] = draw(ROUTES) if draw(st.integers(0, 19)) else [{"dst": "10.0.0.0"}]
    if draw(st.booleans()):
        ipam["resolvConf"] = "resolv.conf"
    return {"cniVersion": draw(st.sampled_from(VERSIONS)), "name": "net", "ipam": ipam}


def asked(config: Config) -> st.SearchStrategy[list[str]]:
    """Addresses to request: none as a rule, or one or two near the ranges."""
    text = json.dumps(config)
    bases = [base for base in ("10.1.0.0", "10.1.1.0", "fd00::", "fd00:1::") if base in text] or ["1.1.1.1"]
    near = st.builds(lambda base, offset: str(ipaddress.ip_address(base) + offset), st.sampled_from(bases), INDEX)
    return st.integers(0, 5).flatmap(lambda chance: st.tuples(near).map(list) if chance == 0 else st.just([]))


INDEX = st.integers(0, 9)
WHO = st.tuples(st.sampled_from([f"c{number}" for number in range(8)]), st.sampled_from(["eth0", "eth0", "net1"]))


class Ticking(Path):
    """A request path on which time passes: an ADD that follows a DEL begins after it."""

    ticks = 0

    def now(self) -> Now:  # type: ignore[override]
        """A second later each time."""
        self.ticks += 1
        return Now(self.ticks * 1_000_000_000, self.ticks * 1_000_000_000)


class Twins:
    """The plugin and our handlers, asked the same."""

    def __init__(self, directory: Directory) -> None:
        (directory / "resolv.conf").write_text(RESOLV)
        self._directory = directory
        self.theirs, self.ours = HostLocal(directory / "state"), Ticking()
        self.held: dict[tuple[str, str], Config] = {}

    def ask(self, verb: str, config: Config, container: str, interface: str, wanted: list[str]) -> None:
        """Ask both; their answers must be the same."""
        body = json.loads(json.dumps(config).replace("resolv.conf", str(self._directory / "resolv.conf")))
        if wanted:
            body["runtimeConfig"] = {"ips": wanted}
        environment = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_IFNAME": interface}
        ours = self.ours.ask(call(body, environment))
        theirs = self.theirs.call(body, environment)
        if verb == "ADD":
            assert (ours.body if ours.status == 200 else None) == theirs, ours.body
        elif verb == "DEL":
            assert ours.status == 200, "unlike theirs, which wants a configuration it understands"
        if theirs is not None and verb == "ADD":
            self.held[container, interface] = config
        elif theirs is not None:
            self.held.pop((container, interface), None)

    def restart(self) -> None:
        """Start ours anew from its checkpoint."""
        facts = list(self.ours.ledger.ranges.checkpoint())
        self.ours.ledger.ranges = RangeLedger()
        for fact in facts:
            self.ours.ledger.apply(fact)


def usable(config: Config) -> bool:
    """Whether our own reading accepts the configuration: that host-local agrees is the first test's subject."""
    try:
        read_plan(msgspec.convert(config, NetworkConfig), lambda: None)
    except RefusedError:
        return False
    return True


@given(st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_same_verdict_on_a_configuration(data: st.DataObject) -> None:
    """The first ADD of a configuration succeeds or fails as host-local's does, with the same bytes."""
    config = data.draw(configs())
    with tempfile.TemporaryDirectory() as directory:
        Twins(Directory(directory)).ask("ADD", config, "c1", "eth0", data.draw(asked(config)))


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_same_answers_through_a_history(data: st.DataObject) -> None:
    """Every ADD in a history of several containers, configurations and restarts of ours: the same outcome and bytes."""
    choices = data.draw(st.lists(configs().filter(usable), min_size=1, max_size=2))
    with tempfile.TemporaryDirectory() as directory:
        twins = Twins(Directory(directory))
        for _ in range(data.draw(st.sampled_from([10, 25]))):
            who = data.draw(WHO)
            config = twins.held.get(who) or data.draw(st.sampled_from(choices))
            if who in twins.held or data.draw(st.integers(0, 19)) == 0:
                twins.ask("DEL", config, *who, [])
            else:
                twins.ask("ADD", config, *who, data.draw(asked(config)))
            if data.draw(st.integers(0, 5)) == 0:
                twins.restart()
            assert check(twins.ours.ledger) == []
