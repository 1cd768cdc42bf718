"""What the API answers, as far as it is read: the metadata of pods and namespaces, a node's pod CIDRs.

Everything else of an object is skipped while it is decoded, and never kept.
"""

from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from ipamd.kubernetes.errors import NonsenseError

MIRROR = "kubernetes.io/config.mirror"
"""The annotation by which the kubelet says of a static pod's image in the API what uid the pod itself has."""


class Metadata(Struct, frozen=True, rename="camel"):
    """An object's metadata; a bookmark has a resource version alone."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None

    @property
    def uids(self) -> tuple[str, ...]:
        """The uids by which a runtime may know this pod: for a static pod also the kubelet's own."""
        return tuple(filter(None, (self.uid, (self.annotations or {}).get(MIRROR))))


class Object(Struct, frozen=True):
    """A pod or a namespace."""

    metadata: Metadata


class Listing(Struct, frozen=True):
    """The answer to a list. Go writes an empty one as null."""

    metadata: Metadata
    items: list[Object] | None = None


class Event(Struct, frozen=True):
    """One line of a watch: ADDED, MODIFIED, DELETED, BOOKMARK with an object, or ERROR with a Status."""

    type: str
    object: Raw


class Status(Struct, frozen=True):
    """Why the API said no."""

    code: int = 0
    message: str = ""


class _NodeSpec(Struct, frozen=True):
    podCIDR: str = ""  # noqa: N815 - Kubernetes' field name
    podCIDRs: list[str] | None = None  # noqa: N815 - Kubernetes' field name


class Node(Struct, frozen=True):
    """A node. ``podCIDR`` is what clusters of one IP version before 1.16 had."""

    spec: _NodeSpec

    @property
    def pod_cidrs(self) -> tuple[str, ...]:
        """The ranges that Kubernetes gave the node, at most one of each IP version."""
        return tuple(filter(None, self.spec.podCIDRs or (self.spec.podCIDR,)))


_Type = TypeVar("_Type")


def decode(body: bytes | Raw, kind: type[_Type]) -> _Type:
    """Read an answer; raises NonsenseError if it is not what was asked for."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NonsenseError(f"the Kubernetes API answered what is not a {kind.__name__} ({error})") from error
