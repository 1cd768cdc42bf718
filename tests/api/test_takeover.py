"""``/v1/import/host-local``: what host-local holds is held here, all of it or nothing."""

import json
from collections.abc import Awaitable

import pytest
import trio

from ipamd.api.http import Request, Response
from ipamd.api.takeover import Takeover
from ipamd.core.facts import Attachment, RangeCursors
from tests.api.plugin_call import ROOT, Path, addresses_of, call
from tests.core.snapshot import differences, replay, snapshot

LAN = {
    "cniVersion": "1.0.0",
    "name": "lan",
    "type": "bridge",
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]},
}
HELD = {
    "name": "lan",
    "held": [
        {"address": "fd09::2", "container": "a", "interface": "eth0"},
        {"address": "10.9.0.2", "container": "a", "interface": "eth0"},
        {"address": "10.9.0.7", "container": "b", "interface": "eth0"},
    ],
    "last": {"0": "10.9.0.7", "1": "fd09::2"},
}


def held(address: str, container: str) -> dict[str, str]:
    """One of host-local's files."""
    return {"address": address, "container": container, "interface": "eth0"}


def begin(path: Path, *networks: object, dry_run: bool = False) -> Response | Awaitable[Response]:
    """An import that arrives; what is returned is awaited later."""
    takeover = Takeover(path.ledger, path.now, path.append, trio.lowlevel.checkpoint)
    body = json.dumps({"networks": networks, "dry_run": dry_run}).encode()
    return takeover.host_local(Request("POST", "/v1/import/host-local", "", {}, body, keep_alive=True), ROOT)


async def send(path: Path, *networks: object, dry_run: bool = False) -> dict[str, object]:
    """What is answered to an import."""
    response = begin(path, *networks, dry_run=dry_run)
    if not isinstance(response, Response):
        response = await response
    answer = json.loads(response.body)
    assert isinstance(answer, dict)
    assert ("code" in answer) == (response.status != 200)
    return answer


def counts(new: int = 0, known: int = 0, ended: int = 0) -> dict[str, object]:
    """An answer without conflicts."""
    return {"dry_run": False, "new": new, "known": known, "ended": ended, "conflicts": []}


async def test_what_was_held_is_held_here() -> None:
    """Each container gets the address that it has; the next one follows the last that host-local gave."""
    path = Path()
    assert await send(path, HELD) == counts(new=3)
    assert addresses_of(path.ask(call(LAN, CNI_CONTAINERID="a"))) == ["10.9.0.2/24", "fd09::2/64"]
    assert addresses_of(path.ask(call(LAN, CNI_CONTAINERID="new"))) == ["10.9.0.8/24", "fd09::3/64"]
    replayed = replay("n1", path.ledger.policy, path.journal)
    assert replayed.ranges.holdings == path.ledger.ranges.holdings
    assert [fact for fact in path.journal if isinstance(fact, RangeCursors)]


async def test_again_it_changes_nothing() -> None:
    """The same folder twice; also when a pod was added and another deleted here meanwhile."""
    path = Path()
    await send(path, HELD)
    before, written = snapshot(path.ledger), len(path.journal)
    assert await send(path, HELD) == counts(known=3)
    assert differences(snapshot(path.ledger), before) == []
    assert len(path.journal) == written
    path.ask(call(LAN, CNI_CONTAINERID="b", CNI_COMMAND="DEL"))
    path.ask(call(LAN, CNI_CONTAINERID="new"))
    assert await send(path, HELD) == counts(known=2, ended=1)
    assert Attachment("lan", "b", "eth0") not in path.ledger.ranges.holdings


async def test_a_del_leaves_nothing() -> None:
    """As if the ADD had come here; a DEL of before the import counts too."""
    path = Path()
    path.ask(call(LAN, CNI_CONTAINERID="b", CNI_COMMAND="DEL"))
    assert await send(path, HELD) == counts(new=2, ended=1)
    path.ask(call(LAN, CNI_CONTAINERID="a", CNI_COMMAND="DEL"))
    assert path.ledger.ranges.holdings == {}
    assert path.ledger.ranges.networks["lan"].holders == {}


