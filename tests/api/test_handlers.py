"""One call of the plugin, from the request to the reply: what is decided, made durable and told, in which order."""

import json

import pytest
import trio

from ipamd.api.http import Request, Response
from ipamd.core import keys
from ipamd.core.clock import Now
from ipamd.core.errors import NotDurableError
from ipamd.core.facts import Assigned, Attachment, Released
from ipamd.core.garbage import collect
from ipamd.core.records import BlockRecord, attribute, go_time
from tests.api.plugin_call import RESERVE, Path, addresses_of, call, config, error_of
from tests.core.blocks import image


@pytest.fixture
def path() -> Path:
    """A node with eight addresses of each IP version in reserve."""
    made = Path()
    made.supply("10.0.0.0/29", 8)
    made.supply("fd00::/125", 8)
    return made


def who(container: str = "c1", interface: str = "eth0") -> Attachment:
    """An attachment by its container and interface."""
    return Attachment("k8s-pod-network", container, interface)


# --- ADD ------------------------------------------------------------------------------------------------------


def test_an_add_is_written_down_before_it_is_told(path: Path) -> None:
    """The fact reaches the state file, then the writer is woken, then the outcome is told; all before the reply."""
    assert addresses_of(path.ask(call())) == ["10.0.0.0/29"]
    assert path.log == ["append Assigned", "wake", "observe 0"]
    (assigned,) = path.journal
    assert isinstance(assigned, Assigned)
    assert (assigned.attachment, assigned.labels) == (who(), {"namespace": "default", "pod": "web"})


def test_the_same_add_gets_the_same_address_and_writes_nothing(path: Path) -> None:
    """A repeated ADD is answered with what the attachment has; there is nothing to write."""
    first = path.ask(call())
    path.log.clear()
    assert path.ask(call()).body == first.body
    assert path.log == ["observe 0"]


def test_another_interface_gets_another_address(path: Path) -> None:
    """An attachment is an interface of a container in a network; each has its own address."""
    got = [
        path.ask(call(**{name: value}))
        for name, value in (("CNI_IFNAME", "eth0"), ("CNI_IFNAME", "net1"), ("CNI_CONTAINERID", "c2"))
    ]
    other = path.ask(call({**config(), "name": "other"}))
    assert len({addresses_of(response)[0] for response in [*got, other]}) == 4


async def test_dual_stack_is_all_or_nothing(path: Path) -> None:
    """Both families are asked for: one of each; if one has no pool, none is assigned."""
    both = config(assign_ipv4="true", assign_ipv6="true")
    assert addresses_of(path.ask(call(both))) == ["10.0.0.0/29", "fd00::/125"]
    path.commit(keys.POOLS + "six", None)
    answer = error_of(await path.answer(call(both, CNI_CONTAINERID="c2")))
    assert (answer["code"], answer["msg"]) == (
        100,
        "cannot assign an IPv6 address to default/web: there is no IPv6 pool; create one",
    )
    assert who("c2") not in path.ledger.holdings
    assert path.ledger.available("four") == 7


def test_an_add_that_cannot_be_written_down_leaves_nothing(path: Path) -> None:
    """A full disk refuses the ADD with code 5; the next ADD gets the address, as if nothing had been."""
    path.full = True
    response = path.ask(call())
    assert error_of(response) == {
        "cniVersion": "1.0.0",
        "code": 5,
        "msg": (
            "cannot assign an address to container c1: cannot write the state file: No space left on device; make room"
        ),
    }
    assert response.status == 500
    assert path.log == ["observe 5"]
    assert not path.ledger.holdings
    path.full = False
    assert addresses_of(path.ask(call(CNI_CONTAINERID="c2"))) == ["10.0.0.0/29"]
    assert path.ledger.available("four") == 7


