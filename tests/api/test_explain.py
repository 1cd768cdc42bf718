"""``/v1/explain``: what is asked, as data, from what the daemon knows of CNI, Kubernetes and the store."""

import json
from urllib.parse import urlencode

import pytest

from ipamd.api.http import Request, Response
from ipamd.core.address import parse_cidr
from ipamd.core.errors import Code, RefusedError
from ipamd.core.pod import PodFacts
from tests.api.plugin_call import ROOT, Path, addresses_of, call, config, error_of
from tests.nodes import pool_record

RANGES = {
    "cniVersion": "1.0.0",
    "name": "lan",
    "type": "bridge",
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/30"}], [{"subnet": "fd09::/64"}]]},
}


class FakePods:
    """Kubernetes: pods by namespace and name, and whether only the API knows them."""

    def __init__(self, pods: dict[tuple[str, str], PodFacts], *, remembered: bool = True) -> None:
        self._pods, self._remembered = pods, remembered

    def find(self, namespace: str, name: str) -> PodFacts | None:
        """From memory."""
        return self._pods.get((namespace, name)) if self._remembered else None

    async def fetch(self, namespace: str, name: str, uid: str) -> PodFacts:
        """By name."""
        assert uid == ""
        if (namespace, name) not in self._pods:
            raise RefusedError(
                Code.POD_UNKNOWN, f"cannot assign an address to {namespace}/{name}: no such pod; nothing"
            )
        return self._pods[namespace, name]

    def pod_cidrs(self) -> tuple[str, ...]:
        """This node's."""
        return ("10.8.0.0/24",)


