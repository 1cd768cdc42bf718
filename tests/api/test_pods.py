"""ADDs of pods that Kubernetes knows: what its annotations change, and when it is not asked at all."""

import pytest
import trio
from trio.testing import MockClock

from ipamd.api import cni
from ipamd.api.asked import add_request, for_pod
from ipamd.core.address import parse_address
from ipamd.core.errors import Code, RefusedError
from ipamd.core.pod import ADDRESSES, POOLS, PodFacts, pod_facts
from ipamd.core.request import AddRequest
from tests.api.plugin_call import Path, addresses_of, call, config, error_of
from tests.nodes import pool_record

ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u1"
PTP = {"cniVersion": "1.0.0", "name": "pods", "type": "ptp", "ipam": {"type": "ipamd"}}
WHO = ("default", "web", "u1")


class Kubernetes:
    """Knows the pods that it is given; others are answered when ``told`` says so, or refused."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str, str], PodFacts] = {}
        self.fetched: list[tuple[str, str, str]] = []
        self.told = trio.Event()
        self.answer: PodFacts | RefusedError | None = None

    def pod(self, namespace: str, name: str, uid: str) -> PodFacts | None:
        """From memory."""
        return self.known.get((namespace, name, uid))

    async def fetch(self, namespace: str, name: str, uid: str) -> PodFacts:
        """When the test says so."""
        self.fetched.append((namespace, name, uid))
        await self.told.wait()
        assert self.answer is not None
        if isinstance(self.answer, RefusedError):
            raise self.answer
        return self.answer


@pytest.fixture
def kubernetes() -> Kubernetes:
    """Nothing is known yet."""
    return Kubernetes()


@pytest.fixture
def path(kubernetes: Kubernetes) -> Path:
    """A node with two IPv4 pools, eight addresses of each in reserve, and Kubernetes."""
    made = Path()
    made.commit(*pool_record("special", "10.9.0.0/16", blockSize=29))
    made.supply("10.0.0.0/29", 8)
    made.supply("10.9.0.0/29", 8)
    made.handlers.pools.pods = kubernetes
    return made


def annotated(pod: dict[str, str] | None = None, namespace: dict[str, str] | None = None, **labels: str) -> PodFacts:
    """What Kubernetes knows of default/web."""
    return pod_facts("default/web", pod or {}, namespace or {}, labels)


SPECIAL = annotated({POOLS[4]: '["special"]'})


# --- what annotations change ----------------------------------------------------------------------------------


def completed(facts: PodFacts, body: object = None) -> AddRequest:
    """The request that an ADD of default/web becomes."""
    request = call(body or PTP, CNI_ARGS=ARGS)
    read = cni.read_config(request)
    return for_pod(add_request(cni.read_invocation(request, read, 1)), read, facts)


def test_an_annotation_comes_before_the_cni_configuration() -> None:
    """For the IP version it is about; the other keeps what the configuration says."""
    both = {**PTP, "ipam": {"type": "ipamd", "assign_ipv6": "true", "ipv4_pools": ["c4"], "ipv6_pools": ["c6"]}}
    asked = completed(annotated({POOLS[4]: '["p4"]'}, {POOLS[4]: '["n4"]'}), both)
    assert asked.named == {4: ("p4",), 6: ("c6",)}
    configured = {version: f"ipam.ipv{version}_pools of the CNI configuration" for version in (4, 6)}
    assert asked.named_by == {**configured, 4: f"pod annotation {POOLS[4]}"}
    asked = completed(annotated({}, {POOLS[6]: '["n6"]', POOLS[4]: '["n4"]'}), both)
    assert asked.named == {4: ("n4",), 6: ("n6",)}
    assert asked.named_by == {version: f"namespace annotation {POOLS[version]}" for version in (4, 6)}
    asked = completed(annotated({POOLS[4]: '["p4"]'}))
    assert (asked.named, asked.named_by[4]) == ({4: ("p4",), 6: ()}, f"pod annotation {POOLS[4]}")
    asked = completed(annotated({POOLS[4]: "[]"}), both)
    assert asked.named[4] == (), "an empty list names no pool, whatever the configuration says"


def test_the_namespaces_labels_go_along() -> None:
    """With and without annotations; without Kubernetes they are not known, which is not the same as none."""
    assert completed(annotated(team="blue")).namespace_labels == {"team": "blue"}
    assert completed(annotated({POOLS[4]: '["p4"]'}, team="blue")).namespace_labels == {"team": "blue"}
    request = call(PTP)
    read = cni.read_config(request)
    assert add_request(cni.read_invocation(request, read, 1)).namespace_labels is None


def test_what_calicos_main_plugin_passes_on_is_not_read_twice() -> None:
    """With it and the name calico-ipam, the configuration already has what the annotations said; labels it has not."""
    everything = {POOLS[4]: '["p4"]', POOLS[6]: "{", ADDRESSES: '["10.0.0.9"]'}
    asked = completed(annotated(everything, team="blue"), config(ipv4_pools=["c4"]))
    assert (asked.named[4], asked.namespace_labels) == (("c4",), {"team": "blue"})
    other = {**config(), "ipam": {"type": "ipamd"}}
    assert completed(annotated({POOLS[4]: '["p4"]'}), other).named[4] == ("p4",), "not under another name"
    assert completed(annotated({POOLS[4]: '["p4"]'}), {**config(), "type": "ptp"}).named[4] == ("p4",)


def test_a_malformed_annotation_refuses_the_pod() -> None:
    """Code 7 with the annotation, the pod and what is wrong."""
    with pytest.raises(RefusedError) as refused:
        completed(annotated({POOLS[4]: "special"}))
    assert (refused.value.code, refused.value.msg) == (
        Code.INVALID_CONFIGURATION,
        (
            "cannot assign an address to default/web: annotation cni.projectcalico.org/ipv4pools of pod default/web is not a "
            "JSON list of texts (JSON is malformed: invalid character (byte 0)); correct it"
        ),
    )


def test_an_annotation_asks_for_addresses() -> None:
    """One of each IP version, beside those that CNI_ARGS or the configuration ask for."""
    asked = completed(annotated({ADDRESSES: '["10.0.0.9", "fd00::9"]'}))
    assert asked.addresses == dict(map(parse_address, ("10.0.0.9", "fd00::9")))
    both = {**PTP, "runtimeConfig": {"ips": ["10.0.0.9/24"]}}
    assert completed(annotated({ADDRESSES: '["10.0.0.9", "fd00::9"]'}), both).addresses == asked.addresses
    assert completed(annotated({ADDRESSES: '["fd00::9"]'}), both).addresses == asked.addresses


def test_an_annotation_that_contradicts_the_request_refuses_the_pod() -> None:
    """Code 7 with both addresses and where each is asked for."""
    with pytest.raises(RefusedError) as refused:
        completed(annotated({ADDRESSES: '["10.0.0.9"]'}), {**PTP, "runtimeConfig": {"ips": ["10.0.0.8/24"]}})
    assert (refused.value.code, refused.value.msg) == (
        Code.INVALID_CONFIGURATION,
        (
            "cannot assign the requested addresses: 10.0.0.8 (the CNI configuration or CNI_ARGS) and 10.0.0.9 (annotation "
            "cni.projectcalico.org/ipAddrs) are both IPv4, and an interface gets one address of an IP version; ask for one"
        ),
    )


# --- when Kubernetes is asked ---------------------------------------------------------------------------------


def test_a_known_pod_is_answered_from_memory(path: Path, kubernetes: Kubernetes) -> None:
    """At once, from the pool that its annotation names, without asking anybody."""
    kubernetes.known[WHO] = SPECIAL
    assert addresses_of(path.ask(call(PTP, CNI_ARGS=ARGS))) == ["10.9.0.0/32"]
    assert not kubernetes.fetched


def test_a_container_without_a_pod_is_not_looked_up(path: Path, kubernetes: Kubernetes) -> None:
    """Other programs use CNI too."""
    for container, args in enumerate([None, "K8S_POD_NAMESPACE=default", "K8S_POD_NAME=web"]):
        assert addresses_of(path.ask(call(PTP, CNI_ARGS=args, CNI_CONTAINERID=f"c{container}")))
    assert not kubernetes.fetched


async def test_a_repeated_add_is_answered_without_kubernetes(
    path: Path, kubernetes: Kubernetes, autojump_clock: MockClock
) -> None:
    """The attachment keeps what it has, whatever became of the annotation or the API."""
    kubernetes.known[WHO] = SPECIAL
    first = path.ask(call(PTP, CNI_ARGS=ARGS))
    kubernetes.known.clear()
    assert path.ask(call(PTP, CNI_ARGS=ARGS)).body == first.body


def test_a_repeated_add_answers_a_requested_address_as_before(path: Path, kubernetes: Kubernetes) -> None:
    """Alone, without its block's mask, under the name calico-ipam too."""
    path.supply("fd00::/125", 8)
    kubernetes.known[WHO] = annotated({ADDRESSES: '["10.9.0.3", "fd00::3"]'})
    body = {**config(), "type": "ptp"}
    first = path.ask(call(body, CNI_ARGS=ARGS))
    assert addresses_of(first) == ["10.9.0.3/32", "fd00::3/128"]
    kubernetes.known.clear()
    assert path.ask(call(body, CNI_ARGS=ARGS)).body == first.body


