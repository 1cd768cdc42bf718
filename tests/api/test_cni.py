"""The CNI contract: what is accepted, what is answered, byte for byte, and in which words something is refused."""

import ipaddress
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipamd.api import cni
from ipamd.api.asked import add_request
from ipamd.api.cni import NetworkConfig
from ipamd.api.http import Response
from ipamd.api.result import ResultAddress, error_object, result
from ipamd.core.errors import Code, RefusedError
from tests.api.plugin_call import ENVIRONMENT, NODE, Path, addresses_of, call, config, error_of
from tests.core.captured import steps

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


@pytest.fixture
def path() -> Path:
    """A node with reserve in a block of each IP version."""
    made = Path()
    made.supply("10.0.0.0/29", 8)
    made.supply("fd00::/125", 8)
    return made


# --- results --------------------------------------------------------------------------------------------------


def captured_results() -> list[object]:
    """The successful ADDs without a requested address, as Calico answered them."""
    return [
        pytest.param(
            step["stdin"], step["stdout"], id=f"{step['env']['CNI_CONTAINERID']}-{step['stdin']['cniVersion']}"
        )
        for step in steps("basic")
        if step["env"]["CNI_COMMAND"] == "ADD" and step["exit"] == 0 and "/32" not in step["stdout"]
    ]


def addresses_in(stdout: str) -> list[ResultAddress]:
    """The addresses of a result of any version."""
    answer = json.loads(stdout)
    texts = [each["address"] for each in answer.get("ips", ())]
    texts += [answer[name]["ip"] for name in ("ip4", "ip6") if name in answer]
    parsed = [ipaddress.ip_interface(text) for text in texts]
    return [ResultAddress(each.version, str(each.ip), each.network.prefixlen) for each in parsed]


@pytest.mark.parametrize(("stdin", "stdout"), captured_results())
def test_an_add_prints_what_calicos_plugin_prints(stdin: dict[str, object], stdout: str) -> None:
    """For the same addresses and configuration the result is Calico's, byte for byte, in every version."""
    network = cni.read_config(call(stdin))
    assert result(network, addresses_in(stdout)).decode() == stdout


def test_the_captures_have_all_versions_of_calicos_plugin() -> None:
    """The comparison above covers each version that Calico's plugin speaks, and two families."""
    seen = {str(case.values[0]["cniVersion"]) for case in captured_results()}  # type: ignore[attr-defined] # a ParameterSet
    assert seen >= {"0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0"}


def test_the_newest_version_prints_like_the_one_before() -> None:
    """1.1.0 differs from 1.0.0 in nothing but the version it names."""
    addresses = [ResultAddress(4, "10.0.0.1", 26), ResultAddress(6, "fd00::1", 122)]
    old, new = (result(cni.read_config(call(config(version))), addresses) for version in ("1.0.0", "1.1.0"))
    assert new == old.replace(b'"1.0.0"', b'"1.1.0"')


def result_of(version: str, **ipam: object) -> dict[str, object]:
    """The result for one address of each IP version, without its version."""
    network = cni.read_config(call({**config(version), "ipam": {"type": "ipamd", **ipam}}))
    answer = json.loads(result(network, [ResultAddress(4, "10.0.0.1", 26), ResultAddress(6, "fd00::1", 122)]))
    assert answer.pop("cniVersion") == version
    return answer


def test_an_address_of_type_ipamd_stands_alone() -> None:
    """Without a gateway an address has the mask of one host, and there are no routes."""
    assert result_of("1.0.0") == {"ips": [{"address": "10.0.0.1/32"}, {"address": "fd00::1/128"}]}