def test_an_add_that_cannot_be_written_down_leaves_a_foreign_allocation() -> None:
    """What Calico's plugin had given the container before stays the container's, in memory and in the store."""
    path = Path()
    path.supply("10.0.0.0/29", {3: "k8s-pod-network.c1"})
    path.full = True
    assert error_of(path.ask(call()))["code"] == 5
    assert not path.ledger.blocks["10.0.0.0/29"].dirty
    assert path.ledger.available("four") == 0  # nobody else may get it
    assert path.ledger.blocks["10.0.0.0/29"].adopted == {"k8s-pod-network.c1": [3]}
    path.full = False
    assert addresses_of(path.ask(call())) == ["10.0.0.3/29"]


def test_an_add_takes_over_what_calicos_plugin_had_given(path: Path) -> None:
    """A container whose address is in the store under its handle keeps it."""
    path.supply("10.0.0.8/29", {5: "k8s-pod-network.c1"})
    assert addresses_of(path.ask(call())) == ["10.0.0.13/29"]


def test_a_late_add_of_a_deleted_container_is_refused(path: Path) -> None:
    """A DEL that overtook its ADD leaves a mark: the ADD is refused with code 103 and leaves nothing."""
    path.ask(call(CNI_COMMAND="DEL", IPAMD_STARTED="1000"))
    answer = error_of(path.ask(call(IPAMD_STARTED="999")))
    assert (answer["code"], answer["msg"]) == (
        103,
        (
            "cannot assign an address to default/web: container c1 was deleted after this ADD began; "
            "the runtime has given it up, nothing needs to be done"
        ),
    )
    assert path.ledger.available("four") == 8
    assert addresses_of(path.ask(call(IPAMD_STARTED="1001"))) == ["10.0.0.0/29"]


def test_an_older_del_does_not_weaken_the_mark_of_a_newer_one(path: Path) -> None:
    """Two DELs that arrive in the wrong order: the ADD before the later of them is still refused."""
    path.ask(call(CNI_COMMAND="DEL", IPAMD_STARTED="1000"))
    path.ask(call(CNI_COMMAND="DEL", IPAMD_STARTED="500"))
    assert error_of(path.ask(call(IPAMD_STARTED="999")))["code"] == 103


def test_a_locked_datastore_refuses_new_adds_and_keeps_old_ones(path: Path) -> None:
    """Under a lock a new ADD is to be tried later (503); a repeated one gets its address; DEL succeeds."""
    first = path.ask(call())
    path.commit(keys.CLUSTER_INFORMATION, b'{"spec":{"datastoreReady":false}}')
    refused = path.ask(call(CNI_CONTAINERID="c2"))
    assert (refused.status, error_of(refused)["code"]) == (503, 11)
    assert "the datastore is locked" in str(error_of(refused)["msg"])
    assert path.ask(call()).body == first.body
    assert path.ask(call(CNI_COMMAND="DEL")).status == 200


# --- DEL ------------------------------------------------------------------------------------------------------


def test_a_del_is_written_down_before_it_is_told(path: Path) -> None:
    """The release reaches the state file before the reply, which is empty."""
    path.ask(call())
    path.log.clear()
    response = path.ask(call(CNI_COMMAND="DEL"))
    assert (response.status, response.body, response.headers) == (200, b"", (("Ipamd-Exit", "0"),))
    assert path.log == ["append Released", "wake", "observe 0"]
    assert not path.ledger.holdings


def test_a_del_of_something_unknown_succeeds_and_is_remembered(path: Path) -> None:
    """An unknown or repeated DEL is a success, and still a mark against a late ADD."""
    for _ in range(2):
        assert path.ask(call(CNI_COMMAND="DEL", CNI_NETNS="")).status == 200
    assert [fact.places for fact in path.journal if isinstance(fact, Released)] == [(), ()]


def test_a_del_that_cannot_be_written_down_succeeds(path: Path) -> None:
    """A full disk does not keep a pod in Terminating: the release is in memory, owed, and the writer is woken."""
    path.ask(call())
    path.full = True
    path.log.clear()
    assert path.ask(call(CNI_COMMAND="DEL")).status == 200
    assert path.log == ["wake", "observe 0"]
    assert not path.ledger.holdings
    assert [type(fact) for fact in path.owed] == [Released]


