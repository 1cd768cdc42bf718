"""What the record of an IP pool says."""

import json

import pytest

from ipamd.core.address import parse_cidr
from ipamd.core.pool import Pool, decode_pool
from ipamd.core.records import RecordError
from ipamd.core.selection import Exclusion, Selection


def pool(name: str, cidr: str = "10.0.0.0/16", size: int = 26, **values: object) -> Pool:
    """A pool, by default an IPv4 one."""
    return Pool(name, parse_cidr(cidr), size, **values)  # type: ignore[arg-type] # a test's shorthand


def resource(**spec: object) -> bytes:
    """An IPPool record with this spec."""
    return json.dumps({"metadata": {"name": "p"}, "spec": spec}).encode()


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


def test_selectors_are_read_with_the_record() -> None:
    """An absent selector, as an empty one, selects everything."""
    pool = decode_pool(resource(cidr="10.0.0.0/16", nodeSelector="rack == '0'", namespaceSelector="has(team)"))
    assert (pool.node_selector.text, pool.namespace_selector.text, pool.unreadable) == ("rack == '0'", "has(team)", "")
    for spec in ({}, {"nodeSelector": "", "namespaceSelector": ""}):
        pool = decode_pool(resource(cidr="10.0.0.0/16", **spec))
        assert pool.node_selector.selects_all
        assert pool.namespace_selector.selects_all


def test_a_selector_that_cannot_be_read_is_told_and_kept() -> None:
    """The rest of the pool is as good as ever: the record is no damaged one."""
    pool = decode_pool(resource(cidr="10.0.0.0/16", nodeSelector="rack = 1", namespaceSelector="team"))
    assert pool.node_selector.text == "rack = 1"
    assert pool.unreadable == (
        "its nodeSelector (rack = 1) cannot be read: expected ==, !=, in, not in, contains, starts with or ends with at "
        'character 6, not "= 1"; its namespaceSelector (team) cannot be read: expected ==, !=, in, not in, contains, '
        "starts with or ends with at character 5, not the end"
    )


def test_a_pool_that_is_being_deleted_serves_nobody() -> None:
    """A pool with a deletion timestamp counts as disabled, and the error says why it is."""
    value = {"metadata": {"name": "p", "deletionTimestamp": "2026-08-01T10:00:00Z"}, "spec": {"cidr": "10.0.0.0/16"}}
    dying = decode_pool(json.dumps(value).encode())
    assert dying.disabled
    assert Selection([dying], "n1", {}).bar(dying) == Exclusion("is being deleted", "enable a pool")


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
