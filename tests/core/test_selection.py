"""Which pools serve a request, and what is said when none does."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.errors import Code, RefusedError
from ipamd.core.facts import Attachment
from ipamd.core.pool import Pool, decode_pool
from ipamd.core.records import RecordError
from ipamd.core.request import AddRequest
from ipamd.core.selection import Selection
from ipamd.core.settings import Settings

REQUEST = AddRequest(Attachment("k8s-pod-network", "c", "eth0"), (4,), {"namespace": "default", "pod": "web-1"}, 1)


def pool(name: str, cidr: str = "10.0.0.0/16", **spec: object) -> Pool:
    """A pool as its record has it."""
    return decode_pool(msgspec.json.encode({"metadata": {"name": name}, "spec": {"cidr": cidr, **spec}}))


def request(*named: str, family: int = 4, namespace: dict[str, str] | None = None, by: str = "") -> AddRequest:
    """An ADD of default/web-1 that names these pools, of a namespace with these labels."""
    asked = msgspec.structs.replace(REQUEST, named={family: named} if named else {}, namespace_labels=namespace)
    return msgspec.structs.replace(asked, named_by={family: by}) if by else asked


def chosen(
    pools: list[Pool], asked: AddRequest = REQUEST, family: int = 4, labels: dict[str, str] | None = None
) -> list[str]:
    """The names of the pools that an ADD on node n3 tries, in order."""
    return [pool.name for pool in Selection(pools, "n3", labels or {}).choose(asked, family)]


def refusal(
    pools: list[Pool], asked: AddRequest = REQUEST, family: int = 4, labels: dict[str, str] | None = None
) -> str:
    """The text with which no pool is chosen, without its beginning."""
    with pytest.raises(RefusedError) as refused:
        chosen(pools, asked, family, labels)
    assert refused.value.code is Code.NO_POOL
    start = f"cannot assign an IPv{family} address to default/web-1: "
    assert refused.value.msg.startswith(start)
    return refused.value.msg.removeprefix(start)


def test_pools_are_tried_in_name_order() -> None:
    """Every enabled automatic pool that matches serves, in the order of the names, not of their creation."""
    pools = [pool("c", "10.3.0.0/16"), pool("a", "10.1.0.0/16"), pool("b", "10.2.0.0/16", disabled=True)]
    assert chosen(pools) == ["a", "c"]


def test_only_pools_of_the_ip_version_serve() -> None:
    """An IPv6 pool never serves an IPv4 address, not even when it is named."""
    pools = [pool("a"), pool("b", "fd00::/64")]
    assert chosen(pools, family=6) == ["b"]
    assert chosen(pools) == ["a"]
    assert "pool b, which the request names, does not exist" in refusal(pools, request("b"))


def test_the_nodes_labels_choose_the_pools() -> None:
    """A pool serves the nodes that its nodeSelector selects."""
    pools = [pool("rack-0", nodeSelector='rack == "0"'), pool("rack-1", "10.1.0.0/16", nodeSelector='rack == "1"')]
    assert chosen(pools, labels={"rack": "0"}) == ["rack-0"]
    assert chosen(pools, labels={"rack": "1"}) == ["rack-1"]


def test_the_namespaces_labels_choose_the_pools() -> None:
    """A pool with a namespaceSelector serves the namespaces that it selects, before others if its name comes first."""
    pools = [pool("all"), pool("a-team", "10.1.0.0/16", namespaceSelector="team == 'x'", allowedUses=["Workload"])]
    assert chosen(pools, request(namespace={"team": "x"})) == ["a-team", "all"]
    assert chosen(pools, request(namespace={"team": "y"})) == ["all"]
    assert chosen(pools, request(namespace=None)) == ["all"]


@pytest.mark.parametrize("selector", ["", "all()", " all( ) "])
def test_a_namespace_selector_that_selects_everything_needs_no_labels(selector: str) -> None:
    """Without Kubernetes, a pool that is meant for all namespaces serves."""
    assert chosen([pool("p", namespaceSelector=selector)]) == ["p"]


def test_a_named_pool_serves_whatever_its_selectors() -> None:
    """A pool named by the request serves although it is Manual, selects others, or has a selector nobody can read."""
    pools = [
        pool("auto"),
        pool("manual", "10.1.0.0/16", assignmentMode="Manual"),
        pool("else", "10.2.0.0/16", nodeSelector="!all()", namespaceSelector="has(x)"),
        pool("bad", "10.3.0.0/16", nodeSelector="rack = 1"),
    ]
    assert chosen(pools, request("manual", "else", "bad", "manual")) == ["bad", "else", "manual"]
    assert chosen(pools) == ["auto"]


def test_a_named_pool_may_be_named_by_its_cidr() -> None:
    """By the CIDR in any spelling; host bits do not matter, as in Calico."""
    pools = [pool("four"), pool("six", "fd00::/64")]
    assert chosen(pools, request("10.0.0.0/16")) == chosen(pools, request("10.0.3.4/16")) == ["four"]
    assert chosen(pools, request("FD00:0::/64", family=6), 6) == ["six"]
    assert "10.0.0.0/17" in refusal(pools, request("10.0.0.0/17"))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"disabled": True}, "pool rack-0 is disabled; enable a pool"),
        ({"assignmentMode": "Manual"}, "pool rack-0 is Manual (only for requests that name it); name a pool"),
        ({"allowedUses": ["Tunnel"]}, "pool rack-0 is not allowed for use Workload (allowedUses: Tunnel); create a pool"),
        ({"nodeSelector": 'rack == "0"'}, 'pool rack-0 excludes node n3 by its nodeSelector (rack == "0"); label the node'),
        ({"namespaceSelector": "has(t)"}, "pool rack-0 excludes namespace default by its namespaceSelector (has(t)); label the namespace"),
        ({"nodeSelector": "rack = 0"}, 'pool rack-0 serves nobody: its nodeSelector (rack = 0) cannot be read: expected ==, !=, in, not in, contains, starts with or ends with at character 6, not "= 0"; correct the selector'),
        ({"namespaceSelector": "t"}, "pool rack-0 serves nobody: its namespaceSelector (t) cannot be read: expected ==, !=, in, not in, contains, starts with or ends with at character 2, not the end; correct the selector"),
        ({"disabled": True, "assignmentMode": "Manual"}, "pool rack-0 is disabled; enable a pool"),
        ({"nodeSelector": "has(x)", "namespaceSelector": "has(t)"}, "pool rack-0 excludes node n3 by its nodeSelector (has(x)); label the node"),
    ],
)  # fmt: skip
def test_the_error_says_what_excluded_the_only_pool(spec: dict[str, object], says: str) -> None:
    """The pool with its reason, and what to do."""
    assert refusal([pool("rack-0", **spec)], request(namespace={})) == says


def test_the_error_says_that_labels_of_namespaces_are_not_known() -> None:
    """Nobody guesses whether a namespace has labels: without Kubernetes the pool does not serve."""
    assert refusal([pool("p", namespaceSelector="!has(t)")]) == (
        "pool p has a namespaceSelector (!has(t)), and the labels of namespaces are not known because Kubernetes is not "
        "configured; configure Kubernetes"
    )


def test_the_error_accounts_for_all_pools_in_name_order() -> None:
    """Every pool of the IP version with its reason, and each remedy once; those of the other version do not matter."""
    pools = [
        pool("rack-1", nodeSelector='rack == "1"'),
        pool("six", "fd00::/64"),
        pool("old", "10.1.0.0/16", disabled=True),
        pool("rack-0", "10.2.0.0/16", nodeSelector='rack == "0"'),
    ]
    assert refusal(pools) == (
        'pool old is disabled; pool rack-0 excludes node n3 by its nodeSelector (rack == "0"); '
        'pool rack-1 excludes node n3 by its nodeSelector (rack == "1"); enable a pool or label the node'
    )


def test_a_pool_whose_record_cannot_be_understood_is_told() -> None:
    """Who looks for it hears what is wrong with its record, not that it does not exist."""
    settings = Settings("n3")
    with pytest.raises(RecordError):
        settings.apply(keys.POOLS + "p", b'{"metadata":{"name":"p"},"spec":{"cidr":"10.0.0.1/16"}}')
    said = []
    for asked in (REQUEST, request("p")):
        with pytest.raises(RefusedError) as refused:
            settings.selection.choose(asked, 4)
        said.append(refused.value.msg.partition(": ")[2])
    why = "has a record that cannot be understood (not an IPPool: 10.0.0.1/16 has host bits set); "
    assert said[0] == f"pool p {why}correct the record"
    assert said[1].startswith(f"pool p, which the request names, {why}")
    settings.apply(keys.POOLS + "p", None)
    with pytest.raises(RefusedError, match="there is no IPv4 pool"):
        settings.selection.choose(REQUEST, 4)


def test_the_error_stays_readable_with_many_pools() -> None:
    """It accounts for eight pools, counts the rest, and says where to look."""
    says = refusal([pool(f"p{number:02}", f"10.{number}.0.0/16", disabled=True) for number in range(30)])
    assert says == "; ".join(f"pool p{number:02} is disabled" for number in range(8)) + (
        "; 22 more pools do not serve (GET /v1/pools says why); enable a pool"
    )


def test_the_error_says_that_there_is_no_pool() -> None:
    """Where no pool of the version exists, that is what the error says."""
    assert refusal([pool("four")], family=6) == "there is no IPv6 pool; create one"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nope", "does not exist"),
        ("10.9.0.0/16", "does not exist"),
        ("not/a/cidr", "does not exist"),
        ("six", "does not exist"),
        ("off", "is disabled"),
        ("10.1.2.3/16", "is disabled"),
        ("tunnels", "is not allowed for use Workload (allowedUses: Tunnel)"),
    ],
)
def test_a_named_pool_must_exist_be_enabled_and_allow_the_use(name: str, problem: str) -> None:
    """One bad name refuses the request, although another named pool would do; a pod gets what was meant or nothing."""
    pools = [
        pool("good"),
        pool("six", "fd00::/64"),
        pool("off", "10.1.0.0/16", disabled=True),
        pool("tunnels", "10.2.0.0/16", allowedUses=["Tunnel"], assignmentMode="Manual", nodeSelector="!all()"),
    ]
    by = "pod annotation cni.projectcalico.org/ipv4pools"
    assert refusal(pools, request("good", name, by=by)) == (
        f"pool {name}, which {by} names, {problem}; name an enabled pool of this IP version, by name or CIDR"
    )


def test_tunnels_have_pools_of_their_own() -> None:
    """A selection for another use takes the pools that allow it."""
    pools = [pool("both"), pool("tunnels", "10.1.0.0/16", allowedUses=["Tunnel"])]
    assert [p.name for p in Selection(pools, "n3", {}, "Tunnel").choose(REQUEST, 4)] == ["both", "tunnels"]
    assert chosen(pools) == ["both"]


# --- against a second implementation ------------------------------------------------------------------------------

SELECTORS = {
    "": lambda _labels: True,
    "all()": lambda _labels: True,
    "rack == '0'": lambda labels: labels.get("rack") == "0",
    "rack != '0'": lambda labels: labels.get("rack") != "0",
    "!has(rack)": lambda labels: "rack" not in labels,
    "rack in {'0', '1'}": lambda labels: labels.get("rack") in ("0", "1"),
}
UNREADABLE = "rack = 0"
CIDRS = ("10.0.0.0/16", "10.1.0.0/16", "10.2.0.0/16", "fd00::/64", "fd01::/64")

specs = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["a", "b", "c", "d", "e", "f"]),
        "cidr": st.sampled_from(CIDRS),
        "disabled": st.sampled_from([False, False, True]),
        "assignmentMode": st.sampled_from(["Automatic", "Automatic", "Manual"]),
        "allowedUses": st.sampled_from([["Workload", "Tunnel"], ["Workload"], ["Tunnel"], ["LoadBalancer"]]),
        "nodeSelector": st.sampled_from([*SELECTORS, UNREADABLE]),
        "namespaceSelector": st.sampled_from([*SELECTORS, UNREADABLE]),
    }
)
some_labels = st.dictionaries(st.just("rack"), st.sampled_from(["0", "1", "2"]))


def naive(
    specs: list[dict[str, object]],
    family: int,
    named: tuple[str, ...],
    node: dict[str, str],
    namespace: dict[str, str] | None,
) -> list[str] | None:
    """The text of the rules, word by word; None: refused."""
    of_family = [spec for spec in specs if parse_cidr(str(spec["cidr"])).family == family]
    if named:
        taken = set()
        for name in named:
            found = [s for s in of_family if name in (s["name"], s["cidr"])]
            if not found or found[0]["disabled"] or "Workload" not in found[0]["allowedUses"]:
                return None
            taken.add(str(found[0]["name"]))
        return sorted(taken)
    result = []
    for spec in of_family:
        if spec["disabled"] or spec["assignmentMode"] == "Manual" or "Workload" not in spec["allowedUses"]:
            continue
        nodes, namespaces = str(spec["nodeSelector"]), str(spec["namespaceSelector"])
        if UNREADABLE in (nodes, namespaces) or not SELECTORS[nodes](node):
            continue
        known = namespaces in ("", "all()") or (namespace is not None and SELECTORS[namespaces](namespace))
        if known:
            result.append(str(spec["name"]))
    return sorted(result) or None


@given(
    specs=st.lists(specs, max_size=5, unique_by=(lambda s: s["name"], lambda s: s["cidr"])),
    family=st.sampled_from([4, 6]),
    named=st.lists(st.sampled_from(["a", "b", "c", "d", *CIDRS]), max_size=2).map(tuple),
    node=some_labels,
    namespace=st.none() | some_labels,
)
def test_the_choice_is_that_of_a_naive_implementation(
    specs: list[dict[str, object]],
    family: int,
    named: tuple[str, ...],
    node: dict[str, str],
    namespace: dict[str, str] | None,
) -> None:
    """Any pools, labels and names: the same pools in the same order, or a refusal that accounts for every pool."""
    pools = [pool(**spec) for spec in specs]  # type: ignore[arg-type] # a record's fields
    asked = request(*named, family=family, namespace=namespace)
    expected = naive(specs, family, named, node, namespace)
    if expected is not None:
        assert chosen(pools, asked, family, node) == expected
        return
    says = refusal(pools, asked, family, node)
    if not named:
        assert [each.name for each in pools if each.family == family and f"pool {each.name} " not in says] == []
