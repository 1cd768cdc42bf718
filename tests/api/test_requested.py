"""Requested addresses at the plugin's edge: where they may be asked for, what is answered, what is refused."""

import json

import pytest
import trio
from trio.testing import MockClock

from ipamd.core import keys
from ipamd.core.facts import Attachment, Released
from tests.api.plugin_call import RESERVE, Path, addresses_of, call, config, error_of
from tests.core.snapshot import differences, replay, snapshot
from tests.nodes import pool_record

WEB = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"
ASK = {"assign_ipv4": "true", "assign_ipv6": "true"}


@pytest.fixture
def path() -> Path:
    """A node with eight addresses of each IP version in reserve."""
    made = Path()
    made.supply("10.0.0.0/29", 8)
    made.supply("fd00::/125", 8)
    return made


def ip(path: Path, addresses: str, container: str = "c1", **ipam: object) -> list[str]:
    """An ADD that asks for addresses by IP in CNI_ARGS: what it gets."""
    return addresses_of(path.ask(call(config(**ipam), CNI_ARGS=f"{WEB};IP={addresses}", CNI_CONTAINERID=container)))


async def refused(path: Path, addresses: str, container: str = "c1", **ipam: object) -> tuple[object, object]:
    """An ADD that asks for addresses by IP in CNI_ARGS: code and text of its refusal."""
    answer = error_of(
        await path.answer(call(config(**ipam), CNI_ARGS=f"{WEB};IP={addresses}", CNI_CONTAINERID=container))
    )
    return answer["code"], answer["msg"]


# --- where to ask ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "args"),
    [
        ({}, "IP=10.0.0.5"),
        ({}, "IP=::ffff:10.0.0.5"),
        ({"args": {"cni": {"ips": ["10.0.0.5"]}}}, ""),
        ({"runtimeConfig": {"ips": ["10.0.0.5/24"]}}, ""),
        ({"runtimeConfig": {"ips": ["10.0.0.5/24"]}, "args": {"cni": {"ips": ["10.0.0.5"]}}}, "IP=10.0.0.5"),
    ],
)
def test_an_address_is_asked_for_in_three_places(path: Path, changes: dict[str, object], args: str) -> None:
    """IP in CNI_ARGS, args.cni.ips, the ips capability: with or without a prefix length, alone or all the same."""
    response = path.ask(call({**config(), **changes}, CNI_ARGS=args))
    assert json.loads(response.body) == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.0.0.5/32"}],
        "routes": [{"dst": "10.0.0.5/32"}],
    }


@pytest.mark.parametrize(
    ("changes", "args"),
    [
        ({}, "IP=10.0.0.5,fd00::6/64"),
        ({"args": {"cni": {"ips": ["fd00::6", "10.0.0.5/32"]}}}, ""),
        ({"runtimeConfig": {"ips": ["fd00::6"]}}, "IP=10.0.0.5"),
    ],
)
def test_an_address_of_each_ip_version(path: Path, changes: dict[str, object], args: str) -> None:
    """Both IP versions may be asked for, in one place or in two."""
    got = addresses_of(path.ask(call({**config(), **changes}, CNI_ARGS=args)))
    assert sorted(got) == ["10.0.0.5/32", "fd00::6/128"]


@pytest.mark.parametrize("changes", [{"runtimeConfig": {"ips": []}}, {"args": {"cni": {"ips": None}}}])
def test_an_empty_list_asks_for_nothing(path: Path, changes: dict[str, object]) -> None:
    """A runtime that passes an empty list gets an address as if there were none."""
    assert addresses_of(path.ask(call({**config(), **changes}, CNI_ARGS="IP="))) == ["10.0.0.0/29"]


def test_only_the_ip_versions_that_are_asked_for_are_assigned(path: Path) -> None:
    """Whatever assign_ipv4 and assign_ipv6 say, as Calico's plugin does it."""
    assert ip(path, "10.0.0.5", **ASK) == ["10.0.0.5/32"]
    assert ip(path, "fd00::5", "c2", assign_ipv4="false", assign_ipv6="false") == ["fd00::5/128"]
    assert ip(path, "fd00::6", "c3") == ["fd00::6/128"]


