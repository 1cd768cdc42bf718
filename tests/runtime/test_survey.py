"""The task that looks at the runtime's cache: what it takes back at the start, releases later, and tells."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trio

from ipamd.core import keys, leaks
from ipamd.core.address import Cidr, parse_cidr
from ipamd.core.facts import Attachment, Committed, Fact, Released
from ipamd.core.ledger import Ledger
from ipamd.core.records import BlockRecord
from ipamd.core.reserve import ReservePolicy
from ipamd.host import read_clocks
from ipamd.runtime.survey import Survey
from tests.core.blocks import image
from tests.nodes import pool_record
from tests.runtime.results import cached

CIDR = "10.0.0.0/29"


class Node:
    """A node with a block of its own, and a survey that looks often."""

    def __init__(self, directory: Path) -> None:
        self.ledger = Ledger("n1", ReservePolicy(), None, "b")
        owners = {0: "ipamd-reserve-n1.b", 1: "ipamd-reserve-n1.a", 2: "ipamd-reserve-n1.a"}
        key, value = pool_record("p", "10.0.0.0/16", blockSize=29)
        self.ledger.apply(Committed(key, 1, value))
        self.ledger.apply(Committed(keys.block_key(parse_cidr(CIDR)), 2, image(CIDR, owners)))
        self.kept: list[Fact] = []
        self.reports: list[tuple[str, Mapping[str, str]]] = []
        self.asked: list[Cidr] = []
        self.others: dict[Cidr, BlockRecord] = {}
        self.survey = Survey(
            self.ledger, directory, 0.08, self.kept.extend, read_clocks, lambda *line: self.reports.append(line)
        )

    async def read(self, cidrs: Sequence[Cidr]) -> Mapping[Cidr, BlockRecord]:
        """The store's answer."""
        self.asked.extend(cidrs)
        return self.others


async def until(node: Node, condition: object) -> None:
    """Run the survey until the condition is true."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.survey.run, node.read)
            while not condition():  # type: ignore[operator]
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_what_lives_is_taken_back_and_what_ends_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start the facts are kept and told; when file and pod are gone, the address is released and counted."""
    monkeypatch.setattr(leaks, "YOUNG", 0)
    node = Node(tmp_path)
    path = cached(tmp_path, "c", ["10.0.0.1"])
    cached(tmp_path, "stays", ["10.0.0.2"])
    await node.survey.begin()
    assert {held.container for held in node.ledger.holdings} == {"c", "stays"}
    assert len(node.kept) == 2
    event, values = node.reports[0]
    assert event == "took back addresses of a living container that the state file does not know"
    assert values == {"addresses": "10.0.0.1", "handle": "k8s-pod-network.c"}
    node.survey.pod_gone = lambda _namespace, name: name == "pod-c"
    path.unlink()
    await until(node, lambda: node.survey.leaked)
    assert (node.survey.leaked, node.survey.attachments) == (1, 1)
    released = node.kept[-1]
    assert isinstance(released, Released)
    assert released.attachment == Attachment("k8s-pod-network", "c", "eth0")
    event, values = node.reports[-1]
    assert event == "released a leaked allocation"
    assert values["addresses"] == "10.0.0.1"
    assert values["why"] == (
        "the container runtime does not know the container, and Kubernetes has no pod default/pod-c on this node"
    )


async def test_who_asks_is_shown_what_looks_leaked_and_may_release_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its reason and what is left of the grace; released at once, it is counted, told and durable."""
    monkeypatch.setattr(leaks, "YOUNG", 0)
    node = Node(tmp_path)
    path = cached(tmp_path, "c", ["10.0.0.1"])
    cached(tmp_path, "stays", ["10.0.0.2"])
    await node.survey.begin()
    node.survey.pod_gone = lambda _namespace, name: name == "pod-c"
    assert await node.survey.collect(release=False) == ([], "")
    path.unlink()
    kept = len(node.kept)
    (((leak, left),), problem) = await node.survey.collect(release=False)
    assert (leak.addresses, leak.why) == (("10.0.0.1",), "Kubernetes has no pod default/pod-c on this node")
    assert (left, problem, len(node.kept), node.survey.leaked) == (80_000_000, "", kept, 0)
    await node.survey.collect(release=True)
    assert (len(node.kept), node.survey.leaked) == (kept + 1, 1)
    assert {held.container for held in node.ledger.holdings} == {"stays"}
    assert await node.survey.collect(release=True) == ([], "")


async def test_without_a_cache_nothing_looks_leaked(tmp_path: Path) -> None:
    """It says so: one source's word is not enough."""
    node = Node(tmp_path / "none")
    found, problem = await node.survey.collect(release=True)
    assert found == []
    assert problem == f"the container runtime's cache {tmp_path / 'none'} says nothing: it is absent or empty"


async def test_without_a_cache_nothing_is_known_and_nothing_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that is emptied is no source any more, however long it lasts."""
    monkeypatch.setattr(leaks, "YOUNG", 0)
    node = Node(tmp_path)
    path = cached(tmp_path, "c", ["10.0.0.1"])
    await node.survey.begin()
    path.unlink()
    node.survey.pod_gone = lambda _namespace, _name: True
    looks = [0]
    find = node.survey._take_stock

    def counted(known: object) -> None:
        looks[0] += 1
        find(known)  # type: ignore[arg-type]

    monkeypatch.setattr(node.survey, "_take_stock", counted)
    await until(node, lambda: looks[0] > 20)
    assert node.survey.attachments is None
    assert node.survey.leaked == 0
    assert node.ledger.holdings


async def test_nothing_is_released_while_another_host_serves_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pods' containers are not known to this host's runtime; when it is gone, the grace time begins anew."""
    monkeypatch.setattr(leaks, "YOUNG", 0)
    node = Node(tmp_path)
    path = cached(tmp_path, "c", ["10.0.0.1"])
    cached(tmp_path, "stays", ["10.0.0.2"])
    await node.survey.begin()
    path.unlink()
    node.survey.pod_gone = lambda _namespace, name: name == "pod-c"
    node.ledger.rival = "the other"
    looks = [0]
    find = node.survey._take_stock

    def counted(known: object) -> None:
        looks[0] += 1
        find(known)  # type: ignore[arg-type]

    monkeypatch.setattr(node.survey, "_take_stock", counted)
    await until(node, lambda: looks[0] > 20)
    assert (node.survey.leaked, node.survey.attachments) == (0, 1)
    node.ledger.rival = ""
    await until(node, lambda: node.survey.leaked)


async def test_who_else_has_an_address_is_told_as_long_as_it_lasts(tmp_path: Path) -> None:
    """A block that this node has no part in is read once; the finding ends with the container."""
    node = Node(tmp_path)
    cidr = parse_cidr("10.0.1.0/29")
    node.others[cidr] = BlockRecord(image("10.0.1.0/29", {1: "net.other"}, affinity="host:n2", node="n2"))
    path = cached(tmp_path, "c", ["10.0.1.1"])
    cached(tmp_path, "d", ["10.0.0.1"])
    await node.survey.begin()
    await until(node, lambda: node.survey.findings)
    assert node.asked == [cidr]
    (finding,) = node.survey.findings
    assert "10.0.1.1 has two holders" in finding
    assert "handle net.other on node n2" in finding
    path.unlink()
    await until(node, lambda: not node.survey.findings)