async def test_an_unknown_pod_waits_until_kubernetes_tells_of_it(
    path: Path, kubernetes: Kubernetes, autojump_clock: MockClock
) -> None:
    """Nothing is assigned before; a namesake that memory has is not it."""
    kubernetes.known["default", "web", "u0"] = SPECIAL
    kubernetes.answer = SPECIAL
    async with path.asked(call(PTP, CNI_ARGS=ARGS)) as answers:
        assert (path.log, path.ledger.available("special")) == ([], 8)
        kubernetes.told.set()
    assert addresses_of(answers[0]) == ["10.9.0.0/32"]
    assert kubernetes.fetched == [WHO]
    assert path.log == ["append Assigned", "wake", "observe 0"]


async def test_a_pod_that_kubernetes_refuses_is_refused(
    path: Path, kubernetes: Kubernetes, autojump_clock: MockClock
) -> None:
    """With its words, code 107 as status 409 and code 11 as 503; nothing is assigned."""
    kubernetes.told.set()
    for code, status in ((Code.POD_UNKNOWN, 409), (Code.TRY_AGAIN_LATER, 503)):
        kubernetes.answer = RefusedError(code, "cannot assign an address to default/web: a test; wait")
        response = await path.answer(call(PTP, CNI_ARGS=ARGS))
        assert (response.status, error_of(response)["code"]) == (status, code)
        assert error_of(response)["msg"] == "cannot assign an address to default/web: a test; wait"
    assert not path.ledger.holdings
    assert [code for _stages, code in path.observed] == [107, 11]