def test_without_calico_an_address_stands_alone_too(path: Path) -> None:
    """With type ipamd the answer is the same as for an automatic address, with the configured gateway and routes."""
    body = config(type="ipamd", gateway="169.254.1.1", routes=[{"dst": "0.0.0.0/0"}])
    response = path.ask(call(body, CNI_ARGS="IP=10.0.0.5"))
    assert json.loads(response.body) == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.0.0.5/32", "gateway": "169.254.1.1"}],
        "routes": [{"dst": "0.0.0.0/0"}],
    }


@pytest.mark.parametrize(
    ("changes", "args", "code", "msg"),
    [
        (
            {"runtimeConfig": {"ips": ["10.0.0.6/24"]}},
            "IP=10.0.0.5",
            7,
            (
                "cannot assign the requested addresses: 10.0.0.5 (IP in CNI_ARGS) and 10.0.0.6 (runtimeConfig.ips) are both "
                "IPv4, and an interface gets one address of an IP version; ask for one"
            ),
        ),
        (
            {"args": {"cni": {"ips": ["fd00::1", "fd00::2"]}}},
            "",
            7,
            (
                "cannot assign the requested addresses: fd00::1 (args.cni.ips) and fd00::2 (args.cni.ips) are both "
                "IPv6, and an interface gets one address of an IP version; ask for one"
            ),
        ),
        (
            {},
            "IP=10.0.0.999",
            4,
            "cannot assign the requested address: IP in CNI_ARGS: '10.0.0.999' is not an address; correct it",
        ),
        (
            {},
            "IP=fd00::1%eth0",
            4,
            (
                "cannot assign the requested address: IP in CNI_ARGS: 'fd00::1%eth0' has a zone, which no address of a "
                "pool has; correct it"
            ),
        ),
        (
            {"runtimeConfig": {"ips": ["ten"]}},
            "",
            7,
            "cannot assign the requested address: runtimeConfig.ips: 'ten' is not an address; correct it",
        ),
        (
            {"args": {"cni": {"ips": "10.0.0.5"}}},
            "",
            7,
            (
                "cannot assign the requested address: args.cni.ips is no list of addresses (Expected `array | null`, got "
                "`str`); correct it"
            ),
        ),
    ],
)
def test_what_cannot_be_asked_for(path: Path, changes: dict[str, object], args: str, code: int, msg: str) -> None:
    """Contradictions and what is no address are refused in words, and nothing is assigned."""
    answer = error_of(path.ask(call({**config(), **changes}, CNI_ARGS=args)))
    assert (answer["code"], answer["msg"]) == (code, msg)
    assert not path.ledger.holdings


# --- from the reserve -----------------------------------------------------------------------------------------


def test_a_requested_address_comes_from_anywhere_in_the_reserve(path: Path) -> None:
    """Nobody waits, and the line goes on around it in its order."""
    assert ip(path, "10.0.0.2") == ["10.0.0.2/32"]
    assert path.log == ["append Assigned", "wake", "observe 0"]
    others = [addresses_of(path.ask(call(CNI_CONTAINERID=f"o{number}")))[0] for number in range(4)]
    assert others == ["10.0.0.0/29", "10.0.0.1/29", "10.0.0.3/29", "10.0.0.4/29"]


def test_the_same_request_gets_the_same_answer(path: Path) -> None:
    """A repeated ADD writes nothing and is answered alike, even if the pool was disabled meanwhile."""
    assert ip(path, "10.0.0.2") == ["10.0.0.2/32"]
    path.commit(*pool_record("four", "10.0.0.0/16", blockSize=29, disabled=True))
    path.log.clear()
    assert ip(path, "10.0.0.2") == ["10.0.0.2/32"]
    assert path.log == ["observe 0"]