def test_a_del_releases_what_only_the_store_knows(path: Path) -> None:
    """Addresses under the container's handle, and under the pod's older one, are released with it."""
    path.supply("10.0.0.8/29", {1: "k8s-pod-network.c1", 2: "default.web", 3: "k8s-pod-network.c2"})
    path.ask(call(CNI_COMMAND="DEL"))
    assert path.ledger.blocks["10.0.0.8/29"].releasing == {1: "k8s-pod-network.c1", 2: "default.web"}


def test_a_del_of_one_interface_leaves_the_other(path: Path) -> None:
    """Two interfaces share a handle; only the deleted one's address is given up."""
    path.ask(call())
    kept = path.ask(call(CNI_IFNAME="net1"))
    path.ask(call(CNI_COMMAND="DEL"))
    assert path.ask(call(CNI_IFNAME="net1")).body == kept.body
    assert list(path.ledger.holdings) == [who("c1", "net1")]


# --- CHECK, GC and STATUS -------------------------------------------------------------------------------------


def previously(*addresses: str) -> dict[str, object]:
    """A configuration as the runtime sends it with a CHECK: with the result of the ADD."""
    return {**config(), "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": each} for each in addresses]}}


def test_a_check_needs_an_allocation(path: Path) -> None:
    """CHECK succeeds for what was assigned here, and is code 3 for anything else."""
    path.ask(call())
    assert path.ask(call(CNI_COMMAND="CHECK")).status == 200
    answer = error_of(path.ask(call(CNI_COMMAND="CHECK", CNI_CONTAINERID="c2")))
    assert (answer["code"], answer["msg"]) == (
        3,
        ("cannot confirm the address of container c2: this node has assigned none to it; delete and recreate the pod"),
    )


def test_a_check_compares_with_what_was_answered(path: Path) -> None:
    """The addresses must be among those of prevResult, where another plugin of the chain may have added more."""
    path.ask(call())
    check = {"CNI_COMMAND": "CHECK"}
    assert path.ask(call(previously("10.0.0.0/29"), check)).status == 200
    assert path.ask(call(previously("10.0.0.0/32", "fd00::9/64"), check)).status == 200
    answer = error_of(path.ask(call(previously("10.0.0.1/29", "fd00::/64"), check)))
    assert (answer["code"], answer["msg"]) == (
        108,
        (
            "cannot confirm the address of container c1: it has 10.0.0.0 here, and 10.0.0.1, fd00:: in prevResult; "
            "delete and recreate the pod"
        ),
    )


@pytest.mark.parametrize("result", [{"ips": []}, {"ips": None}, {}, None])
def test_a_check_with_a_result_without_addresses_is_no_yes(path: Path, result: object) -> None:
    """The runtime believes that the pod has no address, and it has one."""
    path.ask(call())
    answer = error_of(path.ask(call({**config(), "prevResult": result}, CNI_COMMAND="CHECK")))
    assert (answer["code"], "it has 10.0.0.0 here, and none in prevResult" in str(answer["msg"])) == (108, True)


def test_a_check_compares_what_calicos_plugin_had_given() -> None:
    """An allocation that is known only from the store is confirmed as any."""
    path = Path()
    path.supply("10.0.0.0/29", {3: "k8s-pod-network.c1"})
    assert path.ask(call(previously("10.0.0.3/29"), CNI_COMMAND="CHECK")).status == 200
    assert error_of(path.ask(call(previously("10.0.0.4/29"), CNI_COMMAND="CHECK")))["code"] == 108


