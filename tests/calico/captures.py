"""The captured histories, step by step, and the one thing in them that no description tells: where nodes begin."""

import ipaddress
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.calico.cluster import Calicoctl

DATA = Path(__file__).parent.parent / "data" / "calico"
HISTORIES = {
    "basic": ("basic",),
    "borrow": ("borrow",),
    "strict": ("borrow", "strict"),
    "limits": ("limits",),
    "pools": ("pools",),
    "migrate-midway": ("migrate-midway",),
    "migrate-done": ("migrate-midway", "migrate-done"),
}
"""Each capture with those that it goes on from."""
STARTS = {
    ("node-a", 2): 1,
    ("node-a", 16): 10,
    ("node-a", 64): 58,
    ("node-a", 1 << 10): 698,
    ("node-a", 1 << 11): 1201,
    ("node-a", 1 << 58): (int(ipaddress.ip_address("::defe:d3d7:156e:ae80"))) >> 6,
    ("node-b", 2): 0,
    ("node-b", 16): 9,
    ("node-b", 1 << 10): 873,
    ("node-c", 2): 0,
}
"""The block that a node tries first, by its name and the number of blocks: Calico draws it from Go's generator."""
_OPTIONS = {
    "--strictaffinity": "strict_affinity",
    "--ip-cooldown-seconds": "ipCooldownSeconds",
    "--max-blocks-per-host": "maxBlocksPerHost",
}


def capture(name: str) -> dict[str, Any]:
    """One file: ``what``, ``steps``, ``etcd``."""
    loaded: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
    return loaded


def steps(history: str) -> Iterable[dict[str, Any]]:
    """All steps that lead to a capture's records."""
    return (step for name in HISTORIES[history] for step in capture(name)["steps"])


def addresses(step: Mapping[str, Any]) -> list[str]:
    """The addresses with their masks that a captured ADD was answered with, in any version of the result."""
    result = json.loads(step["stdout"])
    if "ips" in result:
        return [each["address"] for each in result["ips"]]
    return [result[part]["ip"] for part in ("ip4", "ip6") if part in result]


async def command(step: Mapping[str, Any], calicoctl: Calicoctl) -> None:
    """Do to the datastore what a captured ``calicoctl`` command did."""
    match step["argv"][1:]:
        case _ if step["exit"]:
            return
        case ["apply" | "create", "-f", "-"]:
            await calicoctl.apply(json.loads(step["stdin"]))
        case ["patch", "ippool", name, "-p", patch]:
            await calicoctl.patch_pool(name, json.loads(patch)["spec"])
        case ["delete", "ippool", name]:
            await calicoctl.delete_pool(name)
        case ["ipam", "configure", option]:
            name, _, value = option.partition("=")
            await calicoctl.configure(**{_OPTIONS[name]: json.loads(value)})
        case ["ipam", "release", option]:
            assert await calicoctl.release(option.removeprefix("--ip="))
        case ["get", *_] | ["ipam", "show" | "check", *_]:
            return
        case other:
            raise ValueError(f"a capture has a command that is not known here: {other}")
