"""What the core is asked, and what it answers, as values."""

from msgspec import Struct

from ipamd.core.facts import Assigned, Attachment, Fact


class AddRequest(Struct, frozen=True):
    """One address for each of ``families`` (4, 6), all or none, for an attachment.

    ``named`` are the pools that the request names for an IP version, by name or CIDR, and ``named_by`` where it does,
    in the words of an error; ``namespace_labels`` are those of the pod's namespace (None: not known); ``labels`` what
    the allocation's attributes say beside node and time; ``started`` when the ADD began (CLOCK_BOOTTIME, ns).
    """

    attachment: Attachment
    families: tuple[int, ...]
    labels: dict[str, str]
    started: int
    named: dict[int, tuple[str, ...]] = {}
    named_by: str = "the request"
    namespace_labels: dict[str, str] | None = None

    @property
    def subject(self) -> str:
        """Who wants the address, in the words of an error: the pod, or else the container."""
        if "pod" in self.labels:
            return f"{self.labels.get('namespace', '')}/{self.labels['pod']}"
        return f"container {self.attachment.container}"


class Added(Struct, frozen=True):
    """An ADD was decided: what the attachment holds, and the facts to make durable before anybody hears of it."""

    assigned: Assigned
    facts: tuple[Fact, ...]


class Shortage(Struct, frozen=True):
    """An ADD must wait: this pool (by name), whose turn it is, has no address in reserve.

    ``pool`` is "" while the pools are not known: the store has not answered since this node's first start.
    """

    pool: str


class Deleted(Struct, frozen=True):
    """A DEL was decided: the facts to make durable before the reply."""

    facts: tuple[Fact, ...]