def test_calicos_main_plugin_asks_for_one_address_after_the_other(path: Path) -> None:
    """Two ADDs of one attachment, one for each IP version: each is answered with its own; one DEL frees both."""
    assert ip(path, "10.0.0.2") == ["10.0.0.2/32"]
    assert ip(path, "fd00::3") == ["fd00::3/128"]
    assert ip(path, "10.0.0.2") == ["10.0.0.2/32"]
    who = Attachment("k8s-pod-network", "c1", "eth0")
    assert len(path.ledger.holdings[who].places) == 2
    restarted = replay("n1", path.ledger.policy, [*path.ledger.checkpoint()])
    assert not differences(snapshot(restarted), snapshot(path.ledger))
    path.ask(call(CNI_COMMAND="DEL"))
    released = path.journal[-1]
    assert isinstance(released, Released)
    assert [place.ordinal for place in released.places] == [2, 3]
    assert not path.ledger.holdings


def test_a_replay_keeps_what_two_adds_gave(path: Path) -> None:
    """After a crash the attachment has both addresses, and neither is released."""
    before = list(path.ledger.checkpoint())
    ip(path, "10.0.0.2")
    ip(path, "fd00::3")
    restarted = replay("n1", path.ledger.policy, [*before, *path.journal])
    assert not differences(snapshot(restarted), snapshot(path.ledger))


async def test_a_second_address_that_cannot_be_written_down_leaves_the_first(path: Path) -> None:
    """A full disk refuses the IPv6 address; the pod keeps its IPv4 address, and the other is free for the next."""
    ip(path, "10.0.0.2")
    before = snapshot(path.ledger)
    path.full = True
    assert (await refused(path, "fd00::3"))[0] == 5
    assert not differences(snapshot(path.ledger), before)
    path.full = False
    assert ip(path, "fd00::3", "c2") == ["fd00::3/128"]
    assert ip(path, "10.0.0.2") == ["10.0.0.2/32"]


def test_a_reserved_address_that_cannot_be_written_down_is_nobodys(path: Path) -> None:
    """An IPReservation came after the address was kept for who asked: taken back, it is not handed out to others."""
    ip(path, "10.0.0.0")
    reservation = json.dumps({"spec": {"reservedCIDRs": ["10.0.0.0/30"]}}).encode()
    path.commit(keys.RESERVATIONS + "r", reservation)
    path.ask(call(CNI_COMMAND="DEL"))
    path.ledger.settle()
    assert addresses_of(path.ask(call(CNI_CONTAINERID="c2"))) == ["10.0.0.4/29"]


# --- refusals that need no look -------------------------------------------------------------------------------


async def test_an_address_of_another_pod_here(path: Path) -> None:
    """Taken: code 104, and whose it is."""
    ip(path, "10.0.0.2")
    assert await refused(path, "10.0.0.2", "c2") == (
        104,
        (
            "cannot assign 10.0.0.2 to default/web: default/web on this node has it; request another address, or release "
            "this one first"
        ),
    )
    path.ask(call(CNI_CONTAINERID="c3", CNI_ARGS=""))
    assert (await refused(path, "10.0.0.0", "c2"))[1] == (
        "cannot assign 10.0.0.0 to default/web: container c3 on this node has it; request another address, or release "
        "this one first"
    )


async def test_both_or_none(path: Path) -> None:
    """One of two addresses is taken: the other is not assigned either."""
    ip(path, "10.0.0.2")
    assert (await refused(path, "fd00::1,10.0.0.2", "c2"))[0] == 104
    assert Attachment("k8s-pod-network", "c2", "eth0") not in path.ledger.holdings
    assert path.ledger.available("six") == 8


async def test_another_address_than_the_pod_has(path: Path) -> None:
    """An attachment that has an address gets no second one of its IP version: code 105."""
    path.ask(call())
    assert await refused(path, "10.0.0.2") == (
        105,
        "cannot assign 10.0.0.2 to default/web: it has 10.0.0.0 already; delete the pod first, or ask for that address",
    )