async def test_a_conflict_refuses_all_and_names_both() -> None:
    """An address that a pod here has, a container that has another here: nothing is taken over."""
    path = Path()
    path.ask(call(LAN, CNI_CONTAINERID="mine"))
    path.ask(call({**LAN, "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}}, CNI_CONTAINERID="b"))
    before = snapshot(path.ledger)
    both = (
        (
            "10.9.0.2 of network lan is container a (eth0)'s according to host-local, and default/web, container mine "
            "(eth0)'s according to ipamd; delete one of the two pods"
        ),
        (
            "fd09::2 of network lan is container a (eth0)'s according to host-local, and default/web, container mine "
            "(eth0)'s according to ipamd; delete one of the two pods"
        ),
        (
            "container b (eth0) has 10.9.0.7 of network lan according to host-local, and 10.9.0.3 according to ipamd; "
            "delete the pod"
        ),
    )
    assert (await send(path, HELD, dry_run=True))["conflicts"] == list(both)
    answer = await send(path, {**HELD, "name": "other"}, HELD)
    assert answer == {"code": 104, "msg": f"cannot take over host-local's addresses: {'; '.join(both)}"}
    assert differences(snapshot(path.ledger), before) == []


async def test_an_add_that_arrives_before_the_import_is_answered_gets_another_address() -> None:
    """What is taken over is held, and in the state file, from the step on in which that was decided."""
    path = Path()
    importing = begin(path, HELD)
    written = list(path.journal)
    new = addresses_of(path.ask(call(LAN, CNI_CONTAINERID="new")))
    assert not isinstance(importing, Response)
    assert (await importing).status == 200
    assert new == ["10.9.0.8/24", "fd09::3/64"]
    assert addresses_of(path.ask(call(LAN, CNI_CONTAINERID="a"))) == ["10.9.0.2/24", "fd09::2/64"]
    assert replay("n1", path.ledger.policy, written).ranges.holdings.keys() < path.ledger.ranges.holdings.keys()


@pytest.mark.parametrize(
    ("networks", "what"),
    [
        ([HELD, HELD], "network lan"),
        ([{"name": "lan", "held": [held("10.9.0.2", "a"), held("10.9.0.2", "b")]}], "10.9.0.2 of network lan"),
        ([{"name": "lan", "held": [held("fd09::2", "a"), held("fd09:0::2", "a")]}], "fd09::2 of network lan"),
    ],
)
async def test_what_is_listed_twice_is_refused(networks: list[object], what: str) -> None:
    """One address would be held by two containers, or twice by one."""
    path = Path()
    answer = await send(path, *networks)
    assert answer == {
        "code": 6,
        "msg": f"cannot read what host-local holds: {what} is listed twice; nothing was taken over",
    }
    assert path.ledger.ranges.holdings == {}


async def test_a_rehearsal_changes_nothing() -> None:
    """It says the same as the real thing."""
    path = Path()
    before = snapshot(path.ledger)
    assert await send(path, HELD, dry_run=True) == {**counts(new=3), "dry_run": True}
    assert differences(snapshot(path.ledger), before) == []
    assert path.journal == []


async def test_networks_are_apart() -> None:
    """As for host-local, the same address may be held in two networks."""
    path = Path()
    path.ask(call(LAN, CNI_CONTAINERID="mine"))
    assert await send(path, {**HELD, "name": "other"}) == counts(new=3)


async def test_a_full_disk_takes_over_nothing() -> None:
    """What could be lost is not held: host-local's files stay where they are."""
    path = Path()
    path.full = True
    answer = await send(path, HELD)
    assert answer["code"] == 5
    assert path.ledger.ranges.holdings == {}


@pytest.mark.parametrize(
    ("network", "why"),
    [
        ({"name": "lan"}, "Object missing required field `held` - at `$.networks[0]`"),
        ({**HELD, "name": "../x"}, "fd09::2: cannot use the network configuration: its name '../x' is not a network's"),
        (
            {"name": "lan", "held": [{"address": "x", "container": "a", "interface": "eth0"}]},
            "'x' does not appear to be",
        ),
        (
            {"name": "lan", "held": [{"address": "10.9.0.2", "container": "a", "interface": ""}]},
            "CNI_IFNAME must be set",
        ),
        (
            {"name": "lan", "held": [{"address": "10.9.0.2", "container": "/", "interface": "e"}]},
            "'/' is not a container",
        ),
    ],
)
async def test_what_cannot_be_read(network: object, why: str) -> None:
    """What no DEL could ever name, or is no address, is not taken over."""
    answer = await send(Path(), network)
    assert answer["code"] == 6
    msg = str(answer["msg"])
    assert msg.startswith("cannot read what host-local holds: ")
    assert why in msg
