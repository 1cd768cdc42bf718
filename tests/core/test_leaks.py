"""Allocations whose container is gone and whose DEL never came: released, on the word of two sources, after a while."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.check import check
from ipamd.core.clock import Now
from ipamd.core.facts import Assigned, Attachment, Committed, Place, RangeAssigned, Released
from ipamd.core.leaks import YOUNG, Leak, Leaks
from ipamd.core.ledger import Ledger
from ipamd.core.records import BlockRecord, attribute
from ipamd.core.reserve import ReservePolicy
from tests.core.blocks import image

CIDR = "10.0.0.0/29"
HANDLE = "ipamd-reserve-n1"
SECOND = 1_000_000_000
GRACE = 600 * SECOND
NOW = Now(1_795_218_460 * SECOND, 1_000_000 * SECOND)


def later(seconds: float) -> Now:
    """Both clocks, so much later."""
    return Now(NOW.unix + int(seconds * SECOND), NOW.boot + int(seconds * SECOND))


def assigned(container: str, ordinal: int, pod: str = "web", began: int = NOW.boot) -> Assigned:
    """An address of the block, held by a pod's container since ``NOW``."""
    attachment = Attachment("net", container, "eth0")
    labels = {"namespace": "default", "pod": pod}
    return Assigned(attachment, attachment.handle, (Place(CIDR, ordinal),), labels, NOW.unix, began)


@pytest.fixture
def ledger() -> Ledger:
    """A node with a block wholly in its reserve."""
    made = Ledger("n1", ReservePolicy())
    made.apply(Committed(keys.block_key(parse_cidr(CIDR)), 1, image(CIDR, dict.fromkeys(range(8), HANDLE))))
    return made


def nobody(*_of: str) -> bool:
    """Who lives, or which pod is gone: none."""
    return False


def everybody(*_of: str) -> bool:
    """The same: all."""
    return True


def passes(
    ledger: Ledger,
    lives: Callable[[str], bool],
    pod_gone: Callable[[str, str], bool],
    seconds: float = 1000,
    start: float = YOUNG / SECOND,
) -> list[Leak]:
    """Time passes, with a look each 30 s; what was released."""
    leaks = Leaks(GRACE)
    found: list[Leak] = []
    at = start
    while at <= start + seconds:
        found += leaks.find(ledger, lives, pod_gone, later(at))
        assert check(ledger) == []
        at += 30
    return found


def test_what_both_sources_call_gone_is_released(ledger: Ledger) -> None:
    """The address, the handle and the reason are told; a late ADD of the same attachment is refused."""
    held = assigned("c", 1)
    ledger.apply(held)
    (leak,) = passes(ledger, nobody, everybody)
    assert (leak.handle, leak.addresses) == ("net.c", ("10.0.0.1",))
    assert leak.why == "Kubernetes has no pod default/web on this node"
    assert [type(fact) for fact in leak.facts] == [Released]
    assert ledger.holdings == {}
    assert ledger.tombstones.keys() == {held.attachment}


@pytest.mark.parametrize(
    ("lives", "pod_gone"), [(nobody, nobody), (everybody, everybody)], ids=["cache alone", "kubernetes alone"]
)
def test_one_source_alone_releases_nothing(
    ledger: Ledger, lives: Callable[[str], bool], pod_gone: Callable[[str, str], bool]
) -> None:
    """Neither a container that the runtime lost nor a pod that Kubernetes lost is enough, for however long."""
    ledger.apply(assigned("c", 1))
    assert passes(ledger, lives, pod_gone, 10_000) == []
    assert ledger.holdings


def test_what_was_started_before_this_boot_cannot_live(ledger: Ledger) -> None:
    """A reboot ends every container: with the runtime's word for it the address is released without Kubernetes."""
    ledger.apply(assigned("c", 1, began=0))
    assert passes(ledger, everybody, nobody) == []
    (leak,) = passes(ledger, nobody, nobody)
    assert leak.why == "it was started before this boot"


def test_a_pod_with_another_sandbox_gives_up_the_old_one(ledger: Ledger) -> None:
    """If the runtime knows the new sandbox and not the old one; the new one keeps its address, and other pods theirs."""
    ledger.apply(assigned("old", 1))
    ledger.apply(replace(assigned("new", 2), at=NOW.unix + 1))
    ledger.apply(assigned("other", 3, pod="db"))
    (leak,) = passes(ledger, {"new"}.__contains__, nobody)
    assert (leak.handle, leak.why) == ("net.old", "default/web has another sandbox, new")
    assert {held.attachment.container for held in ledger.holdings.values()} == {"new", "other"}


