"""What Kubernetes says of a pod, as far as it decides the pod's address: Calico's annotations, the namespace's labels.

For each IP version by itself a pod's annotation comes before its namespace's, and both before the CNI configuration,
as Calico's main plugin has it. An empty list names no pool, and still comes first.
"""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from ipamd.core.address import parse_address

POOLS = {4: "cni.projectcalico.org/ipv4pools", 6: "cni.projectcalico.org/ipv6pools"}
"""IP version -> the annotation of pods and namespaces that names pools: a JSON list of names or CIDRs."""

ADDRESSES = "cni.projectcalico.org/ipAddrs"
"""The annotation of pods that asks for addresses: a JSON list, at most one of each IP version."""

ANNOTATIONS = (*POOLS.values(), ADDRESSES)

_decode_texts = msgspec.json.Decoder(list[str]).decode


class PodFacts(Struct, frozen=True):
    """What was asked for a pod, worked out once for each change of the pod or its namespace.

    ``pools`` and ``pools_by`` have the IP versions for which an annotation names pools, and whose it is in words;
    ``addresses`` are integers by IP version; ``problem`` says what annotation cannot be used and why, else "".
    """

    namespace_labels: dict[str, str]
    pools: dict[int, tuple[str, ...]] = {}
    pools_by: dict[int, str] = {}
    addresses: dict[int, int] = {}
    problem: str = ""


class _UnusableError(Exception):
    """An annotation that cannot be used; the text says what is wrong with its value."""


def pod_facts(
    name: str, annotations: Mapping[str, str], namespace_annotations: Mapping[str, str], labels: Mapping[str, str]
) -> PodFacts:
    """The facts of pod ``name`` ("namespace/pod"), from its own annotations and its namespace's, and its labels."""
    pools, pools_by, addresses, problems = {}, {}, {}, []
    namespace = name.partition("/")[0]
    for family, annotation in POOLS.items():
        # An empty annotation is as good as none, for Calico's main plugin too.
        value, owner = annotations.get(annotation), f"pod {name}"
        if not value:
            value, owner = namespace_annotations.get(annotation), f"namespace {namespace}"
        if not value:
            continue
        try:
            pools[family] = _texts(value)
        except _UnusableError as error:
            problems.append(f"annotation {annotation} of {owner} {error}")
        pools_by[family] = f"{owner.partition(' ')[0]} annotation {annotation}"
    if annotations.get(ADDRESSES):
        try:
            addresses = _addresses(annotations[ADDRESSES])
        except _UnusableError as error:
            problems.append(f"annotation {ADDRESSES} of pod {name} {error}")
    return PodFacts(dict(labels), pools, pools_by, addresses, "; ".join(problems))


def _texts(value: str) -> tuple[str, ...]:
    try:
        return tuple(_decode_texts(value))
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise _UnusableError(f"is not a JSON list of texts ({error})") from error


def _addresses(value: str) -> dict[int, int]:
    found: dict[int, int] = {}
    for text in _texts(value):
        try:
            family, address = parse_address(text)
        except ValueError as error:
            raise _UnusableError(f"has {text[:80]!r}, which is not an IP address") from error
        if family in found:
            raise _UnusableError(f"has two IPv{family} addresses; a pod can have one of each IP version")
        found[family] = address
    return found
