"""The runtime of one node: it makes and ends sandboxes, with all habits that kubelet, containerd and CRI-O have.

A pod lives with an address from the moment its runtime reads the reply to the ADD until the runtime begins the DEL. A
sandbox whose ADD failed is always ended by a DEL, which is tried until it succeeds.
"""

import json
from random import Random

import trio

from ipamd.api.http import Request, Response
from tests.api.plugin_call import ENVIRONMENT
from tests.simulation.judge import Judge
from tests.simulation.machine import GoneError, Machine

NETWORK = "k8s-pod-network"

SLOW = 0.06
"""How many plugins take seconds from their start to their request's arrival: the node has much to do."""

RETRY = 1.0
"""Seconds from a failed DEL to the next."""


class Sandbox:
    """One container as CNI sees it; ``adds`` and ``dels`` count what its runtime began."""

    def __init__(self, pod: str, number: int) -> None:
        self.pod = pod
        self.container = f"{pod}-{number}"
        self.address = ""
        """The IPv4 address that it asks for."""
        self.adds = self.dels = 0
        self.deleting = False
        self.ended = False
        """A DEL succeeded that began after the last ADD."""
        self.in_doubt = False
        """The DEL's success may have been lost with the node's power, or to a full disk."""

    @property
    def handle(self) -> str:
        return f"{NETWORK}.{self.container}"


class Kubelet:
    """One node's. ``patience``: seconds that a plugin may take."""

    def __init__(self, machine: Machine, judge: Judge, random: Random, families: tuple[int, ...]) -> None:
        self.machine, self.judge, self.random = machine, judge, random
        ipam = {"type": "calico-ipam", "assign_ipv6": "true" if 6 in families else "false"}
        self._body = json.dumps({"cniVersion": "1.0.0", "name": NETWORK, "type": "calico", "ipam": ipam}).encode()
        self.sandboxes: list[Sandbox] = []
        self.spools = random.random() < 0.5
        """Whether its plugin keeps a DEL that nobody takes for a second, and tells it as done."""
        self.hurry = 0.1
        """Seconds between the plugin's start and its request's arrival, at most."""

    def sandbox(self, pod: str) -> Sandbox:
        """A new sandbox of a pod."""
        made = Sandbox(pod, sum(each.pod == pod for each in self.sandboxes))
        self.sandboxes.append(made)
        return made

    # --- verbs ------------------------------------------------------------------------------------------------

    async def add(self, sandbox: Sandbox, patience: float = 30.0, lag: float = 0.0) -> bool:
        """One ADD; whether its runtime read a success. The address is the pod's only if no DEL was under way.

        ``lag``: how long (s) its plugin takes at least until the request arrives.
        """
        dels, boots, dying = sandbox.dels, self.machine.boots, sandbox.deleting
        sandbox.adds += 1
        sandbox.ended = False
        response = await self._call("ADD", sandbox, patience, lag)
        if response is None or response.status != 200:
            return False
        if not dying and sandbox.dels == dels and self.machine.boots == boots:
            addresses = [each["address"].partition("/")[0] for each in json.loads(response.body)["ips"]]
            if sandbox.address not in ("", *addresses):
                self.judge.find("unsound", f"{sandbox.container} asked for {sandbox.address} and got {addresses}")
            self.judge.born(sandbox.container, addresses)
            return True
        return False

    async def delete(self, sandbox: Sandbox) -> None:
        """DELs until one succeeds."""
        self.judge.dead(sandbox.container)
        sandbox.dels += 1
        sandbox.deleting = True
        adds = sandbox.adds
        while True:
            response = await self._call("DEL", sandbox, 30.0)
            if response is not None and response.status == 200:
                sandbox.deleting = False
                sandbox.ended = sandbox.adds == adds
                sandbox.in_doubt = self.machine.disk.scarce
                (self.judge.unwritten.add if sandbox.in_doubt else self.judge.unwritten.discard)(sandbox.container)
                return
            await trio.sleep(RETRY * self.random.random())

    async def _call(self, verb: str, sandbox: Sandbox, patience: float, lag: float = 0.0) -> Response | None:
        machine = self.machine
        boots, started = machine.boots, machine.now().boot
        trace, name = machine.trace, f"{machine.name}: {verb} {sandbox.container}"
        slow = self.hurry and self.random.random() < SLOW
        await trio.sleep(lag + self.random.random() * (5.0 if slow else self.hurry))
        spools = self.spools and verb == "DEL"
        with trio.move_on_after(patience):
            for _ in range(2 if spools else 10):
                if machine.boots != boots:
                    return None  # the plugin died with its node
                try:
                    response = await machine.ask(self._request(verb, sandbox, started))
                except GoneError:
                    if machine.listening:
                        break  # it died over this request; else nobody listened: the plugin tries again for a while
                    await trio.sleep(0.5)
                    continue
                if machine.boots != boots:
                    return None
                trace(f"{name}: {response.status} {_short(response)}")
                return response
            if spools and machine.boots == boots:
                machine.keep(self._request(verb, sandbox, started), started)
                trace(f"{name}: kept")
                return Response(200, b"")
            trace(f"{name}: no answer")
            return None
        trace(f"{name}: given up")
        return None

    def _request(self, verb: str, sandbox: Sandbox, started: int) -> Request:
        headers = {name.lower().replace("_", "-"): value for name, value in ENVIRONMENT.items()}
        headers["cni-command"] = verb
        headers["cni-containerid"] = sandbox.container
        headers["cni-args"] = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={sandbox.pod}"
        if sandbox.address:
            headers["cni-args"] += f";IP={sandbox.address}"
        headers["ipamd-started"] = str(started)
        return Request("POST", "/v1/cni", "", headers, self._body, keep_alive=False)

    # --- habits -----------------------------------------------------------------------------------------------

    async def run_pod(self, pod: str, patience: float, attempts: int = 3) -> None:
        """Start a pod: a sandbox, and after each failure its end and a new one."""
        for _ in range(attempts):
            sandbox = self.sandbox(pod)
            if await self.add(sandbox, patience):
                return
            await trio.sleep(self.random.random())
            await self.delete(sandbox)

    def powered_off(self) -> None:
        """All pods died with the node. After its start the runtime ends all it knew, and repeats its last DELs."""
        for sandbox in self.sandboxes:
            self.judge.dead(sandbox.container)
            sandbox.dels += 1
            sandbox.in_doubt = True

    def unfinished(self) -> list[Sandbox]:
        """The sandboxes that no longer live and still need a DEL."""
        living = set(self.judge.living.values())
        return [s for s in self.sandboxes if s.in_doubt or (not s.ended and s.container not in living)]


def _short(response: Response) -> str:
    body = json.loads(response.body) if response.body else {}
    if "ips" in body:
        return " ".join(each["address"] for each in body["ips"])
    return f"{body['code']}: {body['msg'][:160]}" if "code" in body else ""
