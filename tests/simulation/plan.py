"""From a seed to what happens in a run: the cluster, and a list of events. Every part can be left out of it.

Nothing else of a run is drawn here: latencies and single faults come from the seed too, but as they are needed.
"""

from collections.abc import Sequence
from random import Random

from msgspec import Struct
from msgspec.structs import replace


class Event(Struct, frozen=True):
    """Something that happens at ``at`` (s) to a node (its index), for ``span`` seconds if it is a state."""

    at: float
    kind: str
    node: int
    arg: int = 0
    span: float = 0.0


class Plan(Struct, frozen=True):
    """The cluster of one run, and its events in order of time."""

    seed: int
    nodes: int
    families: tuple[int, ...]
    block_size: int
    """Prefix length of IPv4 blocks; IPv6 blocks have as many addresses."""
    blocks: int
    reserve: int
    durability: str
    strict: bool
    restored: bool
    """Whether the store may be set back to a backup: then no other writer is there, whose addresses nobody would know."""
    events: tuple[Event, ...]

    def keep(self, kept: Sequence[int]) -> "Plan":
        """The same run with some of its events only, by their positions."""
        return Plan(*(getattr(self, name) for name in self.__struct_fields__[:-1]), tuple(self.events[i] for i in kept))


WEIGHTS = {
    "pod": 30,
    "end": 18,
    "again": 5,
    "stray": 2,
    "race": 6,
    "brief": 2,
    "overtaken": 1,
    "burst": 3,
    "renew": 4,
    "kill": 5,
    "blind": 4,
    "fuse": 5,
    "reboot": 2,
    "down": 2,
    "cut": 4,
    "deaf": 2,
    "flaky": 8,
    "slow": 3,
    "full": 2,
    "broken": 1,
    "jump": 1,
    "compact": 2,
    "arrive": 5,
    "leave": 3,
    "tunnel": 2,
    "sweep": 3,
    "unown": 1,
    "disable": 1,
    "another": 2,
    "delete": 1,
    "reserved": 1,
    "lock": 1,
    "strict": 1,
    "drain": 2,
    "stop": 3,
    "cool": 1,
    "ask": 3,
}
"""How often each kind of event is drawn."""

STRANGERS = ("arrive", "leave", "tunnel", "sweep", "unown", "delete", "another")
"""The kinds in which somebody else gives or takes addresses, blocks or pools."""

RESTORING = {"backup": 4, "restore": 4}
"""How often a backup of the store is made, and the store set back to it, where it may be."""

ALWAYS_LATE = 20
"""The ``arg`` of a ``flaky`` in which almost all transactions arrive late."""


def _given_back(random: Random, node: int, other: int) -> list[Event]:
    """A node gives its reserve back and never learns that it did, while others take what it gave."""
    dies, back = random.random() * 0.6, random.random() * 2
    events = [
        Event(0.0, "burst", node, random.randrange(1000), random.random() * 8),
        Event(random.choice((0.5, 3.0)), "pod", node, 1),
    ]
    at = random.choice((1.0, 4.0, 9.0))
    events += [
        Event(at, "drain", node, 0, back),
        Event(at + random.choice((0.0, 0.0, random.random() * 0.1)), "deaf", node, 0, 25.0),
    ]
    if random.random() < 0.7:
        events.append(Event(at + dies, "kill", node, 0))
    for taker in ("arrive", "burst", "arrive", "pod", "arrive", "pod", "arrive"):
        events.append(Event(at + 1 + random.random() * 2, taker, other, random.randrange(1, 1000), 7.9))
    for _ in range(6):
        events.append(Event(at + back + 1 + random.random() * 3, "pod", node, 1))
    return events


def _overtaken(random: Random, node: int, _other: int) -> list[Event]:
    """A DEL overtakes its ADD, which arrives when the state file was written anew and the daemon started again."""
    return [
        Event(0.0, "overtaken", node, random.randrange(1000), 3.0 + random.random() * 5),
        Event(0.5, "burst", node, random.randrange(1000), random.random()),
        Event(0.7, "burst", node, random.randrange(1000), random.random()),
        Event(1.5 + random.random() * 2, "kill", node, 0),
    ]