def test_of_two_interfaces_that_only_the_store_knows_each_is_its_own() -> None:
    """After the state file was lost both are under the container's handle: the runtime's result tells which is which."""
    path = Path()
    path.supply("10.0.0.0/29", {3: "k8s-pod-network.c1", 4: "k8s-pod-network.c1"})
    one, other = previously("10.0.0.3/29"), previously("10.0.0.4/29")
    assert path.ask(call(one, CNI_COMMAND="CHECK")).status == 200
    assert path.ask(call(other, CNI_COMMAND="CHECK", CNI_IFNAME="net1")).status == 200
    assert path.ask(call(other, CNI_COMMAND="DEL", CNI_IFNAME="net1")).status == 200
    (block,) = path.ledger.blocks.values()
    assert block.releasing.keys() == {4}
    assert path.ask(call(one, CNI_COMMAND="CHECK")).status == 200
    assert path.ask(call({**config(), "prevResult": "?"}, CNI_COMMAND="DEL")).status == 200
    assert block.releasing.keys() == {3, 4}


def test_a_check_tells_of_another_holder(path: Path) -> None:
    """If the store has the address under another handle, CHECK says whose."""
    path.ask(call())
    path.supply("10.0.0.0/29", {0: "k8s-pod-network.other"})
    answer = error_of(path.ask(call(CNI_COMMAND="CHECK")))
    assert (answer["code"], answer["msg"]) == (
        108,
        (
            "cannot confirm the address of container c1: the store says that handle k8s-pod-network.other has "
            "10.0.0.0; delete and recreate the pod"
        ),
    )


@pytest.mark.parametrize("result", ["x", [], {"ips": 1}, {"ips": [{"address": "nowhere"}]}, {"ips": [{}]}])
def test_a_check_with_a_broken_result_is_refused(path: Path, result: object) -> None:
    """A prevResult that is no result is code 7, never a yes."""
    path.ask(call())
    answer = error_of(path.ask(call({**config(), "prevResult": result}, CNI_COMMAND="CHECK")))
    assert answer["code"] == 7
    assert str(answer["msg"]).startswith("cannot confirm the container's address: prevResult is no result of a plugin")


def garbage(*valid: tuple[str, str], name: str = "k8s-pod-network") -> Request:
    """A GC of a network, with what the runtime considers valid."""
    listed = [{"containerID": container, "ifname": interface} for container, interface in valid]
    return call({**config("1.1.0"), "name": name, "cni.dev/valid-attachments": listed}, CNI_COMMAND="GC")


async def test_garbage_is_what_the_runtime_does_not_know(autojump_clock: trio.testing.MockClock) -> None:
    """GC releases what is not valid, durably, and keeps what is, to the interface."""
    path = Path()
    path.supply("10.0.0.0/29", 8)
    for container, interface in (("c1", "eth0"), ("c1", "net1"), ("c2", "eth0")):
        path.ask(call(CNI_CONTAINERID=container, CNI_IFNAME=interface))
    await trio.sleep(61)
    path.log.clear()
    assert path.ask(garbage(("c1", "eth0"), ("c9", "eth0"))).status == 200
    assert list(path.ledger.holdings) == [who("c1")]
    assert path.log == ["append Released Released", "wake", "observe 0"]
    path.log.clear()
    assert path.ask(garbage(("c1", "eth0"))).status == 200
    assert path.log == ["observe 0"]


async def test_garbage_is_never_of_another_network(autojump_clock: trio.testing.MockClock) -> None:
    """What a GC of one network does not list stays if it belongs to another, also if only the store knows of it."""
    path = Path()
    path.supply("10.0.0.0/29", {0: RESERVE, 3: "other.c3", 4: "k8s-pod-network.c4", 5: "k8s-pod-network.c5"})
    path.ask(call({**config(), "name": "other"}))
    await trio.sleep(61)
    path.ask(garbage(("c5", "net7")))
    assert [held.network for held in path.ledger.holdings] == ["other"]
    assert set(path.ledger.blocks["10.0.0.0/29"].adopted) == {"other.c3", "k8s-pod-network.c5"}


async def test_garbage_is_not_what_came_just_now(autojump_clock: trio.testing.MockClock) -> None:
    """An ADD that ended after the runtime made its list is no garbage: what is younger than a minute is kept."""
    path = Path()
    path.supply("10.0.0.0/29", 8)
    path.ask(call())
    await trio.sleep(59)
    path.ask(garbage())
    assert list(path.ledger.holdings) == [who("c1")]
    await trio.sleep(1)
    path.ask(garbage())
    assert not path.ledger.holdings


