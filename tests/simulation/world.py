"""One run: a cluster made after a plan, its events one after the other, then peace, then the verdict."""

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random

import structlog
import trio
import trio._core._run as trio_run
from msgspec import Struct, structs

from ipamd.config import Config
from ipamd.config.schema import Reserve
from ipamd.core import keys
from ipamd.journal.errors import JournalError
from tests.journal.examples import file_size
from tests.nodes import EPOCH, pool_record
from tests.simulation.clock import Clock
from tests.simulation.disk import mounted
from tests.simulation.judge import Judge
from tests.simulation.kubelet import Kubelet, Sandbox
from tests.simulation.machine import Machine
from tests.simulation.network import LATEST, Client, Link, Server
from tests.simulation.plan import Event, Plan
from tests.simulation.strangers import NODES, Strangers

PEACE = 180.0
"""Seconds in which a cluster without faults must come to rest."""

GIVE_UP = 900.0
"""Seconds of the simulation's time after which a run has failed whatever it does."""


class Verdict(Struct):
    """How a run ended: what was wrong, what happened in it, and a digest of all of that."""

    seed: int
    findings: list[tuple[str, str]]
    trace: list[str]
    digest: str
    events: int
    acknowledged: int
    """ADDs that a runtime read a success of."""


class World:
    """The simulated cluster."""

    def __init__(self, plan: Plan, nursery: trio.Nursery) -> None:
        self.plan, self._nursery = plan, nursery
        self.trace: list[str] = []
        self.judge = Judge(self.note)
        self.server = Server()
        self.random = Random(f"{plan.seed} events")
        self.on_their_way = 0
        self.busy = 0
        self.machines = [self._machine(index) for index in range(plan.nodes)]
        self.kubelets = [
            Kubelet(machine, self.judge, Random(f"{plan.seed} kubelet {machine.name}"), plan.families)
            for machine in self.machines
        ]
        self.pods: list[list[str]] = [[] for _ in self.machines]
        client = Client(self.server, Link(Random(f"{plan.seed} link strangers"), self.later))
        random = Random(f"{plan.seed} strangers")
        self.strangers = Strangers(
            self.server, client, self.judge, random, lambda: EPOCH + int(trio.current_time() * 1e9)
        )
        self._make_pools()

    def _machine(self, index: int) -> Machine:
        plan, name = self.plan, f"n{index + 1}"
        link = Link(Random(f"{plan.seed} link {name}"), self.later)
        reserve = Reserve(min=plan.reserve, max=plan.reserve * 8, decay=10.0, wait=5.0)
        config = Config(node=name, durability=plan.durability, reserve=reserve)  # type: ignore[arg-type]
        return Machine(name, config, self.server, link, Random(f"{plan.seed} machine {name}"), self.note)

    def _make_pools(self) -> None:
        plan = self.plan
        bits = 32 - plan.block_size
        wide = max(plan.blocks - 1, 1).bit_length() if plan.blocks > 1 else 0
        self.server.put(*pool_record("four", f"10.0.0.0/{plan.block_size - wide}", blockSize=plan.block_size))
        if 6 in plan.families:
            self.server.put(*pool_record("six", f"fd00::/{128 - bits - wide}", blockSize=128 - bits))
        if plan.strict:
            self.server.put(keys.CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":true}')

    # --- time and tasks ---------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Write a line of the trace."""
        self.trace.append(f"{trio.current_time():10.4f} {text}")

    def later(self, delay: float, work: Callable[[], None]) -> None:
        """Something arrives after a while, whoever sent it."""

        async def arrive() -> None:
            await trio.sleep(delay)
            self.on_their_way -= 1
            before = self.server.revision
            work()
            if self.server.revision != before:
                changed = [event.key.rpartition("/v2/")[2] for event in self.server.history if event.revision > before]
                self.note(f"store: revision {self.server.revision}: {' '.join(changed)}")

        self.on_their_way += 1
        self._nursery.start_soon(arrive)

    def _go(self, work: Callable[..., object], *arguments: object) -> None:
        """Do something beside the events."""

        async def do() -> None:
            try:
                await work(*arguments)  # type: ignore[misc]
            finally:
                self.busy -= 1

        self.busy += 1
        self._nursery.start_soon(do)

    # --- events -----------------------------------------------------------------------------------------------

    async def happen(self, event: Event) -> None:
        """Let an event happen, and see whether everything is still sound."""
        self.note(f"--- {event.kind} n{event.node + 1} {event.arg} {event.span:g}")
        getattr(self, f"_on_{event.kind}")(event)
        for machine in self.machines:
            self.judge.look_at(machine)

    def _pod_of(self, event: Event) -> str | None:
        pods = self.pods[event.node]
        return pods[event.arg % len(pods)] if pods else None

    def _on_pod(self, event: Event) -> None:
        pod = f"p{event.node + 1}{len(self.pods[event.node])}"
        self.pods[event.node].append(pod)
        self._go(self.kubelets[event.node].run_pod, pod, 0.5 if event.arg % 10 == 0 else 30.0)

    def _on_end(self, event: Event) -> None:
        pod, kubelet = self._pod_of(event), self.kubelets[event.node]
        for sandbox in kubelet.sandboxes:
            if sandbox.pod == pod and not sandbox.dels:
                self._go(kubelet.delete, sandbox)

    def _on_again(self, event: Event) -> None:
        pod, kubelet = self._pod_of(event), self.kubelets[event.node]
        for sandbox in kubelet.sandboxes:
            if sandbox.pod == pod and not sandbox.dels:
                self._go(kubelet.add, sandbox)

    def _on_stray(self, event: Event) -> None:
        kubelet = self.kubelets[event.node]
        self._go(kubelet.delete, kubelet.sandbox(f"stray{event.node + 1}x{event.arg}"))

    def _on_race(self, event: Event) -> None:
        kubelet = self.kubelets[event.node]
        sandbox = kubelet.sandbox(f"race{event.node + 1}x{event.arg}")
        self._go(kubelet.add, sandbox)
        self._go(self._after, event.span % 0.2, kubelet.delete, sandbox)

    def _on_ask(self, event: Event) -> None:
        """A pod comes that asks for its address, perhaps somebody's."""
        kubelet = self.kubelets[event.node]
        address = f"10.0.0.{event.arg % (self.plan.blocks << (32 - self.plan.block_size))}"
        sandbox = kubelet.sandbox(f"asked{event.node + 1}x{event.arg}")
        sandbox.address = address
        self._go(self._ask, kubelet, sandbox, event.span)

    @staticmethod
    async def _ask(kubelet: Kubelet, sandbox: Sandbox, stay: float) -> None:
        if await kubelet.add(sandbox):
            await trio.sleep(stay)
        await kubelet.delete(sandbox)

    def _on_brief(self, event: Event) -> None:
        """A pod comes, and goes after a while."""
        kubelet = self.kubelets[event.node]
        sandbox = kubelet.sandbox(f"brief{event.node + 1}x{event.arg}")
        self._go(kubelet.add, sandbox)
        self._go(self._after, event.span, kubelet.delete, sandbox)

    def _on_overtaken(self, event: Event) -> None:
        """The plugin of an ADD hangs before it asks, and the runtime gives the pod up at once."""
        kubelet = self.kubelets[event.node]
        sandbox = kubelet.sandbox(f"overtaken{event.node + 1}x{event.arg}")
        self._go(kubelet.add, sandbox, 30.0, event.span)
        self._go(self._after, 0.1, kubelet.delete, sandbox)

    def _on_burst(self, event: Event) -> None:
        """Pods come all at once, and all go again."""
        kubelet = self.kubelets[event.node]
        for number in range(event.arg % 6 + 3):
            pod = f"burst{event.node + 1}x{event.arg}x{number}"
            self._go(kubelet.run_pod, pod, 30.0)
            self._go(self._after, event.span % 8, self._end_all, kubelet, pod)

    @staticmethod
    async def _end_all(kubelet: Kubelet, pod: str) -> None:
        for sandbox in [each for each in kubelet.sandboxes if each.pod == pod and not each.dels]:
            await kubelet.delete(sandbox)

    def _on_renew(self, event: Event) -> None:
        pod, kubelet = self._pod_of(event), self.kubelets[event.node]
        if pod is not None:
            self._go(kubelet.run_pod, pod, 30.0)
            self._go(self._after, event.span % 3, self._end_older, kubelet, pod)

    @staticmethod
    async def _end_older(kubelet: Kubelet, pod: str) -> None:
        for sandbox in [each for each in kubelet.sandboxes if each.pod == pod][:-1]:
            if not sandbox.dels:
                await kubelet.delete(sandbox)

    @staticmethod
    async def _after(seconds: float, work: Callable[..., object], *arguments: object) -> None:
        await trio.sleep(seconds)
        await work(*arguments)  # type: ignore[misc]

    def _on_kill(self, event: Event) -> None:
        self._go(self._kill, self.machines[event.node], event.arg % 100)

    @staticmethod
    async def _kill(machine: Machine, rounds: int) -> None:
        for _ in range(rounds):
            await trio.lowlevel.checkpoint()
        machine.kill()

    def _on_fuse(self, event: Event) -> None:
        life = self.machines[event.node].life
        if life is not None:
            life.fuse = event.arg % 25

    def _on_blind(self, event: Event) -> None:
        """The daemon dies, and starts again without the store."""
        self._on_cut(structs.replace(event, arg=1))
        self._on_kill(structs.replace(event, arg=event.arg % 3))

    def _on_drain(self, event: Event) -> None:
        """The node is to give back what no pod holds, also if the daemon dies meanwhile."""
        machine = self.machines[event.node]
        self._for(event.span, lambda on: machine.drain(draining=on))

    def _on_stop(self, event: Event) -> None:
        """SIGTERM, and a new start after a while."""
        machine = self.machines[event.node]

        async def stop() -> None:
            machine.hold(down=True)
            try:
                await machine.stop(drain=event.arg % 3 == 0)
                await trio.sleep(event.span % 5)
            finally:
                machine.hold(down=False)

        self._go(stop)

    def _on_reboot(self, event: Event) -> None:
        machine = self.machines[event.node]
        machine.reboot()
        self.kubelets[event.node].powered_off()
        self._for(event.span, lambda on: machine.hold(down=on))

    def _on_down(self, event: Event) -> None:
        machine = self.machines[event.node]
        machine.kill()
        self._for(event.span, lambda on: machine.hold(down=on))

    def _for(self, seconds: float, change: Callable[[bool], None]) -> None:
        """Change something, and change it back after a while."""

        async def back() -> None:
            await trio.sleep(seconds)
            change(False)

        change(True)
        self._go(back)

    def _on_cut(self, event: Event) -> None:
        links = [self.machines[event.node].link] if event.arg % 2 else [machine.link for machine in self.machines]
        for link in links:
            self._for(event.span, lambda on, link=link: setattr(link, "cut", on))

    def _on_deaf(self, event: Event) -> None:
        link = self.machines[event.node].link
        self._for(event.span, lambda on: setattr(link, "deaf", on))

    def _on_flaky(self, event: Event) -> None:
        fault = ("lost_request", "lost_reply", "late", "refused", "lost_reply", "late")[event.arg % 6]
        self._set(event, fault, (event.arg % 7 + 1) / 8)

    def _on_slow(self, event: Event) -> None:
        self._set(event, "slow", event.span)

    def _set(self, event: Event, name: str, value: float) -> None:
        link = self.machines[event.node].link
        self._for(event.span, lambda on: setattr(link, name, value if on else 0.0))

    def _on_full(self, event: Event) -> None:
        """No file can grow, or has more room than what is promised takes, without the images of blocks, and a little."""
        machine = self.machines[event.node]
        if event.arg % 2 and machine.daemon is not None:
            limit = file_size(machine.daemon.ledger.checkpoint(images=False)) + event.arg
            self._for(event.span, lambda on: setattr(machine.disk, "limit", limit if on else sys.maxsize))
        else:
            self._for(event.span, lambda on: setattr(machine.disk, "full", on))

    def _on_broken(self, event: Event) -> None:
        disk = self.machines[event.node].disk
        self._for(event.span, lambda on: setattr(disk, "broken", on))

    def _on_jump(self, event: Event) -> None:
        self.machines[event.node].jump((event.arg - 500) * 10)

    def _on_compact(self, _event: Event) -> None:
        self.server.compact()

    # --- strangers --------------------------------------------------------------------------------------------

    def _on_arrive(self, _event: Event) -> None:
        self._go(self.strangers.arrive, self.plan.families)

    def _on_leave(self, _event: Event) -> None:
        self._go(self.strangers.leave)

    def _on_tunnel(self, event: Event) -> None:
        self._go(self.strangers.tunnel, self.machines[event.node].name if event.arg % 3 else NODES[0])

    def _on_unown(self, event: Event) -> None:
        self._go(self.strangers.delete_node, self.machines[event.node].name)

    def _on_sweep(self, _event: Event) -> None:
        pods = {sandbox.pod for kubelet in self.kubelets for sandbox in kubelet.sandboxes if not sandbox.dels}
        self._go(self.strangers.sweep, pods, [machine.name for machine in self.machines])

    def _on_disable(self, event: Event) -> None:
        name = "four" if event.arg % 2 else "another"
        self._for(event.span, lambda on: self.strangers.disable(name, disabled=on))

    def _on_another(self, event: Event) -> None:
        self.strangers.make_pool(27 + event.arg % 4)

    def _on_delete(self, _event: Event) -> None:
        self._go(self.strangers.delete_pool)

    def _on_reserved(self, event: Event) -> None:
        self._for(event.span, lambda on: self.strangers.reserve("10.0.0.0/30" if on else None))

    def _on_lock(self, event: Event) -> None:
        self._for(event.span, lambda on: self.strangers.lock(locked=on))

    def _on_cool(self, event: Event) -> None:
        """What is given up is to cool for a while from now on, and some time later no more."""
        self._for(event.span, lambda on: self.strangers.configure(cooldown=event.arg % 10 + 1 if on else 0))

    def _on_backup(self, _event: Event) -> None:
        self.server.back_up()

    def _on_restore(self, _event: Event) -> None:
        self.server.restore()

    def _on_strict(self, event: Event) -> None:
        strict = self.plan.strict
        self._for(event.span, lambda on: self.strangers.configure(strict=strict != on))

    # --- the end ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All events, then the end of all faults, then the verdict."""
        for machine in self.machines:
            self._nursery.start_soon(machine.run)
        for event in self.plan.events:
            await trio.sleep_until(event.at)
            await self.happen(event)
        await self._come_to_rest()
        self.judge.at_rest(self.server, self.machines, self._handles())
        await self._sync_all()
        await self._repeat_all()

    def _handles(self) -> dict[str, str]:
        ours = {sandbox.container: sandbox.handle for kubelet in self.kubelets for sandbox in kubelet.sandboxes}
        return ours | self.strangers.handles

    async def _come_to_rest(self) -> None:
        self.note("--- peace")
        for machine in self.machines:
            machine.link.mend()
            machine.disk.full = machine.disk.broken = False
            machine.disk.limit = sys.maxsize
            machine.hold(down=False)
            if machine.life is not None:
                machine.life.fuse = None
        with trio.move_on_after(PEACE) as scope:
            await trio.sleep(LATEST)  # whatever was given up has arrived by then
            for kubelet in self.kubelets:
                while self.busy:
                    await trio.sleep(0.5)
                for sandbox in kubelet.unfinished():
                    await kubelet.delete(sandbox)
            await trio.sleep(2)
            while not self._at_rest():
                await trio.sleep(1)
            await trio.sleep(6)  # longer than the writer ever rests
            while not self._at_rest():
                await trio.sleep(1)
        if scope.cancelled_caught:
            self.judge.find("unsound", f"the cluster does not come to rest: {self.busy} calls are under way")

    def _at_rest(self) -> bool:
        daemons = [machine.daemon for machine in self.machines]
        if self.on_their_way or any(machine.link.unanswered for machine in self.machines):
            return False
        return all(
            daemon is not None
            and daemon.ledger.synced
            and not any(block.dirty for block in daemon.ledger.blocks.values())
            for daemon in daemons
        )

    async def _sync_all(self) -> None:
        """What a disk could not take is on it when it is well again."""
        for machine in self.machines:
            try:
                if machine.daemon is not None:
                    await machine.daemon.journal.sync()
            except JournalError as error:
                self.judge.find("unsound", f"{machine.name}: its disk is well, and yet: {error}")

    async def _repeat_all(self) -> None:
        """Every acknowledged ADD is answered the same when it is repeated."""
        for kubelet in self.kubelets:
            kubelet.hurry = 0.0
            living = set(self.judge.living.values())
            for sandbox in kubelet.sandboxes:
                if sandbox.container in living and not await kubelet.add(sandbox):
                    self.judge.find("lost", f"{sandbox.container} lives, and its ADD is refused when repeated")


def simulate(plan: Plan) -> Verdict:
    """Run a plan to its end; the same plan gives the same verdict, digest and all."""
    worlds: list[World] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            worlds.append(World(plan, nursery))
            with trio.fail_after(GIVE_UP):
                await worlds[0].run()
            nursery.cancel_scope.cancel()

    clock = Clock()
    with _deterministic(plan.seed), mounted(), _listening(worlds), clock.instead_of_trios():
        try:
            trio.run(main, clock=clock)
        except* Exception as errors:  # noqa: BLE001 - whatever it is, it is the finding
            worlds[0].judge.findings.append(("unsound", f"the daemon crashed: {_leaves(errors)}"))
    world = worlds[0]
    text = "\n".join(world.trace)
    acknowledged = sum(": ADD" in line and ": 200 " in line for line in world.trace)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return Verdict(plan.seed, world.judge.findings, world.trace, digest, len(plan.events), acknowledged)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[str]:
    found: list[str] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [repr(error)]
    return found


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Trio's scheduler draws from the seed."""
    before, state = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio_run._r.seed(seed)
    try:
        yield
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = before
        trio_run._r.setstate(state)


@contextmanager
def _listening(worlds: Sequence[World]) -> Iterator[None]:
    """The daemons' log lines go into the trace."""

    def take(_logger: object, _level: str, values: dict[str, object]) -> dict[str, object]:
        event, component = values.pop("event"), values.pop("component", "")
        worlds[0].note(f"{component}: {event} {' '.join(f'{name}={value}' for name, value in values.items())}"[:300])
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[take], wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    try:
        yield
    finally:
        structlog.configure(**before)