def _in_doubt(random: Random, node: int, _other: int) -> list[Event]:
    """A transaction is on its way for longer than the next life of its sender, which gives up what it is to assign.

    The disk that was full makes that life write the state file anew.
    """
    return [
        Event(0.0, "flaky", node, ALWAYS_LATE, 8.0),
        Event(0.1, "brief", node, random.randrange(1000), 0.5 + random.random() * 0.2),
        Event(0.3 + random.random() * 0.1, "kill", node, 0),
        Event(0.45, "cut", node, 1, 0.9),
        Event(2.5, "full", node, 0, 1.0),
        *(Event(2.6 + random.random() * 0.6, "stray", node, random.randrange(1000)) for _ in range(4)),
        Event(4.6 + random.random(), "kill", node, 0),
        Event(5.5 + random.random(), "pod", node, 1),
    ]


def _told_late(random: Random, node: int, other: int) -> list[Event]:
    """A node gives its reserve back, and hears only then, from a slow watch, how it came to have it."""
    back = 0.5 + random.random()
    events = [
        Event(0.0, "slow", node, 0, 20.0 + random.random() * 10),
        Event(random.random() * 0.2, "burst", node, random.randrange(1000), random.random() * 8),
        Event(2.0, "drain", node, 0, back),
        *(Event(2.5 + random.random() * 3, "arrive", other) for _ in range(3)),
        Event(2.5 + random.random() * 3, "burst", other, random.randrange(1000), 7.9),
    ]
    return events + [Event(2.0 + back + random.random() * 25, "pod", node, 1) for _ in range(8)]


def _dies_borrowing(random: Random, node: int, other: int) -> list[Event]:
    """A node that has no room borrows addresses, dies before it knows that it has them, and needs none any more."""
    events = [Event(8.0, "compact", node)]
    for borrower in sorted({node, other}):
        events += [
            Event(0.0, "fuse", borrower, 0),
            Event(0.01, "brief", borrower, random.randrange(1000), 1.0),
            Event(0.4, "down", borrower, 0, 7.0),
        ]
    return events


SCENES = (_given_back, _overtaken, _in_doubt, _told_late, _dies_borrowing)
"""Events that are seldom drawn together, and where it hurts: each scene for the index of a node, and of another."""

SCARCE = (_given_back, _told_late, _dies_borrowing)
"""Scenes in which nodes take one another's addresses: they do so where there are few."""


def draw(seed: int) -> Plan:
    """The plan of a seed."""
    random = Random(seed)
    families = random.choice(((4,), (4,), (4, 6)))
    size = random.choice((28, 29, 29, 30))
    nodes = random.choice((1, 2, 2, 3))
    restored = nodes == 1 and random.random() < 0.3
    weighted = {**WEIGHTS, **dict.fromkeys(STRANGERS, 0), **RESTORING} if restored else WEIGHTS
    kinds, weights = list(weighted), list(weighted.values())
    events, at = [], random.random()
    for _ in range(random.randint(8, 40)):
        at += random.choice((0.0, 0.0, random.random() * 0.05, random.random() * 2, random.random() * 8))
        kind = random.choices(kinds, weights)[0]
        span = random.choice((random.random(), random.random() * 5, random.random() * 30))
        events.append(Event(round(at, 4), kind, random.randrange(nodes), random.randrange(1000), round(span, 3)))
    blocks = random.choice((nodes, 8, 16))
    if not restored and random.random() < 0.4:
        scene, node, began = random.choice(SCENES), random.randrange(nodes), random.random() * 10
        played = scene(random, node, (node + 1) % nodes)
        events += [replace(event, at=round(began + event.at, 4), span=round(event.span, 3)) for event in played]
        events.sort(key=lambda event: event.at)
        if scene in SCARCE:
            blocks = random.choice((1, nodes))
    return Plan(
        seed,
        nodes,
        families,
        size,
        blocks,
        random.choice((1, 2, 4)),
        random.choice(("journal", "journal", "journal", "fsync", "etcd")),
        random.random() < 0.2,
        restored,
        tuple(events),
    )