@pytest.mark.parametrize("step", [-3600, -5, 3600])
async def test_garbage_is_young_by_a_clock_that_never_jumps(autojump_clock: trio.testing.MockClock, step: int) -> None:
    """A step of the wall clock, as at a node's start, makes no pod old."""
    path = Path()
    path.supply("10.0.0.0/29", 8)
    path.ask(call())
    await trio.sleep(10)
    now = path.now()
    assert collect(path.ledger, "k8s-pod-network", set(), Now(now.unix + step * 1_000_000_000, now.boot)) == []
    assert list(path.ledger.holdings) == [who("c1")]


async def test_what_only_the_store_knows_is_young_by_its_timestamp(autojump_clock: trio.testing.MockClock) -> None:
    """Of an allocation that Calico's plugin made, or a lost state file: a minute as well, and old handles name no network."""
    path = Path()
    path.supply("10.0.0.0/29", {})
    now = path.now()
    record = BlockRecord(image("10.0.0.0/29", {}))
    for ordinal, (handle, age) in enumerate({"net.young": 59, "net.old": 61, "net.web-1": 61}.items()):
        said = {"namespace": "net", "pod": "web-1", "timestamp": go_time(now.unix - age * 1_000_000_000)}
        record.take({ordinal}, attribute(handle, said))
    path.commit(keys.block_key(record.cidr), record.encode())
    facts = collect(path.ledger, "net", set(), now)
    assert [fact.handle for fact in facts if isinstance(fact, Released)] == ["net.old"]


async def test_garbage_goes_when_the_disk_is_full(autojump_clock: trio.testing.MockClock) -> None:
    """As with a DEL: the release is in memory at once, and owed to the state file."""
    path = Path()
    path.supply("10.0.0.0/29", 8)
    path.ask(call())
    await trio.sleep(61)
    path.full = True
    assert path.ask(garbage()).status == 200
    assert not path.ledger.holdings
    assert [type(fact) for fact in path.owed] == [Released]


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        ({}, "it is not there"),
        ({"cni.dev/valid-attachments": "c1"}, "Expected `array | null`, got `str`"),
        ({"cni.dev/valid-attachments": [{"containerID": "c1"}]}, "Object missing required field `ifname` - at `$[0]`"),
    ],
)
def test_garbage_without_a_list_of_the_valid_is_refused(path: Path, listed: dict[str, object], problem: str) -> None:
    """A runtime that does not say what is valid must not cost every pod its address."""
    path.ask(call())
    answer = error_of(path.ask(call({**config("1.1.0"), **listed}, CNI_COMMAND="GC")))
    assert (answer["code"], answer["msg"]) == (
        7,
        (
            f"cannot collect garbage: cni.dev/valid-attachments is no list of attachments ({problem}); nothing was "
            "released; correct the runtime's call"
        ),
    )
    assert path.ledger.holdings


@pytest.mark.parametrize(
    "listed",
    [
        {"cni.dev/attachments": [{"containerID": "c1", "ifname": "eth0"}]},
        {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0", "unknown": 1}]},
        {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}], "cni.dev/attachments": None},
    ],
)
async def test_older_runtimes_have_another_name_for_the_list(
    autojump_clock: trio.testing.MockClock, listed: dict[str, object]
) -> None:
    """``cni.dev/attachments`` counts where ``cni.dev/valid-attachments`` is not there."""
    path = Path()
    path.supply("10.0.0.0/29", 8)
    path.ask(call())
    path.ask(call(CNI_CONTAINERID="c2"))
    await trio.sleep(61)
    assert path.ask(call({**config("1.1.0"), **listed}, CNI_COMMAND="GC")).status == 200
    assert list(path.ledger.holdings) == [who("c1")]


