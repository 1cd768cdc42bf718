"""What the core is asked, and what it answers, as values."""

from msgspec import Struct

from ipamd.core.facts import Assigned, Attachment, Fact, Place, RangeAssigned
from ipamd.core.ranges import Address, RangeSet


class AddRequest(Struct, frozen=True):
    """One address for each of ``families`` (4, 6), all or none, for an attachment.

    ``named`` are the pools that the request names for an IP version, by name or CIDR, and ``named_by`` where it does,
    in the words of an error; ``namespace_labels`` are those of the pod's namespace (None: not known); ``labels`` what
    the allocation's attributes say beside node and time; ``started`` when the ADD began (CLOCK_BOOTTIME, ns).
    ``addresses`` are those asked for, as integers by IP version; if there are any, only they are assigned, whatever
    ``families`` and ``named`` say, as Calico does it. ``use`` is what the pools must allow (``Workload``, ``Tunnel``).
    """

    attachment: Attachment
    families: tuple[int, ...]
    labels: dict[str, str]
    started: int
    named: dict[int, tuple[str, ...]] = {}
    named_by: dict[int, str] = {}
    namespace_labels: dict[str, str] | None = None
    addresses: dict[int, int] = {}
    use: str = "Workload"

    @property
    def subject(self) -> str:
        """Who wants the address, in the words of an error: the pod, or else the container."""
        return _subject(self.attachment, self.labels)


class RangeRequest(Struct, frozen=True):
    """One address of each of host-local's range sets, all or none; the other fields as in ``AddRequest``.

    ``wanted`` are requested addresses: each is the one of the range set that has it.
    """

    attachment: Attachment
    sets: tuple[RangeSet, ...]
    labels: dict[str, str]
    started: int
    wanted: tuple[Address, ...] = ()

    @property
    def subject(self) -> str:
        """Who wants the addresses, in the words of an error: the pod, or else the container."""
        return _subject(self.attachment, self.labels)


def _subject(attachment: Attachment, labels: dict[str, str]) -> str:
    if "pod" in labels:
        return f"{labels.get('namespace', '')}/{labels['pod']}"
    return f"container {attachment.container}" if attachment.network else f"this node's {attachment.interface}"


class RangeAdded(Struct, frozen=True):
    """An ADD from host-local ranges was decided; the fields as in ``Added``."""

    assigned: RangeAssigned
    facts: tuple[Fact, ...]


class Added(Struct, frozen=True):
    """An ADD was decided: what the attachment holds, and the facts to make durable before anybody hears of it.

    ``earlier`` is what it held before, if this ADD asked for an address of another IP version beside it.
    """

    assigned: Assigned
    facts: tuple[Fact, ...]
    earlier: Assigned | None = None


class Shortage(Struct, frozen=True):
    """An ADD must wait: this pool (by name), whose turn it is, has no address in reserve.

    ``pool`` is "" while the pools are not known: the store has not answered since this node's first start. ``wanted``
    are the places that the ADD asked for, if it asked for addresses: no others will do. ``also`` are the pools that
    come next and can give no more by themselves either: whichever has an address first serves. ``named``: the ADD names
    the pools, so that their selectors do not count.
    """

    pool: str
    wanted: tuple[Place, ...] = ()
    also: tuple[str, ...] = ()
    named: bool = False


class Deleted(Struct, frozen=True):
    """A DEL was decided: the facts to make durable before the reply."""

    facts: tuple[Fact, ...]
