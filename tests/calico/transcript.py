"""A captured history carried out again by real daemons, one for each node, on real etcd.

Each step's outcome is compared with the captured one. The plugin's steps go through the real plugin; what ``calicoctl``
did to the datastore the model does.
"""

import ipaddress
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import trio

from ipamd.store.etcd import EtcdSettings, EtcdStore
from tests.calico.captures import HISTORIES, addresses, capture, command
from tests.calico.cluster import Calicoctl
from tests.calico.schema import flaws
from tests.calico_state import State, differences
from tests.daemon_process import PLUGIN, Answer, Daemon, wait_for
from tests.etcd_process import EtcdProcess

RESOURCES = "/calico/resources/v3/projectcalico.org/"
BARRIER = RESOURCES + "ippools/zz-barrier"
RECORDS = ("/calico/ipam/v2/assignment/", "/calico/ipam/v2/handle/", "/calico/ipam/v2/host/")


def name_of(step: Mapping[str, Any]) -> str:
    """What a step is called in tables: verb and container, or the command."""
    if "plugin" in step:
        return f"{step['env']['CNI_COMMAND']} {step['env']['CNI_CONTAINERID']}"
    return " ".join(step["argv"])


class Transcript:
    """One history. ``codes``: with which CNI code each captured refusal is to be answered.

    ``differing`` has what was not as captured, by step, in words.
    """

    def __init__(self, history: str, etcd: EtcdProcess, start: Callable[..., Daemon], codes: Mapping[str, int]) -> None:
        self.files = HISTORIES[history]
        self.etcd = etcd
        self._codes = codes
        self.differing: dict[str, str] = {}
        for key, value in capture(history)["etcd"].items():
            if key.startswith((RESOURCES + "nodes/", RESOURCES + "clusterinformations/")):
                etcd.put(key, value.encode())
        self._start = start
        self.daemons: dict[str, Daemon] = {}
        self.held: dict[str, list[str]] = {}
        self._handles: dict[str, str] = {}
        self._captured: dict[str, list[str]] = {}

    def _daemon(self, node: str) -> Daemon:
        """A node's daemon, started when its plugin is called first: until then a Calico node, too, has no block."""
        if node not in self.daemons:
            daemon = self.daemons[node] = self._start(node, ready=False)
            wait_for(lambda: daemon.get("/v1/status", quiet=True).get("store", {}).get("synced"))
        return self.daemons[node]

    def run(self) -> Iterator[str]:
        """Carry the files of the history out one after the other; yields the name of each when it is done."""
        for file in self.files:
            for index, step in enumerate(capture(file)["steps"]):
                name = f"{file} {index} {name_of(step)}"
                if problem := self._plugin(name, step) if "plugin" in step else self._command(step):
                    self.differing[name] = problem
            yield file

    # --- calicoctl --------------------------------------------------------------------------------------------

    def _command(self, step: Mapping[str, Any]) -> str:
        before = self.etcd.revision()
        try:
            trio.run(self._change, step)
        except AssertionError:
            return "it did not succeed"
        if self.etcd.revision() != before:
            self._heard()
        return ""

    async def _change(self, step: Mapping[str, Any]) -> None:
        store = EtcdStore(EtcdSettings(endpoints=(self.etcd.endpoint,)))
        try:
            await command(step, Calicoctl(store, lambda: int(trio.current_time() * 1e9)))
        finally:
            await store.aclose()

    def _heard(self) -> None:
        """Wait until all daemons know of what was written: a disabled pool is written last, and shows in their views."""
        spec = {"cidr": "203.0.113.0/24", "blockSize": 26, "disabled": True, "nodeSelector": "all()"}
        self.etcd.put(BARRIER, json.dumps({"metadata": {"name": "zz-barrier"}, "spec": spec}).encode())
        wait_for(lambda: all("zz-barrier" in _pools(daemon) for daemon in self.daemons.values()))
        self.etcd.delete(BARRIER)
        wait_for(lambda: not any("zz-barrier" in _pools(daemon) for daemon in self.daemons.values()))

    # --- the plugin -------------------------------------------------------------------------------------------

    def _plugin(self, name: str, step: Mapping[str, Any]) -> str:
        environment = {**step["env"], "IPAMD_SOCKET": str(self._daemon(step["stdin"]["nodename"]).socket)}
        done = subprocess.run(
            [step["plugin"]], executable=PLUGIN, env=environment, input=json.dumps(step["stdin"]).encode(),
            capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        answer = Answer(done.returncode, done.stdout)
        container = self._container(step)
        before = self.held.get(container, []), self._captured.get(container, [])
        self._note(step, answer)
        if answer.code != step["exit"]:
            return f"exit code {answer.code}, not {step['exit']}: {answer.text.strip()}"
        if answer.code:
            refused = answer.json.get("code") == self._codes[name] and set(answer.json) == {"cniVersion", "code", "msg"}
            return "" if refused else f"refused otherwise: {answer.text.strip()}"
        if step["env"]["CNI_COMMAND"] != "ADD":
            return "" if answer.text == step["stdout"] else f"printed {answer.text!r}"
        return self._compare(step, answer) or self._repeated(container, *before)

    def _note(self, step: Mapping[str, Any], answer: Answer) -> None:
        """What the containers have now, by what the plugin was told and by what Calico's was."""
        verb, container = step["env"]["CNI_COMMAND"], self._container(step)
        if verb == "DEL":
            self.held.pop(container, None)
            self._captured.pop(container, None)
        elif verb == "ADD" and answer.code == 0:
            self.held[container] = addresses({"stdout": answer.text})
            self._captured[container] = [] if step["exit"] else addresses(step)
            self._handles[container] = f"{step['stdin']['name']}.{container}"

    def _repeated(self, container: str, before: list[str], captured: list[str]) -> str:
        """How the answer to a repeated ADD differs from the captured one, which may give another address."""
        again, again_captured = before == self.held[container], captured == self._captured[container]
        if not before or again == again_captured:
            return ""
        return "the address it has already" if again else f"another address than before: {before}"

    def _compare(self, step: Mapping[str, Any], answer: Answer) -> str:
        given, captured = addresses({"stdout": answer.text}), addresses(step)
        expected = step["stdout"]
        for ours, theirs in zip(given, captured, strict=False):
            expected = re.sub(rf'(?<="){re.escape(theirs)}(?=")', ours, expected)
        if answer.text != expected:
            return f"printed {answer.text!r}"
        pools = self._pool_cidrs()
        others = [address for name, held in self.held.items() for address in held if name != self._container(step)]
        for ours, theirs in zip(given, captured, strict=True):
            if "IP=" in step["env"]["CNI_ARGS"] and ours != theirs:
                return f"{ours} is not the address asked for"
            if _pool_of(ours, pools) != _pool_of(theirs, pools):
                return f"{ours} is not of the pool of {theirs}"
            if ours in others:
                return f"{ours} is held already"
        return ""

    @staticmethod
    def _container(step: Mapping[str, Any]) -> str:
        return str(step["env"]["CNI_CONTAINERID"])

    def _pool_cidrs(self) -> list[str]:
        return [json.loads(raw)["spec"]["cidr"] for raw in self.etcd.get_prefix(RESOURCES + "ippools/").values()]

    # --- the records ------------------------------------------------------------------------------------------

    def settle(self) -> State:
        """Wait until the daemons have written everything; returns the records. Fails if they contradict one another."""
        daemons = list(self.daemons.values())
        wait_for(
            lambda: not differences(State.of(self.etcd), daemons),
            why=lambda: differences(State.of(self.etcd), daemons),
        )
        return State.of(self.etcd)

    def flaws(self, state: State) -> list[str]:
        """What about the records is not in the form in which Calico's programs write them."""
        return [
            f"{key}: {flaw}"
            for key, raw in state.records.items()
            if key.startswith(RECORDS)
            for flaw in flaws(key, raw)
        ]

    def expected_handles(self) -> dict[str, int]:
        """How many addresses each pod's handle is to have by what the plugin was told."""
        return {self._handles[container]: len(held) for container, held in self.held.items()}


def handles(state: State) -> dict[str, int]:
    """How many addresses each pod's handle has in the records."""
    return {
        handle: sum(record["block"].values())
        for handle, record in state.handles.items()
        if handle in state.pod_handles()
    }


def _pools(daemon: Daemon) -> set[str]:
    return {pool["name"] for pool in msgspec.convert(daemon.get("/v1/pools"), list[dict[str, Any]])}


def _pool_of(address: str, cidrs: list[str]) -> str | None:
    wanted = ipaddress.ip_interface(address).ip
    return next((cidr for cidr in cidrs if wanted in ipaddress.ip_network(cidr)), None)