async def test_no_pods_are_a_list_too(autojump_clock: trio.testing.MockClock) -> None:
    """A runtime written in Go sends null for an empty list: everything of the network goes."""
    path = Path()
    path.supply("10.0.0.0/29", 8)
    path.ask(call())
    await trio.sleep(61)
    path.ask(call({**config("1.1.0"), "cni.dev/valid-attachments": None}, CNI_COMMAND="GC"))
    assert not path.ledger.holdings


def test_status_is_the_daemons_readiness(path: Path) -> None:
    """STATUS succeeds when an ADD could be served; else it is code 50 (503) with the reason."""
    status = call(config("1.1.0"), CNI_COMMAND="STATUS")
    assert path.ask(status).status == 200
    path.handlers.ready = lambda *_families: "the datastore is locked"
    response = path.ask(status)
    assert response.status == 503
    assert error_of(response) == {"cniVersion": "1.1.0", "code": 50, "msg": "cannot serve ADD: the datastore is locked"}


@pytest.mark.parametrize(
    ("four", "six", "families"), [("true", "false", [4]), ("false", "true", [6]), ("true", "true", [4, 6])]
)
def test_status_is_of_what_its_configuration_asks_for(path: Path, four: str, six: str, families: list[int]) -> None:
    """A node may have IPv4 addresses to give and no IPv6 ones."""
    asked: list[int] = []
    path.handlers.ready = lambda *families: asked.extend(families) or ""  # type: ignore[func-returns-value] # always ""
    status = config("1.1.0")
    status["ipam"] = {**status["ipam"], "assign_ipv4": four, "assign_ipv6": six}
    assert path.ask(call(status, CNI_COMMAND="STATUS")).status == 200
    assert asked == families


def test_a_state_file_that_takes_no_add_is_told(path: Path) -> None:
    """So that STATUS says at once that no ADD can be served."""
    told: list[NotDurableError] = []
    path.handlers.steps.unwritten = told.append
    path.full = True
    assert error_of(path.ask(call()))["code"] == 5
    assert len(told) == 1


@pytest.mark.parametrize(
    ("verb", "version", "code"),
    [
        ("ADD", "1.1.0", 0),
        ("DEL", "1.1.0", 0),
        ("CHECK", "1.1.0", 3),
        ("STATUS", "1.1.0", 0),
        ("STATUS", "1.0.0", 1),
        ("X", "1.0.0", 4),
    ],
)
def test_each_request_is_observed_once(path: Path, verb: str, version: str, code: int) -> None:
    """Every verb, and every refusal, is counted once with its code."""
    path.ask(call(config(version), CNI_COMMAND=verb))
    ((stages, observed),) = path.observed
    assert (stages.verb, observed) == (verb, code)


# --- waiting and durability -----------------------------------------------------------------------------------


async def test_an_add_without_reserve_waits_for_it(autojump_clock: trio.testing.MockClock) -> None:
    """The ADD hurries the writer, waits, and is written down before it is answered."""
    path = Path()
    async with path.asked(call()) as answers:
        assert path.log == ["hurry"]
        path.supply("10.0.0.0/29", 1)
    assert addresses_of(answers[0]) == ["10.0.0.0/29"]
    assert path.log == ["hurry", "append Assigned", "observe 0"]
    assert path.ledger.reserve("four", 0).waiting == 0