def test_gateways_and_routes_of_the_configuration_are_answered() -> None:
    """Each family gets its own gateway; the routes are those of the configuration, in its order."""
    answer = result_of(
        "1.0.0",
        gateway=["169.254.1.1", "fe80::1"],
        routes=[{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fe80::1"}],
    )
    assert answer == {
        "ips": [
            {"address": "10.0.0.1/32", "gateway": "169.254.1.1"},
            {"address": "fd00::1/128", "gateway": "fe80::1"},
        ],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fe80::1"}],
    }


def test_a_gateway_of_one_family_is_not_the_others() -> None:
    """A single gateway is answered with addresses of its own IP version only."""
    assert result_of("1.0.0", gateway="169.254.1.1")["ips"] == [
        {"address": "10.0.0.1/32", "gateway": "169.254.1.1"},
        {"address": "fd00::1/128"},
    ]


ROUTE = {"dst": "10.9.0.0/16", "gw": "10.0.0.9", "mtu": 1400, "advmss": 1360, "priority": 5, "table": 7, "scope": 0}


def test_routes_have_the_new_fields_only_in_the_new_version() -> None:
    """mtu, advmss, priority, table and scope are answered from 1.1.0 on; before, only destination and gateway."""
    assert result_of("1.1.0", routes=[ROUTE])["routes"] == [ROUTE]
    assert result_of("1.0.0", routes=[ROUTE])["routes"] == [{"dst": "10.9.0.0/16", "gw": "10.0.0.9"}]


def test_old_results_keep_routes_with_their_family() -> None:
    """Up to 0.2.0 the IPv4 part has the IPv4 routes and the IPv6 part the others."""
    answer = result_of("0.2.0", gateway=["169.254.1.1"], routes=[{"dst": "0.0.0.0/0"}, {"dst": "::/0"}])
    assert answer == {
        "ip4": {"ip": "10.0.0.1/32", "gateway": "169.254.1.1", "routes": [{"dst": "0.0.0.0/0"}]},
        "ip6": {"ip": "fd00::1/128", "routes": [{"dst": "::/0"}]},
        "dns": {},
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_the_answer_is_in_the_version_of_the_configuration(path: Path, version: str) -> None:
    """Every version is answered in itself."""
    assert json.loads(path.ask(call(config(version))).body)["cniVersion"] == version


# --- the environment ------------------------------------------------------------------------------------------

VERBS = {
    "ADD": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "DEL": {"CNI_CONTAINERID", "CNI_IFNAME"},
    "CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "STATUS": set(),
    "GC": {"CNI_PATH"},
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("variable", [name for name in ENVIRONMENT if name != "CNI_COMMAND"])
@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_each_verb_needs_its_variables_and_no_others(verb: str, variable: str, value: str | None) -> None:
    """The table of the specification: a required variable that is unset or empty is named; others may be missing."""
    request = call(config("1.1.0"), CNI_COMMAND=verb, **{variable: value})
    if variable not in VERBS[verb]:
        assert cni.read_invocation(request, cni.read_config(request), 1).command == verb
        return
    with pytest.raises(RefusedError) as refused:
        cni.read_invocation(request, cni.read_config(request), 1)
    assert (refused.value.code, refused.value.msg) == (
        Code.INVALID_ENVIRONMENT,
        f"cannot use the plugin's environment: {variable} must be set for {verb}",
    )


def test_all_missing_variables_are_named_at_once() -> None:
    """Who corrects the environment need not try three times."""
    request = call(CNI_CONTAINERID=None, CNI_NETNS=None, CNI_IFNAME=None)
    with pytest.raises(RefusedError, match="CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME must be set for ADD"):
        cni.read_invocation(request, cni.read_config(request), 1)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("CNI_COMMAND", "PLAY", "CNI_COMMAND is 'PLAY', not one of ADD, DEL, CHECK, STATUS, GC"),
        ("CNI_COMMAND", "add", "CNI_COMMAND is 'add', not one of ADD, DEL, CHECK, STATUS, GC"),
        ("CNI_COMMAND", "\udc80", "CNI_COMMAND is '\\udc80', not one of ADD, DEL, CHECK, STATUS, GC"),
        ("CNI_CONTAINERID", "../etc", "CNI_CONTAINERID '../etc' is not a container id"),
        ("CNI_CONTAINERID", "a/b", "CNI_CONTAINERID 'a/b' is not a container id"),
        ("CNI_CONTAINERID", "-a", "CNI_CONTAINERID '-a' is not a container id"),
        ("CNI_CONTAINERID", "ä", "CNI_CONTAINERID 'ä' is not a container id"),
        ("CNI_CONTAINERID", "x" * 1025, f"CNI_CONTAINERID '{'x' * 80}' is not a container id"),
        ("CNI_IFNAME", ".", "CNI_IFNAME '.' is not an interface's name"),
        ("CNI_IFNAME", "..", "CNI_IFNAME '..' is not an interface's name"),
        ("CNI_IFNAME", "a/b", "CNI_IFNAME 'a/b' is not an interface's name"),
        ("CNI_IFNAME", "a:b", "CNI_IFNAME 'a:b' is not an interface's name"),
        ("CNI_IFNAME", "a b", "CNI_IFNAME 'a b' is not an interface's name"),
        ("CNI_IFNAME", "a\u2028b", "CNI_IFNAME 'a\\u2028b' is not an interface's name"),
        ("CNI_IFNAME", "sixteencharacter", "CNI_IFNAME 'sixteencharacter' is not an interface's name"),
        ("CNI_IFNAME", "eth\udcff", "CNI_IFNAME 'eth\\udcff' is not an interface's name"),
        ("CNI_ARGS", "A=1;B", "CNI_ARGS has 'B', which is not KEY=VALUE"),
        ("CNI_ARGS", "K8S_POD_NAME=web\udcff", "CNI_ARGS is not UTF-8"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(path: Path, variable: str, value: str, says: str) -> None:
    """Code 4, the variable and what it holds; nothing is assigned."""
    response = path.ask(call(**{variable: value}))
    assert error_of(response) == {
        "cniVersion": "1.0.0",
        "code": 4,
        "msg": f"cannot use the plugin's environment: {says}",
    }
    assert response.status == 400
    assert not path.ledger.holdings


@pytest.mark.parametrize("name", ["eth0", "fifteen-chars.0", "a" * 15, "ünïcode"])
def test_interface_names_of_the_kernel_are_taken(path: Path, name: str) -> None:
    """Up to fifteen characters, but for those that the specification excludes."""
    assert addresses_of(path.ask(call(CNI_IFNAME=name)))


def test_args_are_pairs_separated_by_semicolons() -> None:
    """Values may be empty or hold equal signs; empty pairs are skipped; the last of two wins; unknown ones are kept."""
    request = call(CNI_ARGS="IgnoreUnknown=1;;X=a=b;Y=;X=c;")
    assert cni.read_invocation(request, cni.read_config(request), 1).args == {"IgnoreUnknown": "1", "X": "c", "Y": ""}


def test_pod_and_namespace_become_the_allocations_labels() -> None:
    """What the runtime says about the pod is what the allocation will say; without a pod there are no labels."""
    request = call()
    asked = add_request(cni.read_invocation(request, cni.read_config(request), 1))
    assert (asked.labels, asked.subject) == ({"namespace": "default", "pod": "web"}, "default/web")
    request = call(CNI_ARGS=None)
    asked = add_request(cni.read_invocation(request, cni.read_config(request), 1))
    assert (asked.labels, asked.subject) == ({}, "container c1")


def test_the_older_handle_needs_namespace_and_pod() -> None:
    """The handle of old versions of Calico's plugin is known only with both names."""
    for args, handle in ((ENVIRONMENT["CNI_ARGS"], "default.web"), ("K8S_POD_NAME=web", ""), ("", "")):
        request = call(CNI_ARGS=args)
        assert cni.older_handle(cni.read_invocation(request, cni.read_config(request), 1)) == handle


@pytest.mark.parametrize(
    ("header", "started"),
    [
        ("7", 7),
        ("0", 1),
        ("100", 100),
        ("101", 100),
        ("9" * 19, 100),
        ("9" * 30, 100),
        ("-1", 100),
        ("x", 100),
        ("", 100),
        ("²", 100),
    ],
)
def test_a_call_began_when_the_plugin_says_but_not_later_than_it_arrived(header: str, started: int) -> None:
    """The plugin's start time orders ADD and DEL; nonsense counts as the time of arrival, and 0, an earlier boot, as 1."""
    request = call(environment={"IPAMD_STARTED": header})
    assert cni.read_invocation(request, cni.read_config(request), 100).started == started


# --- versions and the configuration ---------------------------------------------------------------------------

SINCE = {"ADD": "0.1.0", "DEL": "0.1.0", "CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}


@pytest.mark.parametrize("verb", SINCE)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_verb_exists_since_its_version(verb: str, version: str) -> None:
    """A verb that the configuration's version does not have is error 1, in Calico's words."""
    request = call(config(version), CNI_COMMAND=verb)
    network = cni.read_config(request)
    if VERSIONS.index(version) >= VERSIONS.index(SINCE[verb]):
        assert cni.read_invocation(request, network, 1).command == verb
        return
    with pytest.raises(RefusedError) as refused:
        cni.read_invocation(request, network, 1)
    assert (refused.value.code, refused.value.msg) == (1, f"plugin version does not allow {verb}")


def test_a_configuration_without_version_is_the_first(path: Path) -> None:
    """An absent or empty cniVersion means 0.1.0."""
    body = config()
    del body["cniVersion"]
    assert json.loads(path.ask(call(body)).body)["cniVersion"] == "0.1.0"
    assert json.loads(path.ask(call(config(""))).body)["cniVersion"] == "0.1.0"


@pytest.mark.parametrize("key", ["cniVersion", "type", "ipam", "args", "runtimeConfig", "prevResult"])
def test_a_key_that_is_null_counts_as_absent(path: Path, key: str) -> None:
    """As for every plugin in Go: the answer is the one without the key, in every version."""
    without = {name: value for name, value in config().items() if name != key}
    expected = Path()
    for each in (path, expected):
        each.supply("10.0.0.0/29", 8)
    assert path.ask(call({**config(), key: None})).body == expected.ask(call(without)).body


def test_nulls_within_the_ipam_section_count_as_absent(path: Path) -> None:
    """At any depth, as Go's decoder has it."""
    ipam = {"type": "ipamd", "gateway": None, "assign_ipv4": None, "routes": [{"dst": "0.0.0.0/0", "gw": None}]}
    answer = json.loads(path.ask(call({**config(), "ipam": ipam})).body)
    assert answer["routes"] == [{"dst": "0.0.0.0/0"}]


@pytest.mark.parametrize(
    ("body", "code", "msg"),
    [
        (b"", 6, "cannot read the network configuration: it is not JSON (Input data was truncated); correct it"),
        (b"{", 6, "cannot read the network configuration: it is not JSON (Input data was truncated); correct it"),
        (
            b"[]",
            7,
            "cannot use the network configuration: Expected `object`, got `array`; correct the CNI configuration",
        ),
        (
            {**config(), "name": 5},
            7,
            (
                "cannot use the network configuration: Expected `str`, got `int` - at `$.name`; "
                "correct the CNI configuration"
            ),
        ),
        (
            config(assign_ipv4="maybe"),
            7,
            'cannot use the network configuration: ipam.assign_ipv4 is \'maybe\'; write "true" or "false"',
        ),
        (
            config(assign_ipv4="false"),
            7,
            'cannot assign an address: both assign_ipv4 and assign_ipv6 are false; set one of them to "true"',
        ),
        (
            {**config(), "name": "a/b"},
            7,
            (
                "cannot use the network configuration: its name 'a/b' is not a network's name; "
                "it must begin with a letter or digit, followed by letters, digits, '_', '.', '-'"
            ),
        ),
        (
            {**config(), "name": "ipamd-reserve-n1"},
            7,
            (
                "cannot use the network configuration: its name 'ipamd-reserve-n1' begins with ipamd-reserve-, as the "
                "handles of ipamd's reserves do; give the network another name"
            ),
        ),
        (
            config("9.9.9"),
            1,
            (
                "cannot answer in CNI version 9.9.9: the versions spoken are 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, "
                "1.1.0; "
                "correct cniVersion in the network configuration"
            ),
        ),
    ],
)
def test_a_wrong_configuration_is_refused_in_words(path: Path, body: object, code: int, msg: str) -> None:
    """Code 6 for what is no JSON, 7 for what does not fit, 1 for a version that is not spoken; nothing is assigned."""
    answer = error_of(path.ask(call(body)))
    assert (answer["code"], answer["msg"]) == (code, msg)
    assert not path.ledger.holdings


@pytest.mark.parametrize(
    "body", [b'"\xff"', b'{"name":"\xff"}', b"\xff", b'{"name":"\\ud800"}', b"[" * 100_000, b'{"ipam":' * 50_000]
)
def test_bytes_that_are_no_text_are_undecodable(path: Path, body: bytes) -> None:
    """Invalid UTF-8, half surrogates and bottomless nesting are code 6 or 7, like any other nonsense."""
    assert error_of(path.ask(call(body)))["code"] in (6, 7)


@pytest.mark.parametrize("gateway", ["nope", ["169.254.1.1", "x"], "10.0.0.0.1"])
def test_a_wrong_gateway_is_refused_before_anything_is_assigned(path: Path, gateway: object) -> None:
    """Code 7, and the next ADD still gets the first address."""
    body = {**config(), "ipam": {"type": "ipamd", "gateway": gateway}}
    assert error_of(path.ask(call(body)))["code"] == 7
    assert not path.ledger.holdings


@pytest.mark.parametrize(
    ("route", "why"),
    [
        ({"dst": "10.9.0.0"}, "route '10.9.0.0' is not a CIDR"),
        ({"dst": "10.9.0.0/33"}, "route '10.9.0.0/33' is not a CIDR"),
        ({"dst": "nowhere/8"}, "'nowhere' does not appear to be an IPv4 or IPv6 address"),
        ({"dst": "0.0.0.0/0", "gw": "x"}, "'x' does not appear to be an IPv4 or IPv6 address"),
    ],
)
def test_a_wrong_route_is_refused_before_anything_is_assigned(path: Path, route: object, why: str) -> None:
    """Code 7 instead of an answer that the main plugin cannot read, when the address is assigned already."""
    body = {**config(), "ipam": {"type": "ipamd", "routes": [{"dst": "0.0.0.0/0"}, route]}}
    error = error_of(path.ask(call(body)))
    assert (error["code"], error["msg"]) == (7, f"cannot use the network configuration: ipam.routes: {why}; correct it")
    assert not path.ledger.holdings


def test_booleans_may_be_written_as_such(path: Path) -> None:
    """assign_ipv4 and assign_ipv6 are strings in Calico's configurations; JSON booleans mean the same."""
    assert addresses_of(path.ask(call(config(assign_ipv4=False, assign_ipv6=True)))) == ["fd00::/125"]


def test_unknown_keys_are_ignored(path: Path) -> None:
    """A configuration written for Calico's plugin, with keys that mean nothing here, is served."""
    body = {
        **config(log_level="debug"),
        "datastore_type": "etcdv3",
        "kubernetes": {"k8s_api_root": "x"},
        "nodename_file": "/nonexistent",
    }
    assert addresses_of(path.ask(call(body))) == ["10.0.0.0/29"]


@pytest.mark.parametrize("nodename", [NODE, "", None])
def test_a_configuration_for_this_node_is_served(path: Path, nodename: str | None) -> None:
    """``nodename`` is this daemon's, or not said."""
    assert addresses_of(path.ask(call({**config(), "nodename": nodename}))) == ["10.0.0.0/29"]


def test_a_configuration_for_another_node_is_refused(path: Path) -> None:
    """Calico's other parts would not route an address recorded under another name; a DEL is served all the same."""
    body = {**config(), "nodename": "worker-1.example.com"}
    error = error_of(path.ask(call(body)))
    assert (error["code"], error["msg"]) == (
        7,
        (
            "cannot assign an address: the CNI configuration is for node worker-1.example.com (nodename), and this daemon "
            "serves node n1; correct nodename, or the daemon's setting node"
        ),
    )
    assert not path.ledger.holdings
    assert path.ask(call(body, CNI_COMMAND="DEL")).status == 200


def test_an_error_object_is_printed_as_cnis_library_prints_it() -> None:
    """Indented by four blanks, in order; details only if there are any."""
    error = RefusedError(Code.EXHAUSTED, "cannot x: y; z")
    assert error_object("1.0.0", error) == (
        b'{\n    "cniVersion": "1.0.0",\n    "code": 101,\n    "msg": "cannot x: y; z"\n}'
    )
    error = RefusedError(Code.EXHAUSTED, "m", "d")
    assert json.loads(error_object("1.0.0", error))["details"] == "d"


# --- hostile input --------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
VALUES = st.one_of(
    st.sampled_from(
        ["ADD", "DEL", "CHECK", "STATUS", "GC", "eth0", "c1", "", "IP=1", "K8S_POD_NAME=a;K8S_POD_NAMESPACE=b"]
    ),
    TEXT,
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1.0.0", "true", "calico-ipam"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "cniVersion",
                    "ipam",
                    "type",
                    "gateway",
                    "routes",
                    "dst",
                    "gw",
                    "ipv4_pools",
                    "assign_ipv6",
                    "args",
                    "cni",
                    "runtimeConfig",
                    "prevResult",
                    "ranges",
                    "subnet",
                    "cni.dev/valid-attachments",
                ]
            )
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
BODIES = st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    JSON.map(lambda ipam: json.dumps({**config("1.1.0"), "ipam": ipam}).encode()),
)


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from([*ENVIRONMENT, "IPAMD_STARTED"]), st.none() | VALUES), BODIES)
def test_whatever_arrives_is_answered(environment: dict[str, str | None], body: bytes) -> None:
    """Any headers and any body get a response, whose body, if any, is JSON; what was assigned can be written down."""
    import msgspec

    path = Path()
    path.supply("10.0.0.0/29", 8)
    path.supply("fd00::/125", 8)
    response = path.ask(call(body, environment))
    assert isinstance(response, Response)
    if response.body:
        assert isinstance(json.loads(response.body), dict)
    assert len(path.observed) == 1
    msgspec.msgpack.encode(path.journal)
    exit_code = dict(response.headers)["Ipamd-Exit"]
    assert (exit_code == "0") == (response.status == 200)


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_any_ipam_section_is_understood_or_refused(ipam: object) -> None:
    """Decoding a configuration gives a value or RefusedError with words."""
    try:
        network = cni.read_config(call({**config(), "ipam": ipam}))
    except RefusedError as error:
        network, words = None, error.msg
    assert isinstance(network, NetworkConfig) or words.startswith("cannot ")


NOT_TEXT = b"\xff"
RAW_PARTS = {
    "requested addresses": ("ADD", b'"args":{"cni":{"ips":["%b"]}}'),
    "the capability ips": ("ADD", b'"runtimeConfig":{"ips":["%b"]}'),
    "host-local ranges": ("ADD", b'"ipam":{"type":"host-local"},"runtimeConfig":{"ipRanges":[[{"subnet":"%b"}]]}'),
    "valid attachments": ("GC", b'"cni.dev/valid-attachments":[{"containerID":"%b","ifname":"eth0"}]'),
    "a previous result": ("CHECK", b'"prevResult":{"ips":[{"address":"%b"}]}'),
}
"""What of a configuration is decoded when its verb needs it: the verb, and the part with room for a text."""


@pytest.mark.parametrize(("command", "part"), RAW_PARTS.values(), ids=RAW_PARTS.keys())
def test_what_is_no_text_is_refused_wherever_it_is(command: str, part: bytes) -> None:
    """Bytes that are not UTF-8, in a part that is decoded late, are the configuration's fault: code 7."""
    body = b'{"cniVersion":"1.1.0","name":"n",%b}' % (part % NOT_TEXT)
    response = Path().ask(call(body, {"CNI_COMMAND": command}))
    assert isinstance(response, Response)
    assert error_of(response)["code"] == Code.INVALID_CONFIGURATION


NESTED = {
    "valid attachments": ("GC", b'"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b","x":%b}]'),
    "a previous result": ("CHECK", b'"prevResult":{"x":%b}'),
    "host-local ranges": (
        "ADD",
        b'"ipam":{"type":"host-local"},"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/24","x":%b}]]}',
    ),
}


@pytest.mark.parametrize(("command", "part"), NESTED.values(), ids=NESTED.keys())
def test_any_depth_is_answered_in_a_part_that_is_decoded_late(command: str, part: bytes) -> None:
    """What is just shallow enough to be passed over at first may be too deep when it is looked at: no depth escapes."""
    codes = set()
    for depth in range(700, 1010):
        body = b'{"cniVersion":"1.1.0","name":"n",%b}' % (part % (b"[" * depth + b"]" * depth))
        response = Path().ask(call(body, {"CNI_COMMAND": command}))
        assert isinstance(response, Response)
        codes.add(response.status)
    assert codes <= {200, 400, 409}