async def test_a_fetched_pod_may_have_to_wait_for_its_pool(kubernetes: Kubernetes, autojump_clock: MockClock) -> None:
    """First for Kubernetes, then for an address; a malformed annotation is told even then."""
    path = Path()
    path.handlers.pools.pods = kubernetes
    kubernetes.told.set()
    kubernetes.answer = annotated()
    async with path.asked(call(PTP, CNI_ARGS=ARGS)) as answers:
        path.supply("10.0.0.0/29", 1)
    assert addresses_of(answers[0]) == ["10.0.0.0/32"]
    kubernetes.answer = annotated({POOLS[4]: "x"})
    assert error_of(await path.answer(call(PTP, CNI_ARGS=ARGS, CNI_CONTAINERID="c2")))["code"] == 7


async def test_a_del_overtakes_an_add_that_waits_for_kubernetes(
    path: Path, kubernetes: Kubernetes, autojump_clock: MockClock
) -> None:
    """When Kubernetes answers at last, the container is gone: code 103, nothing is assigned."""
    kubernetes.answer = SPECIAL
    async with trio.open_nursery() as nursery:
        codes: list[object] = []

        async def ask() -> None:
            codes.append(error_of(await path.answer(call(PTP, CNI_ARGS=ARGS)))["code"])

        nursery.start_soon(ask)
        await trio.sleep(1)
        assert path.ask(call(PTP, CNI_COMMAND="DEL", CNI_ARGS=ARGS)).status == 200
        kubernetes.told.set()
    assert codes == [103]
    assert path.ledger.available("special") == 8
