"""The model of Calico's algorithm against what Calico's own programs did: the same steps leave the same records."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest

from ipamd.core import keys
from tests.calico.captures import HISTORIES, STARTS, addresses, capture, command, steps
from tests.calico.cluster import Calicoctl
from tests.calico.node import Calico
from tests.calico.pools import CalicoError
from tests.memory_store import MemoryStore

BEGIN = 1_795_218_460_000_000_000
IPAM_KINDS = (keys.Kind.BLOCK, keys.Kind.HANDLE, keys.Kind.AFFINITY)


class Replay:
    """The captured steps carried out by the model on a store in memory; every look at the clock is a second later."""

    def __init__(self, history: str) -> None:
        self.store = MemoryStore()
        ticks = itertools.count(BEGIN, 1_000_000_000)
        self.now = lambda: next(ticks)
        self.calicoctl = Calicoctl(self.store, self.now)
        for key, value in capture(history)["etcd"].items():
            if keys.kind_of(key) in (keys.Kind.NODE, keys.Kind.CLUSTER_INFORMATION):
                self.store.put(key, value.encode())

    async def step(self, step: Mapping[str, Any]) -> None:
        """Carry one step out; fails if its outcome is not the captured one, to the word."""
        if "plugin" not in step:
            await command(step, self.calicoctl)
            return
        environment, configuration = step["env"], step["stdin"]
        node = Calico(self.store, configuration["nodename"], self.now, lambda name, blocks: STARTS[name, blocks])
        container = environment["CNI_CONTAINERID"]
        handle = f"{configuration['name']}.{container}"
        arguments = dict(part.split("=", 1) for part in environment["CNI_ARGS"].split(";"))
        pod = {
            name: arguments[variable]
            for name, variable in (("namespace", "K8S_POD_NAMESPACE"), ("pod", "K8S_POD_NAME"))
            if variable in arguments
        }
        if environment["CNI_COMMAND"] == "DEL":
            await node.delete(handle, f"{pod['namespace']}.{pod['pod']}")
        elif environment["CNI_COMMAND"] == "ADD":
            adding = self._add(node, handle, pod, arguments, configuration["ipam"])
            if step["exit"]:
                with pytest.raises(CalicoError) as refused:
                    await adding
                assert str(refused.value) == json.loads(step["stdout"])["msg"], container
            else:
                assert await adding == [address.partition("/")[0] for address in addresses(step)], container

    async def _add(
        self,
        node: Calico,
        handle: str,
        pod: Mapping[str, str],
        arguments: Mapping[str, str],
        ipam: Mapping[str, Any],
    ) -> list[str]:
        if "IP" in arguments:
            return [await node.add_address(handle, pod, arguments["IP"])]
        families = [
            family
            for family, switch in ((4, ipam.get("assign_ipv4", "true")), (6, ipam.get("assign_ipv6", "false")))
            if switch == "true"
        ]
        return await node.add(handle, pod, families, ipam.get("ipv4_pools", ()))


def timeless(records: Mapping[str, bytes]) -> dict[str, Any]:
    """IPAM's records without times; sequence numbers count from the block's own, which starts from the time."""
    found = {}
    for key, raw in records.items():
        if keys.kind_of(key) not in IPAM_KINDS:
            continue
        record = json.loads(raw)
        if keys.kind_of(key) is keys.Kind.BLOCK:
            record["affinity_claim_time"] = "affinity_claim_time" in record
            for attribute in record["attributes"]:
                if "releasedAt" in attribute:
                    attribute["releasedAt"] = "then"
                elif "timestamp" in attribute["secondary"]:
                    attribute["secondary"]["timestamp"] = "then"
            numbers = record["sequenceNumberForAllocation"]
            record["sequenceNumberForAllocation"] = {o: n - record["sequenceNumber"] for o, n in numbers.items()}
            record["sequenceNumber"] = 0
        found[key] = json.dumps(record)
    return found


@pytest.mark.parametrize("history", HISTORIES)
async def test_the_model_does_what_calicos_programs_did(history: str) -> None:
    """Each step has the captured outcome, to the address and to the word of an error; the records are the captured."""
    replay = Replay(history)
    for step in steps(history):
        await replay.step(step)
    if history == "pools":  # the node agent's part of that history is in its records only
        agent = Calico(replay.store, "node-a", replay.now, lambda name, blocks: STARTS[name, blocks])
        assert await agent.tunnel_address("vxlan-tunnel-addr", ["tunnels"]) == "10.10.2.160"
    captured = {key: value.encode() for key, value in capture(history)["etcd"].items()}
    assert timeless({key: record.value for key, record in replay.store.records.items()}) == timeless(captured)
