"""Which pools serve a request, and what is said when none does."""

import json

import pytest

from ipamd.core.address import parse_cidr
from ipamd.core.errors import Code, RefusedError
from ipamd.core.pool import Pool, choose, decode_pool, serving
from ipamd.core.records import RecordError


def pool(name: str, cidr: str = "10.0.0.0/16", size: int = 26, **values: object) -> Pool:
    """A pool, by default an IPv4 one."""
    return Pool(name, parse_cidr(cidr), size, **values)  # type: ignore[arg-type] # a test's shorthand


def resource(**spec: object) -> bytes:
    """An IPPool record with this spec."""
    return json.dumps({"metadata": {"name": "p"}, "spec": spec}).encode()


def refusal(pools: list[Pool], named: tuple[str, ...] = (), family: int = 4) -> str:
    """The text with which no pool is chosen."""
    with pytest.raises(RefusedError) as refused:
        choose(pools, family, named, "default/web")
    assert refused.value.code is Code.NO_POOL
    assert refused.value.msg == str(refused.value)
    return refused.value.msg


def test_pools_are_tried_in_name_order() -> None:
    """Every enabled automatic pool that matches serves, in the order of the names, not of their creation."""
    pools = [pool("c", "10.3.0.0/16"), pool("a", "10.1.0.0/16"), pool("b", "10.2.0.0/16", disabled=True)]
    assert [p.name for p in choose(pools, 4, (), "x")] == ["a", "c"]


def test_only_pools_of_the_ip_version_serve() -> None:
    """An IPv6 pool never serves an IPv4 address."""
    pools = [pool("a"), pool("b", "fd00::/64", 122)]
    assert [p.name for p in choose(pools, 6, (), "x")] == ["b"]
    assert [p.name for p in serving(pools, 4)] == ["a"]


def test_a_named_pool_serves_whatever_its_selectors() -> None:
    """A pool named by the request, by name or CIDR, serves although it is Manual or selects other nodes."""
    pools = [
        pool("auto"),
        pool("manual", "10.1.0.0/16", manual=True),
        pool("else", "10.2.0.0/16", node_selector="rack == '1'", namespace_selector="has(x)"),
    ]
    assert [p.name for p in choose(pools, 4, ("10.1.0.0/16", "else"), "x")] == ["else", "manual"]
    assert [p.name for p in choose(pools, 4, (), "x")] == ["auto"]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"disabled": True}, "is disabled"),
        ({"manual": True}, "is Manual (only for requests that name it)"),
        ({"allowed_uses": ("Tunnel",)}, "is not allowed for use Workload (allowedUses: Tunnel)"),
        ({"allowed_uses": ("LoadBalancer",)}, "is not allowed for use Workload (allowedUses: LoadBalancer)"),
        ({"node_selector": "rack == '1'"}, "excludes this node by its nodeSelector (rack == '1')"),
        ({"namespace_selector": "has(t)"}, "excludes the namespace by its namespaceSelector (has(t))"),
        ({"disabled": True, "manual": True}, "is disabled"),
    ],
)
def test_the_error_says_what_excluded_the_only_pool(values: dict[str, object], why: str) -> None:
    """Without a pool that serves, the error names each pool with its reason, and what to do."""
    assert refusal([pool("p", **values)]) == (
        f"cannot assign an IPv4 address to default/web: pool p {why}; enable or create a pool that serves this node"
    )


def test_the_error_lists_all_pools_in_name_order() -> None:
    """Every pool of the version that was asked for is accounted for; those of the other version are not."""
    pools = [pool("b", manual=True), pool("six", "fd00::/64", 122), pool("a", "10.1.0.0/16", disabled=True)]
    assert refusal(pools) == (
        "cannot assign an IPv4 address to default/web: pool a is disabled; "
        "pool b is Manual (only for requests that name it); enable or create a pool that serves this node"
    )