async def test_an_add_that_waits_gets_what_a_pod_gives_up_of_which_the_store_never_heard(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """At once, without the writer, who may be waiting for a store that does not answer."""
    path = Path()
    path.supply("10.0.0.0/29", 1)
    path.ask(call(CNI_CONTAINERID="first"))
    async with path.asked(call()) as answers:
        assert answers == []
        path.ask(call(CNI_COMMAND="DEL", CNI_CONTAINERID="first"))
    assert addresses_of(answers[0]) == ["10.0.0.0/29"]
    assert path.log[-5:] == ["append Released", "wake", "append Assigned", "observe 0", "observe 0"]


async def test_two_adds_of_one_attachment_that_wait_get_one_address(autojump_clock: trio.testing.MockClock) -> None:
    """Neither is answered before the fact of the first is written; both say the same."""
    path = Path()
    async with path.asked(call(), call()) as answers:
        path.supply("10.0.0.0/29", 4)
    assert answers[0].body == answers[1].body
    assert [entry for entry in path.log if entry != "hurry"] == ["append Assigned", "observe 0", "observe 0"]


async def test_a_waiting_add_that_cannot_be_written_down_leaves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """A full disk when the address arrives: the waiting ADD fails with code 5, the next one gets the address."""
    path = Path()
    async with path.asked(call()) as answers:
        path.full = True
        path.supply("10.0.0.0/29", 1)
    assert error_of(answers[0])["code"] == 5
    path.full = False
    assert addresses_of(path.ask(call(CNI_CONTAINERID="c2"))) == ["10.0.0.0/29"]
    assert path.observed[0][1] == 5


async def test_an_add_that_waits_too_long_is_to_be_tried_later(autojump_clock: trio.testing.MockClock) -> None:
    """After the deadline: code 11 (503), which pool was waited for, for how long, and why; nothing is left behind."""
    path = Path(deadline=2.5)
    began = trio.current_time()
    response = await path.answer(call())
    assert trio.current_time() - began == pytest.approx(2.5)
    assert response.status == 503
    assert error_of(response) == {
        "cniVersion": "1.0.0",
        "code": 11,
        "msg": "cannot assign an address of pool four to default/web: none could be had in 2.5 s; it is a test; "
        "the runtime will try again",
    }
    assert path.ledger.reserve("four", 0).waiting == 0
    path.supply("10.0.0.0/29", 1)
    assert path.ledger.available("four") == 1


async def test_a_del_ends_the_wait_of_the_add_it_overtook(autojump_clock: trio.testing.MockClock) -> None:
    """The waiting ADD is refused at once with code 103, and gets no address when one arrives."""
    path = Path()
    async with path.asked(call()) as answers:
        assert path.ask(call(CNI_COMMAND="DEL")).status == 200
        await trio.testing.wait_all_tasks_blocked()
        assert answers
    assert error_of(answers[0])["code"] == 103
    path.supply("10.0.0.0/29", 1)
    assert not path.ledger.holdings
    assert path.ledger.reserve("four", 0).waiting == 0


async def test_a_del_waits_for_no_durability(autojump_clock: trio.testing.MockClock) -> None:
    """Whatever durability says, a DEL is answered when it is in the state file: no pod hangs in Terminating."""
    path = Path(durable=True)
    assert (await path.answer(call(CNI_COMMAND="DEL"))).status == 200
    assert path.log[:2] == ["append Released", "wake"]


async def test_the_reply_waits_for_the_durability_that_was_asked_for(autojump_clock: trio.testing.MockClock) -> None:
    """With a stronger durability the fact is written, then awaited, then told; a repeated ADD waits as well."""
    path = Path(durable=True)
    path.supply("10.0.0.0/29", 8)
    answers: list[Response] = []

    async def ask() -> None:
        answers.append(await path.answer(call(CNI_COMMAND="ADD")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(1)
        nursery.start_soon(ask)
        await trio.sleep(1)
        assert not answers
        path.written.set()
    assert [answer.status for answer in answers] == [200, 200]
    assert path.log[:3] == ["append Assigned", "wake", "durable begins Assigned"]
    assert path.log.count("durable begins Assigned") == 2
    assert path.log.index("observe 0") > path.log.index("durable ends")
    assert len(path.observed) == 2


async def test_an_add_that_waited_is_awaited_until_durable(autojump_clock: trio.testing.MockClock) -> None:
    """The stronger durability counts for an ADD that had to wait for its address, too."""
    path = Path(durable=True)
    async with path.asked(call()) as answers:
        path.supply("10.0.0.0/29", 1)
        await trio.sleep(1)
        assert not answers
        path.written.set()
    assert json.loads(answers[0].body)["ips"]
    assert path.log == ["hurry", "append Assigned", "durable begins Assigned", "durable ends", "observe 0"]
