"""Whole processes: what a container runtime waits for when it calls a plugin.

All contenders take turns in one run on the same machine, in every order of each other, so that none has the quieter
minutes or the warmer caches; the half of the rounds with addresses held comes in quarters between those without. Each
ADD is followed by its DEL before the next round: alone, host-local works on a directory that is empty but for the files
it keeps, which is where it is fastest, and that is on the file system of the daemon's state file.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from tests.bench.contenders import Field, Lane, running
from tests.bench.figures import REFERENCE, Burst, Comparison, processes, spread
from tests.bench.programs import run_program
from tests.daemon_process import wait_for

HELD = 1000
"""Addresses beside which all is measured once more: most of what the blocks of a node may have (20 of 64)."""


class Amount(Struct, frozen=True):
    """How much to measure: rounds alone and as many beside ``held`` addresses; repeats of each size of burst."""

    rounds: int
    held: int
    bursts: dict[int, int]


Series = dict[tuple[str, ...], list[int]]
"""The durations of each step, in order: by ``run`` or ``burst``, the lane's number, the verb and, of bursts, the size."""


def measure(directory: Path, programs: Path, store: str, amount: Amount) -> Comparison:
    """Run every lane by turns, alone and beside held addresses, then in bursts."""
    with running(directory, programs, store) as field:
        spawner = _Spawner(directory, programs, field)
        halves: tuple[Series, Series] = ({}, {})
        for quarter in range(4):
            if quarter % 2:
                spawner.hold(amount.held)
            spawner.take_turns(max(1, amount.rounds // 2), halves[quarter % 2])
            if quarter % 2:
                spawner.release()
        bursts: Series = {}
        for at_once, repeats in amount.bursts.items():
            spawner.burst(at_once, repeats, bursts)
        lanes = list(enumerate(field.lanes))
        alone, held = (
            {
                lane.contender: processes(half["run", str(number), "ADD"], half["run", str(number), "DEL"])
                for number, lane in lanes
                if ("run", str(number), "ADD") in half
            }
            for half in halves
        )
        return Comparison(
            store,
            alone,
            held,
            [
                Burst(field.lanes[int(lane)].contender, int(size), spread(times))
                for (_, lane, verb, size), times in bursts.items()
                if verb == "ADD"
            ],
        )


class _Spawner:
    """Runs plans on the contenders; names its containers so that none comes twice."""

    def __init__(self, directory: Path, programs: Path, field: Field) -> None:
        self._programs, self._field = programs, field
        self._load = directory / "load.json"
        self._load.write_text(json.dumps(field.lanes[0].config))
        self._introduction = list(introduction(directory, field.lanes))
        self._containers = map("{:056x}".format, itertools.count())
        self._held: list[str] = []
        self._reference = next(number for number, lane in enumerate(field.lanes) if lane.contender == REFERENCE)

    def take_turns(self, rounds: int, series: Series) -> None:
        """Add so many rounds to the series, after some to get warm; the slow ones run only when nothing is held."""
        warm = max(3, rounds // 10)
        numbered = [
            (number, lane) for number, lane in enumerate(self._field.lanes) if lane.every == 1 or not self._held
        ]
        for count, into in ((warm, {}), (rounds, series)):
            orders = itertools.cycle(itertools.permutations(numbered))
            plan = []
            for number, order in zip(range(count), orders, strict=False):
                container = next(self._containers)
                for verb in ("ADD", "DEL"):
                    plan += [f"run {lane} {verb} {container}" for lane, each in order if number % each.every == 0]
            self._run(plan, into)

    def burst(self, at_once: int, repeats: int, series: Series) -> None:
        """Add bursts to the series, after one to get warm; each is followed by that of its DELs."""
        for into in ({}, *[series] * repeats):
            plan = [
                f"burst {number} {verb} {container} {at_once}"
                for number, lane in enumerate(self._field.lanes)
                if at_once <= lane.most
                for container in [next(self._containers)]
                for verb in ("ADD", "DEL")
            ]
            for line in plan:
                self._settle()
                self._run([line], into)

    def hold(self, count: int) -> None:
        """Let the daemon and host-local hold so many addresses."""
        prefix = next(self._containers)
        self._settle()
        self._ask("ADD", prefix, count)
        self._held = [f"{prefix}{number}" for number in range(count)]
        self._run([f"run {self._reference} ADD {container}" for container in self._held], {})
        self._settle()

    def release(self) -> None:
        """Give back what is held."""
        self._ask("DEL", self._held[0][:-1], len(self._held))
        self._run([f"run {self._reference} DEL {container}" for container in self._held], {})
        self._held = []
        self._settle()

    def _ask(self, verb: str, prefix: str, count: int) -> None:
        """So many requests at the daemon's socket."""
        socket = self._field.daemon.socket
        run_program(self._programs / "load", str(socket), "8", verb, prefix, str(count), str(self._load))

    def _run(self, plan: Iterable[str], series: Series) -> None:
        steps = list(plan)
        printed = run_program(
            self._programs / "spawner", told="".join(f"{line}\n" for line in (*self._introduction, *steps))
        )
        for step, nanoseconds in zip(steps, printed, strict=True):
            words = step.split()
            series.setdefault((*words[:3], *words[4:]), []).append(int(nanoseconds))

    def _settle(self) -> None:
        """Wait until the daemon has written back what it was told: each step begins with the same daemon."""
        daemon = self._field.daemon
        wait_for(lambda: not daemon.metric("ipamd_unflushed_facts"), 60.0, lambda: daemon.log.read_text()[-2000:])


def introduction(directory: Path, lanes: Sequence[Lane]) -> Iterator[str]:
    """The lines by which the spawner learns of the lanes."""
    for number, lane in enumerate(lanes):
        config = directory / f"lane-{number}.json"
        config.write_text(json.dumps(lane.config))
        yield f"lane {lane.program} {lane.name} {config}"
        environment = {
            "CNI_NETNS": "/var/run/netns/bench", "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=bench", **lane.environment,
        }  # fmt: skip
        yield from (f"env {key}={value}" for key, value in environment.items())