def test_the_error_says_that_there_is_no_pool() -> None:
    """Where no pool of the version exists, that is what the error says."""
    assert refusal([pool("four")], family=6) == (
        "cannot assign an IPv6 address to default/web: there is no IPv6 pool; "
        "enable or create a pool that serves this node"
    )


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nope", "does not exist"),
        ("10.9.0.0/16", "does not exist"),
        ("six", "does not exist"),
        ("off", "is disabled"),
        ("tunnels", "is not allowed for use Workload (allowedUses: Tunnel)"),
    ],
)
def test_a_named_pool_must_exist_be_enabled_and_allow_the_use(name: str, problem: str) -> None:
    """One bad name refuses the request, although another named pool would do; a pod gets what was meant or nothing."""
    pools = [
        pool("good"),
        pool("six", "fd00::/64", 122),
        pool("off", "10.1.0.0/16", disabled=True),
        pool("tunnels", "10.2.0.0/16", allowed_uses=("Tunnel",), node_selector="none"),
    ]
    assert refusal(pools, ("good", name)) == (
        f"cannot assign an IPv4 address to default/web: pool {name}, which the request names, {problem}; "
        "name an enabled pool of this IP version, by name or CIDR"
    )


def test_a_manual_pool_named_for_tunnels_says_the_use() -> None:
    """For a named pool the reason is never its mode or a selector, which do not count then."""
    assert "is not allowed for use Workload" in refusal([pool("t", allowed_uses=("Tunnel",))], ("t",))
    assert "is not allowed for use Workload" in refusal([pool("t", allowed_uses=("Tunnel",), manual=True)], ("t",))


@pytest.mark.parametrize("selector", ["", "all()", " all() "])
def test_a_selector_that_matches_everything_serves(selector: str) -> None:
    """An empty selector and all() match every node."""
    assert serving([pool("p", node_selector=selector)], 4)


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ({"cidr": "10.0.0.0/16"}, 26),
        ({"cidr": "10.0.0.0/16", "blockSize": 0}, 26),
        ({"cidr": "fd00::/64"}, 122),
        ({"cidr": "10.0.0.0/20", "blockSize": 20}, 20),
        ({"cidr": "10.0.0.0/32", "blockSize": 32}, 32),
        ({"cidr": "fd00::/64", "blockSize": 116}, 116),
        ({"cidr": "fd00::/128", "blockSize": 128}, 128),
    ],
)
def test_block_sizes(spec: dict[str, object], size: int) -> None:
    """An absent block size is Calico's default; the sizes at the limits are read."""
    assert decode_pool(resource(**spec)).block_size == size


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"cidr": "10.0.0.0/27"}, "IPPool p: block size 26 does not fit 10.0.0.0/27"),
        ({"cidr": "10.0.0.0/16", "blockSize": 33}, "IPPool p: block size 33 does not fit 10.0.0.0/16"),
        ({"cidr": "10.0.0.0/8", "blockSize": 19}, "IPPool p: block size 19 does not fit 10.0.0.0/8"),
        ({"cidr": "fd00::/64", "blockSize": 64}, "IPPool p: block size 64 does not fit fd00::/64"),
        ({"cidr": "fd00::/64", "blockSize": 129}, "IPPool p: block size 129 does not fit fd00::/64"),
        ({"cidr": "10.0.0.0/16", "blockSize": -1}, "IPPool p: block size -1 does not fit 10.0.0.0/16"),
        ({"cidr": "10.0.0.1/16"}, "not an IPPool: 10.0.0.1/16 has host bits set"),
        ({"cidr": "nope"}, "not an IPPool: 'nope' is not a CIDR: it has no prefix length"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(spec: dict[str, object], says: str) -> None:
    """A block size that Calico refuses would make blocks of up to 2**64 ordinals: it is refused with the reason."""
    with pytest.raises(RecordError) as refused:
        decode_pool(resource(**spec))
    assert str(refused.value) == says


def test_a_pool_that_is_being_deleted_serves_nobody() -> None:
    """A pool with a deletion timestamp counts as disabled."""
    value = {"metadata": {"name": "p", "deletionTimestamp": "2026-08-01T10:00:00Z"}, "spec": {"cidr": "10.0.0.0/16"}}
    assert decode_pool(json.dumps(value).encode()).disabled


def test_blocks_of_a_pool() -> None:
    """A pool is cut into aligned blocks of one size; others, and those outside, are not its own."""
    four = pool("p", "10.0.0.0/24")
    assert [str(four.block(index)) for index in range(four.blocks)] == [
        "10.0.0.0/26",
        "10.0.0.64/26",
        "10.0.0.128/26",
        "10.0.0.192/26",
    ]
    assert four.cuts(parse_cidr("10.0.0.64/26"))
    assert not four.cuts(parse_cidr("10.0.0.64/27"))
    assert not four.cuts(parse_cidr("10.0.1.0/26"))
    six = pool("q", "fd00::/64", 122)
    assert str(six.block(six.blocks - 1)) == "fd00::ffff:ffff:ffff:ffc0/122"