async def ask(path: Path, **query: object) -> dict[str, object]:
    """What is answered to a query; a ``config`` that is no text is sent as JSON."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in query.items()}
    response = path.explain.answer(Request("GET", "/v1/explain", urlencode(texts), {}, b"", keep_alive=True), ROOT)
    if not isinstance(response, Response):
        response = await response
    answer = json.loads(response.body)
    assert isinstance(answer, dict)
    assert ("code" in answer) == (response.status != 200)
    return answer


def outcome(answer: dict[str, object]) -> list[tuple[object, ...]]:
    """Of each decision the IP version, the outcome, and the address or what is in its way."""
    decisions = answer["decisions"]
    assert isinstance(decisions, list)
    return [
        (d["family"], d["outcome"], d["address"] or d["why"] or (d["refusal"]["code"], d["refusal"]["msg"]))
        for d in decisions
    ]


async def test_a_pod_that_has_an_address() -> None:
    """What it holds, of which pool and block, since when; and what its next ADD would get of each IP version."""
    path = Path()
    path.supply("10.0.0.0/29", 2)
    path.ask(call())
    answer = await ask(path, pod="default/web")
    (held,) = answer["holds"]  # type: ignore[misc] # a list
    assert (held["address"], held["pool"], held["block"]) == ("10.0.0.0", "four", "10.0.0.0/29")
    assert (held["container"], held["interface"], held["flushed"]) == ("c1", "eth0", False)
    assert outcome(answer) == [
        (4, "address", "10.0.0.1"),
        (6, "wait", "no address of pool six is in reserve; it is a test"),
    ]
    assert answer["kubernetes"] == "it is not asked: kubernetes.config is not set"
    assert (await ask(path, pod="default/other"))["holds"] == []


async def test_the_next_pod_gets_what_was_told() -> None:
    """An ADD after it gets that very address; asking took nothing."""
    path = Path()
    path.supply("10.0.0.0/29", 2)
    for _again in range(3):
        assert outcome(await ask(path, pod="default/web"))[0] == (4, "address", "10.0.0.0")
    assert addresses_of(path.ask(call(config("1.0.0", type="ipamd"))))[0].startswith("10.0.0.0/")


@pytest.mark.parametrize("remembered", [True, False])
async def test_what_kubernetes_says_of_a_pod_counts(remembered: bool) -> None:
    """Annotations name pools and addresses, namespaces have labels: from memory, or asked for by name."""
    path = Path()
    path.commit(*pool_record("extra", "10.1.0.0/16", blockSize=29, namespaceSelector="team == 'x'"))
    facts = PodFacts({"team": "x"}, {4: ("extra",)}, {4: "pod annotation cni.projectcalico.org/ipv4pools"})
    path.explain.pods = FakePods(
        {("default", "web"): facts, ("default", "fixed"): PodFacts({}, addresses={4: 0x0A010005})},
        remembered=remembered,
    )
    path.supply("10.1.0.0/29", 1)
    answer = await ask(path, pod="default/web")
    decision = answer["decisions"][0]  # type: ignore[index] # a list
    assert (decision["named"], decision["pool"], decision["address"]) == (["extra"], "extra", "10.1.0.0")
    assert answer["kubernetes"] == ""
    assert outcome(await ask(path, pod="default/fixed")) == [
        (4, "wait", "it is reserved in its block 10.1.0.0/29 first, which takes a transaction")
    ]
    answer = await ask(path, pod="default/gone")
    assert answer["refusal"] == {"code": 107, "msg": "cannot assign an address to default/gone: no such pod; nothing"}


async def test_an_annotation_that_calicos_main_plugin_passes_on_counts_too() -> None:
    """Its configuration does not have it yet, as the plugin adds it for each pod."""
    path = Path()
    path.explain.pods = FakePods({("default", "web"): PodFacts({}, {4: ("nope",)}, {4: "pod annotation a"})})
    answer = await ask(path, pod="default/web", config=config())
    assert "pool nope, which pod annotation a names, does not exist" in str(outcome(answer))


async def test_the_refusal_is_the_one_that_an_add_gets() -> None:
    """Word for word, with the code: for a configuration that names a pool, and for one that is refused by itself."""
    for ipam in ({"ipv4_pools": ["nope"]}, {"assign_ipv4": "false"}, {"assign_ipv4": "perhaps"}):
        path = Path()
        error = error_of(await path.answer(call(config("1.0.0", **ipam))))
        answer = await ask(path, pod="default/web", config=config("1.0.0", **ipam))
        told = answer["refusal"] or answer["decisions"][0]["refusal"]  # type: ignore[index] # a list
        assert (told["code"], told["msg"]) == (error["code"], error["msg"])


async def test_host_local_ranges() -> None:
    """The next address of each range set; when one is full the code and text of the refusal (106)."""
    path = Path()
    assert outcome(await ask(path, pod="default/web", config=RANGES)) == [
        (4, "address", "10.9.0.2"), (6, "address", "fd09::2"),
    ]  # fmt: skip
    assert addresses_of(path.ask(call(RANGES))) == ["10.9.0.2/30", "fd09::2/64"]
    error = error_of(path.ask(call(RANGES, CNI_CONTAINERID="c2")))
    assert error["code"] == 106
    assert outcome(await ask(path, pod="default/web", config=RANGES)) == [(4, "refusal", (106, error["msg"]))]
    assert [held["address"] for held in (await ask(path, pod="default/web"))["holds"]] == ["10.9.0.2", "fd09::2"]  # type: ignore[attr-defined] # a list


async def test_the_nodes_pod_cidr_is_known_to_ranges() -> None:
    """``usePodCidr`` is what Kubernetes says; without it the refusal is the one that an ADD gets."""
    path = Path()
    network = {**RANGES, "ipam": {"type": "host-local", "subnet": "usePodCidr"}}
    answer = await ask(path, pod="default/web", config=network)
    assert answer["refusal"] == {key: error_of(path.ask(call(network)))[key] for key in ("code", "msg")}
    path.explain.pods = FakePods({("default", "web"): PodFacts({})})
    assert outcome(await ask(path, pod="default/web", config=network)) == [(4, "address", "10.8.0.2")]


async def test_an_address() -> None:
    """Where it is and who has it; of what this node has no part in, the store is asked."""
    path = Path()
    path.supply("10.0.0.0/29", 2)
    path.ask(call())
    answer = await ask(path, address="10.0.0.0")
    assert (answer["state"], answer["pool"], answer["block"]) == ("pod", "four", "10.0.0.0/29")
    assert answer["holder"]["pod"] == "web"  # type: ignore[index] # an object
    assert path.looks == []
    answer = await ask(path, address="10.0.0.9")
    assert (answer["state"], path.looks) == ("unclaimed", [parse_cidr("10.0.0.8/29")])
    path.ask(call(RANGES))
    assert (await ask(path, address="10.9.0.2"))["ranges"] == {"lan": ["lan", "c1", "eth0"]}


async def test_the_node() -> None:
    """Its labels, the cluster's limits, each pool of both IP versions, blocks and reserves."""
    path = Path()
    path.supply("10.0.0.0/29", 2)
    path.commit(*pool_record("other", "10.1.0.0/16", nodeSelector="rack == '1'"))
    for answer in (await ask(path, node="n1"), await ask(path, node="")):
        assert (answer["node"], answer["max_blocks"], answer["strict_affinity"]) == ("n1", 20, False)
        assert [(p["pool"], p["admitted"], p["next"], p["node_labels"]) for p in answer["pools"]] == [  # type: ignore[attr-defined] # a list
            ("four", True, "10.0.0.0", {}),
            ("other", False, "", {"rack": None}),
            ("six", True, "", {}),
        ]
        assert [block["cidr"] for block in answer["blocks"]] == ["10.0.0.0/29"]  # type: ignore[attr-defined] # a list


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ({}, "cannot explain: it names nothing; give pod=NAMESPACE/NAME, address=IP or node"),
        ({"pod": "web"}, "cannot explain: 'web' is no pod; write NAMESPACE/NAME"),
        ({"pod": "a/b/c"}, "cannot explain: 'a/b/c' is no pod; write NAMESPACE/NAME"),
        ({"address": "10.0.0"}, "cannot explain: '10.0.0' is no address; write one such as 10.0.0.1"),
        ({"node": "n2"}, "cannot explain: this daemon serves node n1, not n2; ask the daemon of that node"),
        ({"pot": "a/b"}, "cannot read the query of /v1/explain: there is no parameter 'pot'; did you mean pod"),
        ({"pod": "a/b", "address": "10.0.0.1"}, "cannot explain: it names more than one thing; ask for one at a time"),
    ],
)
async def test_what_cannot_be_explained(query: dict[str, str], why: str) -> None:
    """A mistake in the question is told as one."""
    assert await ask(Path(), **query) == {"code": 4, "msg": why}
