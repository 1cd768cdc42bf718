"""Takes over what the reference plugin host-local holds, so that its pods live on: decided whole, or refused whole.

host-local keeps a file for each address of a network, with the container and interface that have it, and for each range
set the address last given out. Taken over, each is held here as if the ADD had come here; again, it changes nothing.
"""

from collections.abc import Iterator, Sequence

from msgspec import Struct

from ipamd.core.address import format_address
from ipamd.core.clock import THIS_BOOT, Now
from ipamd.core.facts import Attachment, RangeAssigned, RangeCursors
from ipamd.core.ledger import Ledger
from ipamd.core.ranges import Address, read_address


class Held(Struct, frozen=True):
    """One file: an address (its text) and who has it."""

    address: str
    container: str
    interface: str


class Network(Struct, frozen=True):
    """One folder: a network's addresses, and of each range set, by its position, the address last given out."""

    name: str
    held: list[Held]
    last: dict[int, str] = {}


class Taken(Struct, frozen=True):
    """What taking over comes to: the facts to make durable, and how many addresses are of which kind.

    ``known`` are here already, the containers of ``ended`` were deleted here since. ``conflicts`` say in words what
    cannot be; if there is one, there are no facts.
    """

    facts: tuple[RangeAssigned | RangeCursors, ...]
    new: int
    known: int
    ended: int
    conflicts: tuple[str, ...]


def take_over(ledger: Ledger, networks: Sequence[Network], now: Now) -> Taken:
    """Work out what to take over; changes nothing.

    Raises ValueError for a text that is no address, and for a network or one of its addresses that is listed twice.
    """
    _refuse_repeated(networks)
    facts: list[RangeAssigned | RangeCursors] = []
    conflicts: list[str] = []
    new = known = ended = 0
    for network in networks:
        before = len(facts)
        for attachment, addresses in _by_attachment(network).items():
            there = ledger.ranges.holdings.get(attachment)
            if there is not None and set(map(read_address, there.addresses)) == set(addresses):
                known += len(addresses)
            elif there is None and attachment in ledger.tombstones:
                ended += len(addresses)
            elif found := list(_conflicts(ledger, attachment, addresses)):
                conflicts += found
            else:
                new += len(addresses)
                texts = tuple(format_address(*address) for address in addresses)
                facts.append(RangeAssigned(attachment, texts, {}, now.unix, THIS_BOOT))
        cursors = {index: format_address(*read_address(text)) for index, text in sorted(network.last.items())}
        if cursors and len(facts) > before:
            facts.append(RangeCursors(network.name, cursors))
    return Taken(() if conflicts else tuple(facts), new, known, ended, tuple(conflicts))


def _refuse_repeated(networks: Sequence[Network]) -> None:
    """host-local has one folder for a network and one file for an address: two entries would hold one address twice."""
    seen: set[tuple[str, Address | None]] = set()
    for network in networks:
        for address in (None, *(read_address(held.address) for held in network.held)):
            if (network.name, address) in seen:
                what = f"{format_address(*address)} of network {network.name}" if address else f"network {network.name}"
                raise ValueError(f"{what} is listed twice")
            seen.add((network.name, address))


def _by_attachment(network: Network) -> dict[Attachment, list[Address]]:
    """The addresses of each, those of IPv4 first, in the order in which host-local lists them."""
    found: dict[Attachment, list[Address]] = {}
    for held in network.held:
        attachment = Attachment(network.name, held.container, held.interface)
        found.setdefault(attachment, []).append(read_address(held.address))
    return {attachment: sorted(addresses, key=lambda each: each[0]) for attachment, addresses in found.items()}


def _conflicts(ledger: Ledger, attachment: Attachment, addresses: Sequence[Address]) -> Iterator[str]:
    there = ledger.ranges.holdings.get(attachment)
    if there is not None:
        texts = ", ".join(format_address(*address) for address in addresses)
        yield (
            f"{_words(attachment)} has {texts} of network {attachment.network} according to host-local, and "
            f"{', '.join(there.addresses)} according to ipamd; delete the pod"
        )
        return
    network = ledger.ranges.networks.get(attachment.network)
    for address in addresses if network is not None else ():
        holder = network.holders.get(address) if network is not None else None
        if holder is not None:
            yield (
                f"{format_address(*address)} of network {attachment.network} is {_words(attachment)}'s according to "
                f"host-local, and {_pod(ledger, holder)}'s according to ipamd; delete one of the two pods"
            )


def _pod(ledger: Ledger, attachment: Attachment) -> str:
    labels = ledger.ranges.holdings[attachment].labels
    pod = f"{labels.get('namespace', '')}/{labels['pod']}, " if "pod" in labels else ""
    return pod + _words(attachment)


def _words(attachment: Attachment) -> str:
    return f"container {attachment.container} ({attachment.interface})"
