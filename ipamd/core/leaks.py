"""Allocations of this node whose container is gone, although no DEL ever came: found, watched for a while, released.

Never on the word of one source. The container runtime must not know the container, and something else must say so
too: the container was started before this boot; Kubernetes has no such pod on this node; or the pod has another
sandbox by now, which the runtime knows. Both must say so without a break for the grace time.
"""

from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct

from ipamd.core.clock import Now
from ipamd.core.facts import Assigned, Attachment, RangeAssigned, RangeReleased, Released
from ipamd.core.garbage import owners_of, pod_of, released
from ipamd.core.ledger import Ledger

YOUNG = 300_000_000_000
"""What was assigned so recently (ns) is kept: its ADD may not have ended, or not be told everywhere."""


class Leak(Struct, frozen=True):
    """An allocation that is released: why, in the words of a log line, and the facts to make durable."""

    handle: str
    addresses: tuple[str, ...]
    why: str
    facts: tuple[Released | RangeReleased, ...]


class Leaks:
    """Remembers since when (CLOCK_BOOTTIME, ns) each suspect is one. ``grace`` in ns."""

    def __init__(self, grace: int) -> None:
        self._grace = grace
        self.suspects: dict[tuple[Attachment, str], int] = {}

    def find(
        self, ledger: Ledger, lives: Callable[[str], bool], pod_gone: Callable[[str, str], bool], now: Now
    ) -> list[Leak]:
        """Release what has been suspect for long enough.

        ``lives``: whether the runtime knows a container; ``pod_gone``: whether Kubernetes is known to have no such
        pod (namespace, name) on this node.
        """
        found: list[Leak] = []
        before, self.suspects = self.suspects, {}
        for suspect, leak in self._suspects(ledger, lives, pod_gone, now):
            since = before.get(suspect, now.boot)
            if now.boot - since < self._grace:
                self.suspects[suspect] = since
            else:
                found.append(leak)
        release(ledger, found)
        return found

    def suspected(
        self, ledger: Ledger, lives: Callable[[str], bool], pod_gone: Callable[[str, str], bool], now: Now
    ) -> list[tuple[Leak, int]]:
        """What is suspect now, and for how long yet (ns) it has to be so to be released; changes nothing."""
        return [
            (leak, max(0, self.suspects.get(suspect, now.boot) + self._grace - now.boot))
            for suspect, leak in self._suspects(ledger, lives, pod_gone, now)
        ]

    def forget(self) -> None:
        """A source failed: what was suspect has to be so anew."""
        self.suspects.clear()

    def _suspects(
        self, ledger: Ledger, lives: Callable[[str], bool], pod_gone: Callable[[str, str], bool], now: Now
    ) -> Iterator[tuple[tuple[Attachment, str], Leak]]:
        holdings: list[Assigned | RangeAssigned] = [*ledger.holdings.values(), *ledger.ranges.holdings.values()]
        sandboxes = {
            (held.attachment.network, held.attachment.interface, *pod_of(held.labels)): held.attachment.container
            for held in sorted(holdings, key=lambda held: held.at)
            if pod_of(held.labels) != ("", "")
        }
        for held in holdings:
            age = now.boot - held.began if held.began else now.unix - held.at  # this one may jump
            if age < YOUNG or lives(held.attachment.container):
                continue
            pod = pod_of(held.labels)
            latest = sandboxes.get((held.attachment.network, held.attachment.interface, *pod))
            if held.began == 0:
                why = "it was started before this boot"
            elif pod != ("", "") and pod_gone(*pod):
                why = f"Kubernetes has no pod {pod[0]}/{pod[1]} on this node"
            elif latest not in (None, held.attachment.container) and lives(latest or ""):
                why = f"{pod[0]}/{pod[1]} has another sandbox, {latest}"
            else:
                continue
            handle = held.handle if isinstance(held, Assigned) else held.attachment.handle
            facts = tuple(released(held, now))
            yield (held.attachment, handle), Leak(handle, _addresses(ledger, held), why, facts)
        yield from self._adopted(ledger, lives, pod_gone, now)

    def _adopted(
        self, ledger: Ledger, lives: Callable[[str], bool], pod_gone: Callable[[str, str], bool], now: Now
    ) -> Iterator[tuple[tuple[Attachment, str], Leak]]:
        """Those of what only the store knows: by Kubernetes alone, as nobody here saw their ADD."""
        for handle in sorted({handle for block in ledger.blocks.values() for handle in block.adopted}):
            network, _dot, container = handle.rpartition(".")
            pods = {pod_of(owner.secondary) for owner in owners_of(ledger, handle)}
            known = pods and ("", "") not in pods
            if not network or lives(container) or not known or not all(pod_gone(*pod) for pod in pods):
                continue
            if handle in {f"{namespace}.{name}" for namespace, name in pods}:
                continue  # an older Calico's: it names no container that the runtime could know
            attachment = Attachment(network, container, "")
            facts = tuple(ledger.unclaimed(attachment, [handle], now.boot))
            places = [place for fact in facts for place in fact.places]
            addresses = tuple(ledger.blocks[place.block].address(place.ordinal) for place in places)
            names = " and ".join(f"{namespace}/{name}" for namespace, name in sorted(pods))
            yield (attachment, handle), Leak(handle, addresses, f"Kubernetes has no pod {names} on this node", facts)


def release(ledger: Ledger, leaks: Iterable[Leak]) -> None:
    """Release what leaked; the facts are to be made durable."""
    for leak in leaks:
        for fact in leak.facts:
            ledger.apply(fact)


def _addresses(ledger: Ledger, held: Assigned | RangeAssigned) -> tuple[str, ...]:
    if isinstance(held, RangeAssigned):
        return held.addresses
    return tuple(ledger.blocks[place.block].address(place.ordinal) for place in held.places)