def test_a_newer_sandbox_that_the_runtime_does_not_know_proves_nothing(ledger: Ledger) -> None:
    """Its ADD may have failed, and the older one may be all that the pod has."""
    ledger.apply(assigned("old", 1))
    ledger.apply(replace(assigned("new", 2), at=NOW.unix + 1))
    assert passes(ledger, nobody, nobody) == []


def test_nothing_is_released_before_the_grace_time(ledger: Ledger) -> None:
    """The sources must agree for all of it: an address that is seen in use once has its time anew."""
    ledger.apply(assigned("c", 1))
    assert passes(ledger, nobody, everybody, 570) == []
    leaks = Leaks(GRACE)
    seen = 0.0
    for at in range(0, 3000, 30):
        lives = at % 570 == 0
        seen += len(leaks.find(ledger, everybody if lives else nobody, everybody, later(400 + at)))
    assert not seen
    assert ledger.holdings


def test_a_source_that_fails_starts_the_grace_time_anew(ledger: Ledger) -> None:
    """What was suspect before a gap has to be so again."""
    ledger.apply(assigned("c", 1))
    leaks = Leaks(GRACE)
    assert leaks.find(ledger, nobody, everybody, later(400)) == []
    leaks.forget()
    assert leaks.find(ledger, nobody, everybody, later(1001)) == []
    assert leaks.find(ledger, nobody, everybody, later(1602))


def test_a_young_allocation_is_nobodys_business(ledger: Ledger) -> None:
    """Its ADD may not have ended; a clock that was set back does not make it old."""
    ledger.apply(assigned("c", 1, began=0))
    assert Leaks(0).find(ledger, nobody, everybody, later(YOUNG / SECOND - 1)) == []
    assert Leaks(0).find(ledger, nobody, everybody, later(-100_000)) == []
    assert Leaks(0).find(ledger, nobody, everybody, later(YOUNG / SECOND))


@pytest.mark.parametrize("step", [-3600, 3600])
def test_a_clock_that_jumps_makes_nobody_older(ledger: Ledger, step: int) -> None:
    """Of what was assigned in this boot the age is measured by the clock that never jumps."""
    ledger.apply(assigned("c", 1))
    jumped = Now(later(5).unix + step * SECOND, later(5).boot)
    assert Leaks(0).find(ledger, nobody, everybody, jumped) == []


def test_an_address_of_host_local_ranges_leaks_alike(ledger: Ledger) -> None:
    """It is released by the same two words, and a late ADD is refused."""
    attachment = Attachment("lan", "c", "eth0")
    labels = {"namespace": "default", "pod": "web"}
    ledger.apply(RangeAssigned(attachment, ("10.9.0.2",), labels, NOW.unix, NOW.boot))
    assert passes(ledger, everybody, everybody) == []
    (leak,) = passes(ledger, nobody, everybody)
    assert leak.addresses == ("10.9.0.2",)
    assert ledger.ranges.holdings == {}
    assert attachment in ledger.tombstones


def adopted(handle: str, **labels: str) -> Ledger:
    """A node whose block has an address that Calico's plugin gave to a pod."""
    made = Ledger("n1", ReservePolicy())
    record = BlockRecord(image(CIDR, {0: HANDLE}))
    record.take({1}, attribute(handle, {"node": "n1", **labels}))
    made.apply(Committed(keys.block_key(parse_cidr(CIDR)), 1, record.encode()))
    return made


def test_what_only_the_store_knows_is_released_by_kubernetes_and_the_cache() -> None:
    """An allocation of Calico's plugin whose pod is gone; the pod of another name keeps its own."""
    ledger = adopted("net.c", namespace="default", pod="web")
    assert passes(ledger, everybody, everybody) == []
    assert passes(ledger, nobody, lambda _namespace, name: name == "db") == []
    (leak,) = passes(ledger, nobody, everybody)
    assert (leak.handle, leak.addresses) == ("net.c", ("10.0.0.1",))
    assert ledger.blocks[CIDR].releasing == {1: "net.c"}


@pytest.mark.parametrize(
    ("handle", "labels"), [("net.c", {}), ("default.web", {"namespace": "default", "pod": "web"}), ("bare", {})]
)
def test_what_names_no_pod_or_no_container_has_only_one_source(handle: str, labels: dict[str, str]) -> None:
    """An old handle that is a pod's name, or attributes without a pod: never released."""
    assert passes(adopted(handle, **labels), nobody, everybody) == []