@pytest.mark.parametrize(
    ("spec", "address", "why"),
    [
        ({}, "10.9.0.1", "it is in no IP pool; request an address of an enabled pool"),
        (
            {"disabled": True},
            "10.1.0.1",
            "its pool other (10.1.0.0/24) is disabled; request an address of another pool",
        ),
        (
            {"allowedUses": ["Tunnel"]},
            "10.1.0.1",
            (
                "its pool other (10.1.0.0/24) is not allowed for use Workload (allowedUses: Tunnel); request an address of "
                "another pool"
            ),
        ),
    ],
)
async def test_an_address_that_no_pool_may_give(path: Path, spec: dict[str, object], address: str, why: str) -> None:
    """In no pool, in a disabled one, in one for another use: code 105, the reason and the cure."""
    path.commit(*pool_record("other", "10.1.0.0/24", **spec))
    assert await refused(path, address) == (105, f"cannot assign {address} to default/web: {why}")


async def test_an_address_that_may_be_in_a_pool_whose_record_is_damaged(path: Path) -> None:
    """The refusal names the pool that cannot be read, and why: the address may be one of it."""
    path.commit(keys.POOLS + "torn", b"{")
    assert await refused(path, "10.9.0.1") == (
        105,
        (
            "cannot assign 10.9.0.1 to default/web: it is in no IP pool that can be read; pool torn has a record that "
            "cannot be understood (not an IPPool: Input data was truncated); correct the record, or request another "
            "address"
        ),
    )


@pytest.mark.parametrize(
    "spec", [{"nodeSelector": "!all()"}, {"assignmentMode": "Manual"}, {"namespaceSelector": "x == 'y'"}]
)
def test_selectors_and_manual_do_not_matter(path: Path, spec: dict[str, object]) -> None:
    """A pool that would not serve this pod by itself gives the address that is asked for, whatever pool is named."""
    path.commit(*pool_record("other", "10.1.0.0/24", blockSize=29, **spec))
    path.supply("10.1.0.0/29", 8)
    assert ip(path, "10.1.0.3", ipv4_pools=["four"]) == ["10.1.0.3/32"]


async def test_a_locked_datastore_gives_nothing(path: Path) -> None:
    """As any other ADD: code 11."""
    path.commit(keys.CLUSTER_INFORMATION, b'{"spec":{"datastoreReady":false}}')
    assert (await refused(path, "10.0.0.2"))[0] == 11


# --- waiting --------------------------------------------------------------------------------------------------


async def test_who_asked_gets_it_and_nobody_else(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """An address that arrives in the reserve while somebody waits for it is not handed out to whoever comes."""
    path = Path()
    path.supply("fd00::/125", 1)
    got: list[list[str]] = []

    async def ask() -> None:
        got.append(addresses_of(await path.answer(call(CNI_ARGS=f"{WEB};IP=10.0.0.0,fd00::"))))

    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    # One of the two is here and kept, too: an ADD of IPv6 waits rather than take it.
    assert path.ledger.blocks["fd00::/125"].head() is None
    path.supply("10.0.0.0/29", {0: RESERVE, 1: RESERVE})
    await trio.testing.wait_all_tasks_blocked()
    assert got == [["10.0.0.0/32", "fd00::/128"]]
    assert addresses_of(path.ask(call(CNI_CONTAINERID="c2"))) == ["10.0.0.1/29"]


async def test_when_nobody_waits_any_more_it_is_anybodys(autojump_clock: MockClock) -> None:
    """After the deadline the address is in the line again, at its end; the refusal says what was wanted."""
    path = Path(deadline=2.0)
    path.supply("10.0.0.0/29", 2)
    response = await path.answer(call(CNI_ARGS=f"{WEB};IP=10.0.0.0,fd00::7"))
    assert error_of(response)["msg"] == (
        "cannot assign 10.0.0.0 and fd00::7 to default/web: the store could not be asked in 2 s; it is a test; "
        "the runtime will try again"
    )
    assert not path.ledger.wanted
    assert path.ledger.blocks["10.0.0.0/29"].line() == [1, 0]
