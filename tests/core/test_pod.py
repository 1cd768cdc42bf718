"""What annotations of pods and namespaces ask for, in which order of precedence, and how mistakes are named."""

import pytest

from ipamd.core.pod import ADDRESSES, POOLS, PodFacts, pod_facts

FOUR, SIX = POOLS[4], POOLS[6]


def facts(pod: dict[str, str], namespace: dict[str, str] | None = None, **labels: str) -> PodFacts:
    """The facts of pod default/web with these annotations, in a namespace with these."""
    return pod_facts("default/web", pod, namespace or {}, labels)


def test_a_pod_without_annotations_asks_for_nothing() -> None:
    """What remains are its namespace's labels."""
    assert facts({}, {}, team="blue") == PodFacts({"team": "blue"})


def test_names_and_cidrs_are_taken_as_they_are() -> None:
    """Pools are named in the order given; whether they exist is the ledger's business."""
    found = facts({FOUR: '["b", "10.0.0.0/16", "a"]', SIX: '["fd00::/64"]'})
    assert found.pools == {4: ("b", "10.0.0.0/16", "a"), 6: ("fd00::/64",)}
    assert found.pools_by == {4: f"pod annotation {FOUR}", 6: f"pod annotation {SIX}"}


def test_each_ip_version_has_a_precedence_of_its_own() -> None:
    """The pod's annotation comes before its namespace's; one for IPv4 says nothing about IPv6."""
    found = facts({FOUR: '["mine"]'}, {FOUR: '["theirs"]', SIX: '["theirs6"]'})
    assert found.pools == {4: ("mine",), 6: ("theirs6",)}
    assert found.pools_by == {4: f"pod annotation {FOUR}", 6: f"namespace annotation {SIX}"}


def test_an_empty_annotation_is_none_and_an_empty_list_names_no_pool() -> None:
    """As Calico's main plugin has it: "" falls through to the namespace, [] does not."""
    assert facts({FOUR: ""}, {FOUR: '["theirs"]'}).pools == {4: ("theirs",)}
    assert facts({FOUR: "[]"}, {FOUR: '["theirs"]'}).pools == {4: ()}


def test_addresses_are_the_pods_alone() -> None:
    """At most one of each IP version; a namespace cannot ask for one."""
    assert facts({ADDRESSES: '["fd00::5", "10.0.0.5"]'}).addresses == {4: 0x0A000005, 6: 0xFD << 120 | 5}
    assert facts({ADDRESSES: "[]"}).addresses == {}
    assert facts({}, {ADDRESSES: '["10.0.0.5"]'}) == PodFacts({})


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("pool-a", "is not a JSON list of texts (JSON is malformed: invalid character (byte 0))"),
        ('"pool-a"', "is not a JSON list of texts (Expected `array`, got `str`)"),
        ("[1]", "is not a JSON list of texts (Expected `str`, got `int` - at `$[0]`)"),
        ("null", "is not a JSON list of texts (Expected `array`, got `null`)"),
        ("[" * 100_000, "is not a JSON list of texts (Expected `str`, got `array` - at `$[0]`)"),
        ('["a"', "is not a JSON list of texts (Input data was truncated)"),
    ],
)
def test_a_malformed_annotation_is_named_with_its_owner(value: str, why: str) -> None:
    """Which annotation, whose, and what is wrong with it."""
    assert facts({FOUR: value}).problem == f"annotation {FOUR} of pod default/web {why}"
    assert facts({}, {SIX: value}).problem == f"annotation {SIX} of namespace default {why}"
    assert facts({ADDRESSES: value}).problem == f"annotation {ADDRESSES} of pod default/web {why}"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ('["10.0.0.5/32"]', "has '10.0.0.5/32', which is not an IP address"),
        ('["10.0.0.5", "10.0.0.6"]', "has two IPv4 addresses; a pod can have one of each IP version"),
        ('["fd00::1", "10.0.0.5", "fd00::1"]', "has two IPv6 addresses; a pod can have one of each IP version"),
    ],
)
def test_addresses_that_cannot_be_had_are_named(value: str, why: str) -> None:
    """A network, or two of one IP version, is no request for an address."""
    assert facts({ADDRESSES: value}).problem == f"annotation {ADDRESSES} of pod default/web {why}"


def test_a_mistake_that_does_not_count_does_no_harm() -> None:
    """A namespace's malformed annotation is nothing to a pod with one of its own; all others are told at once."""
    assert facts({FOUR: '["a"]'}, {FOUR: "{"}).problem == ""
    assert facts({FOUR: "{", ADDRESSES: "{"}, {SIX: "{"}).problem.count("; ") == 2
