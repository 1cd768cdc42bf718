"""Calico's keys, built and taken apart; CIDRs and addresses as integers."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipamd.core import keys
from ipamd.core.address import Cidr, format_address, parse_address, parse_cidr
from ipamd.core.keys import Kind

CIDRS = st.one_of(
    st.builds(
        lambda base, prefix: Cidr(4, base >> (32 - prefix) << (32 - prefix), prefix),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda base, prefix: Cidr(6, base >> (128 - prefix) << (128 - prefix), prefix),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    ),
)


@pytest.mark.parametrize(
    ("cidr", "key"),
    [
        ("10.0.0.0/26", "/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26"),
        ("fd00::/122", "/calico/ipam/v2/assignment/ipv6/block/fd00::-122"),
        (
            "fd00:10:244:0:defe:d3d7:156e:ae80/122",
            "/calico/ipam/v2/assignment/ipv6/block/fd00:10:244:0:defe:d3d7:156e:ae80-122",
        ),
    ],
)
def test_the_key_of_a_block(cidr: str, key: str) -> None:
    """A block's key is its CIDR in canonical text with a dash for the slash."""
    assert keys.block_key(parse_cidr(cidr)) == key
    assert keys.kind_of(key) is Kind.BLOCK


@given(CIDRS)
def test_a_blocks_key_reads_back(cidr: Cidr) -> None:
    """Each CIDR, of either version, is what its block's and its affinity's key name."""
    assert keys.cidr_of(keys.block_key(cidr)) == cidr
    assert keys.cidr_of(keys.affinity_key("node-1.example", cidr)) == cidr
    assert keys.kind_of(keys.affinity_key("n", cidr)) is Kind.AFFINITY
    assert keys.affinity_key("n", cidr).startswith(keys.affinities_prefix("n"))


@given(CIDRS)
def test_texts_are_those_of_the_standard_library(cidr: Cidr) -> None:
    """A CIDR prints as the standard library prints it, and has as many addresses."""
    network = ipaddress.ip_network(str(cidr))
    assert str(network) == str(cidr)
    assert network.num_addresses == cidr.size
    assert parse_address(format_address(cidr.family, cidr.base)) == (cidr.family, cidr.base)


@given(CIDRS, CIDRS)
def test_containment_is_that_of_the_standard_library(one: Cidr, other: Cidr) -> None:
    """One network lies in another, or overlaps it, exactly when the standard library says so."""
    first, second = ipaddress.ip_network(str(one)), ipaddress.ip_network(str(other))
    assert one.overlaps(other) == first.overlaps(second)
    assert one.contains(other) == (one.family == other.family and second.subnet_of(first))  # type: ignore[arg-type] # same version


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("/calico/resources/v3/projectcalico.org/ippools/p", Kind.POOL),
        ("/calico/resources/v3/projectcalico.org/ipreservations/r", Kind.RESERVATION),
        ("/calico/resources/v3/projectcalico.org/nodes/n", Kind.NODE),
        ("/calico/resources/v3/projectcalico.org/clusterinformations/default", Kind.CLUSTER_INFORMATION),
        ("/calico/ipam/v2/config", Kind.CONFIG),
        ("/calico/ipam/v2/handle/k8s-pod-network.c", Kind.HANDLE),
        ("/calico/ipam/v2/virtual/lb/ipv4/block/10.0.0.0-26", Kind.OTHER),
        ("/registry/pods/x", Kind.OTHER),
    ],
)
def test_the_kind_of_a_key(key: str, kind: Kind) -> None:
    """A key says of what kind its record is; foreign keys are of none."""
    assert keys.kind_of(key) is kind


@pytest.mark.parametrize(
    "text", ["10.0.0.0", "10.0.0.1/26", "10.0.0.0/33", "fd00::1/122", "x/8", "", "/", "10.0.0.0/-1"]
)
def test_what_is_no_cidr_is_refused(text: str) -> None:
    """A CIDR has a prefix length and no host bits; anything else is a ValueError in words."""
    with pytest.raises(ValueError, match=r"\S+ \S+"):
        parse_cidr(text)


def test_every_key_is_below_calicos_prefix() -> None:
    """Credentials that were made for Calico are enough: a role for /calico/ lets a node do all it does."""
    prefixes = [
        value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str) and "/" in value
    ]
    assert len(prefixes) > 5
    assert all(prefix.startswith("/calico/") for prefix in prefixes)
