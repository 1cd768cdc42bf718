"""The configuration: precedence, what is refused and in which words, and that what is printed can be loaded."""

import re
import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipamd.config import KEYS, Config, ConfigError, DefaultPools, default_file, load, render, split_address, suggest

NODE = {"node": "n1"}


def write(tmp_path: Path, text: str) -> Path:
    """A configuration file."""
    file = tmp_path / "ipamd.toml"
    file.write_text(text)
    return file


def problems(
    overrides: dict[str, str] | None = None, env: dict[str, str] | None = None, file: Path | None = None
) -> list[str]:
    """What a configuration is refused for."""
    with pytest.raises(ConfigError) as refused:
        load({**NODE, **(overrides or {})}, env or {}, file)
    return list(refused.value.problems)


def test_the_defaults_are_those_documented() -> None:
    """Without any source but the host's name, every key has its documented default."""
    config = load(NODE, {}, None).config
    assert {path: key.of(config) for path, key in KEYS.items()} == {
        "node": "n1",
        "node_labels": "",
        "socket": Path("/run/ipamd/ipamd.sock"),
        "socket_group": "ipamd",
        "state_dir": Path("/var/lib/ipamd"),
        "spool_dir": Path("/var/lib/ipamd/del.d"),
        "store": "embedded",
        "quarantine": 3600.0,
        "drain_on_exit": False,
        "durability": "journal",
        "metrics_address": "",
        "log_level": "info",
        "log_format": "logfmt",
        "etcd.endpoints": (),
        "etcd.ca_file": None,
        "etcd.cert_file": None,
        "etcd.key_file": None,
        "etcd.username": "",
        "etcd.password_file": None,
        "etcd.timeout": 5.0,
        "embedded.path": Path("/var/lib/ipamd/ipamd.db"),
        "reserve.min": 16,
        "reserve.max": 256,
        "reserve.wait": 10.0,
        "reserve.decay": 30.0,
        "api.max_connections": 1024,
        "api.max_body": 1048576,
        "api.max_head": 16384,
        "api.request_timeout": 10.0,
        "api.idle_timeout": 60.0,
        "flush.linger": 0.1,
        "flush.max_operations": 64,
        "flush.max_bytes": 1048576,
        "default_pools.none": False,
        "default_pools.ipv4_cidr": "",
        "default_pools.ipv4_block_size": 26,
        "default_pools.ipv4_ipip": "Never",
        "default_pools.ipv4_vxlan": "Never",
        "default_pools.ipv4_nat_outgoing": True,
        "default_pools.ipv4_node_selector": "all()",
        "default_pools.ipv4_disable_bgp_export": False,
        "default_pools.ipv6_cidr": "",
        "default_pools.ipv6_block_size": 122,
        "default_pools.ipv6_vxlan": "Never",
        "default_pools.ipv6_nat_outgoing": False,
        "default_pools.ipv6_node_selector": "all()",
        "default_pools.ipv6_disable_bgp_export": False,
        "kubernetes.config": "",
        "kubernetes.timeout": 5.0,
        "runtime.results_dir": Path("/var/lib/cni/results"),
        "runtime.leak_grace": 600.0,
        "cleaner.interval": 60.0,
        "cleaner.grace": 3600.0,
    }


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_a_switch_is_true_or_false(text: str, value: bool) -> None:
    """The same two words in the environment and on the command line; nothing else is taken for one of them."""
    assert load(NODE, {"IPAMD_DRAIN_ON_EXIT": text}, None).config.drain_on_exit is value
    for other in ("1", "yes", "True", ""):
        (problem,) = problems({"drain_on_exit": other})
        assert "must be true or false, not" in problem


def test_a_config_made_directly_has_the_defaults_that_loading_gives() -> None:
    """Defaults live in one place: tests and tools may make a Config without loading one."""
    assert Config(node="n1") == load(NODE, {}, None).config


def test_names_follow_from_the_path_and_do_not_collide() -> None:
    """A key's variable and flag are its path in another spelling, and no two keys share one."""
    key = KEYS["default_pools.ipv4_cidr"]
    assert (key.environment, key.flag) == ("IPAMD_DEFAULT_POOLS_IPV4_CIDR", "--default-pools-ipv4-cidr")
    assert len({k.environment for k in KEYS.values()}) == len({k.flag for k in KEYS.values()}) == len(KEYS)


def test_every_key_has_one_line_of_help() -> None:
    """The help goes into --help and into comments: it is there, one line, and not a sentence."""
    for key in KEYS.values():
        assert key.help, key.path
        assert "\n" not in key.help, key.path
        assert not key.help.endswith("."), key.path


@pytest.mark.parametrize(
    ("in_file", "in_env", "as_flag", "value", "origin"),
    [
        (False, False, False, 16, "default"),
        (True, False, False, 21, "file:{file}"),
        (False, True, False, 22, "env:IPAMD_RESERVE_MIN"),
        (True, True, False, 22, "env:IPAMD_RESERVE_MIN"),
        (False, False, True, 23, "flag:--reserve-min"),
        (True, False, True, 23, "flag:--reserve-min"),
        (True, True, True, 23, "flag:--reserve-min"),
    ],
)
def test_the_later_source_wins(
    tmp_path: Path, in_file: bool, in_env: bool, as_flag: bool, value: int, origin: str
) -> None:
    """Flags beat the environment, which beats the file, which beats the default; the origin says which it was."""
    file = write(tmp_path, "[reserve]\nmin = 21\n")
    loaded = load(
        {**NODE, **({"reserve.min": "23"} if as_flag else {})},
        {"IPAMD_RESERVE_MIN": "22"} if in_env else {},
        file if in_file else None,
    )
    assert loaded.config.reserve.min == value
    assert loaded.origins["reserve.min"] == origin.format(file=file)
    assert loaded.origins["reserve.max"] == "default"


def test_a_list_is_separated_by_commas_in_the_environment_and_an_array_in_the_file(tmp_path: Path) -> None:
    """Both give the same endpoints; spaces around a comma and a comma at the end do not matter."""
    file = write(tmp_path, '[etcd]\nendpoints = ["http://a:2379", "http://[::1]:2379"]\n')
    from_file = load(NODE, {}, file).config
    from_env = load(NODE, {"IPAMD_ETCD_ENDPOINTS": "http://a:2379, http://[::1]:2379,"}, None).config
    assert from_file.etcd.endpoints == from_env.etcd.endpoints == ("http://a:2379", "http://[::1]:2379")


def test_endpoints_choose_the_store() -> None:
    """With endpoints the store is etcd unless told otherwise, without them embedded."""
    assert load({**NODE, "etcd.endpoints": "http://a:1"}, {}, None).config.store == "etcd"
    assert load({**NODE, "etcd.endpoints": ""}, {}, None).config.store == "embedded"


def test_the_embedded_store_lies_in_the_state_directory() -> None:
    """embedded.path follows state_dir until it is given itself."""
    assert load({**NODE, "state_dir": "/x"}, {}, None).config.embedded.path == Path("/x/ipamd.db")
    given_path = {**NODE, "state_dir": "/x", "embedded.path": "/y/db"}
    assert load(given_path, {}, None).config.embedded.path == Path("/y/db")


def test_the_node_is_the_host_name_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes' names of nodes are in lower case, hosts' names need not be."""
    monkeypatch.setattr(socket, "gethostname", lambda: "Node-7.Example.ORG")
    assert load({}, {}, None).config.node == "node-7.example.org"


def test_a_host_name_that_is_no_node_name_matters_only_without_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose name Kubernetes could not use is told to name its node, and heard when it does."""
    monkeypatch.setattr(socket, "gethostname", lambda: "my_host")
    assert load({}, {"IPAMD_NODE": "n1"}, None).config.node == "n1"
    assert problems({"node": "N1"}) == [
        '--node: must be a node\'s name in Kubernetes (lower case letters, digits, - and .), not "N1"'
    ]
    with pytest.raises(ConfigError) as refused:
        load({}, {}, None)
    assert refused.value.problems == (
        (
            "host name (without --node): must be a node's name in Kubernetes (lower case letters, digits, - and .), "
            'not "my_host"'
        ),
    )


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("node", "Node1", 'must be a node\'s name in Kubernetes (lower case letters, digits, - and .), not "Node1"'),
        ("node", "a/b", 'must be a node\'s name in Kubernetes (lower case letters, digits, - and .), not "a/b"'),
        ("socket", "ipamd.sock", 'must be an absolute path, not "ipamd.sock"'),
        ("socket", "", 'must be an absolute path, not ""'),
        ("socket", "/" + "s" * 107, "must be a path of at most 107 bytes, not of 108"),
        ("socket", "/" + "ü" * 54, "must be a path of at most 107 bytes, not of 109"),
        ("state_dir", "/a\nb", 'must be printable text, without "\\n"'),
        ("state_dir", "/a\udcff", 'must be printable text, without "\\udcff"'),
        ("socket_group", "a\x1b[2J", 'must be printable text, without "\\u001b"'),
        ("store", "sqlite", 'must be one of embedded, etcd, not "sqlite"'),
        ("durability", "", 'must be one of etcd, fsync, journal, not ""'),
        ("log_level", "INFO", 'must be one of debug, error, info, warning, not "INFO"'),
        ("node_labels", "rack", 'must be labels as rack=0,zone=b, not "rack"'),
        ("node_labels", "rack=0, zo ne=b", 'must be labels as rack=0,zone=b, not "zo ne=b"'),
        ("node_labels", "rack=0,rack=1", "must give each label once, not rack again"),
        ("metrics_address", "9100", 'must be host:port or [IPv6 address]:port, not "9100"'),
        ("metrics_address", ":9100", 'must be host:port or [IPv6 address]:port, not ":9100"'),
        ("metrics_address", "localhost:http", 'must be host:port or [IPv6 address]:port, not "localhost:http"'),
        ("metrics_address", "localhost:65536", 'must be host:port or [IPv6 address]:port, not "localhost:65536"'),
        ("metrics_address", "::1:9100", 'must have its IPv6 address in brackets: [::1]:port, not "::1:9100"'),
        ("metrics_address", "[::g]:1", 'must have an IPv6 address in the brackets, not "::g"'),
        ("metrics_address", "10.0.0.256:1", 'must begin with a host name or an address, not "10.0.0.256"'),
        ("metrics_address", "a b:1", 'must begin with a host name or an address, not "a b"'),
        ("etcd.endpoints", "a:2379", 'must be http://host:port or https://host:port, not "a:2379"'),
        ("etcd.endpoints", "http://a", 'must be host:port or [IPv6 address]:port, not "a"'),
        ("etcd.endpoints", "http://a:1/v3", 'must be host:port or [IPv6 address]:port, not "a:1/v3"'),
        ("etcd.endpoints", "http://a:1,http://a:0", 'must have a port other than 0, not "http://a:0"'),
        ("etcd.timeout", "5s", 'must be a number from 0.1 to 60, not "5s"'),
        ("etcd.timeout", "0", "must be a number from 0.1 to 60, not 0.0"),
        ("etcd.timeout", "nan", 'must be a number from 0.1 to 60, not "nan"'),
        ("reserve.min", "", 'must be a whole number from 1 to 4096, not ""'),
        ("reserve.min", "0", "must be a whole number from 1 to 4096, not 0"),
        ("reserve.min", "1_6", 'must be a whole number from 1 to 4096, not "1_6"'),
        ("reserve.min", "٣", 'must be a whole number from 1 to 4096, not "٣"'),
        ("reserve.min", "1.5", 'must be a whole number from 1 to 4096, not "1.5"'),
        ("reserve.min", "9" * 70, f'must be a whole number from 1 to 4096, not "{"9" * 61}..."'),
        ("flush.max_operations", "121", "must be a whole number from 1 to 120, not 121"),
        ("kubernetes.config", "config", 'must be in-cluster or the absolute path of a kubeconfig, not "config"'),
        ("default_pools.ipv4_cidr", "10.0.0.1/16", "must be an IPv4 CIDR: 10.0.0.1/16 has host bits set"),
        ("default_pools.ipv4_cidr", "fd00::/64", 'must be an IPv4 CIDR, not "fd00::/64"'),
        (
            "default_pools.ipv4_cidr",
            "169.254.1.0/24",
            'must not overlap link-local addresses (169.254.0.0/16), as "169.254.1.0/24" does',
        ),
        (
            "default_pools.ipv6_cidr",
            "fe80::/64",
            'must not overlap link-local addresses (fe80::/10), as "fe80::/64" does',
        ),
        ("default_pools.ipv4_block_size", "19", "must be a whole number from 20 to 32, not 19"),
        ("default_pools.ipv6_block_size", "129", "must be a whole number from 116 to 128, not 129"),
        (
            "default_pools.ipv4_node_selector",
            "global()",
            "must not use global(), which means nothing for a node",
        ),
        ("default_pools.ipv6_cidr", "fd00::", "must be an IPv6 CIDR: 'fd00::' is not a CIDR: it has no prefix length"),
    ],
)
def test_a_text_that_is_no_value_is_refused_in_words(path: str, text: str, words: str) -> None:
    """The message names the flag or the variable, says what would be a value, and shows what was given."""
    assert problems({path: text}) == [f"{KEYS[path].flag}: {words}"]
    with pytest.raises(ConfigError) as refused:
        load({} if path == "node" else NODE, {KEYS[path].environment: text}, None)
    assert refused.value.problems == (f"{KEYS[path].environment}: {words}",)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("node = 1", "node: must be text, not a whole number"),
        ("socket = {}", "socket: must be text, not a table"),
        ("store = true", "store: must be one of embedded, etcd, not true or false"),
        ('etcd.endpoints = "http://a:1"', "etcd.endpoints: must be an array, not text"),
        ("etcd.endpoints = [1]", "etcd.endpoints: must be an array of texts, not one with a whole number"),
        ("etcd.timeout = true", "etcd.timeout: must be a number from 0.1 to 60, not true or false"),
        ("etcd.timeout = nan", "etcd.timeout: must be a number from 0.1 to 60"),
        ("etcd.timeout = inf", "etcd.timeout: must be a number from 0.1 to 60"),
        ('reserve.min = "16"', "reserve.min: must be a whole number from 1 to 4096, not text"),
        ("reserve.min = 16.0", "reserve.min: must be a whole number from 1 to 4096, not a number"),
        ("reserve.min = 2026-01-01", "reserve.min: must be a whole number from 1 to 4096, not a date or time"),
        (f"reserve.min = 0x{'f' * 5000}", "reserve.min: must be a whole number from 1 to 4096"),
        ("reserve = 16", "reserve: must be a table, [reserve], not a whole number"),
        ("[[reserve]]", "reserve: must be a table, [reserve], not an array"),
    ],
)
def test_a_file_with_a_value_of_the_wrong_type_is_refused_in_words(tmp_path: Path, toml: str, words: str) -> None:
    """The message names the file and the key, says what it must be and what it is."""
    file = write(tmp_path, toml)
    assert problems(file=file) == [f"{file}: {words}"]


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("nod = 'x'", 'unknown key "nod"; did you mean node at the top of the file?'),
        ("zzz = 1", 'unknown key "zzz"'),
        ("[reserve]\nmim = 1", 'unknown key "mim" in [reserve]; did you mean min in [reserve]?'),
        (
            "[etcd]\nlog_level = 'info'",
            'unknown key "log_level" in [etcd]; did you mean log_level at the top of the file?',
        ),
        ("endpoints = []", 'unknown key "endpoints"; did you mean endpoints in [etcd]?'),
        ("'reserve.min' = 1", 'unknown key "reserve.min"; did you mean min in [reserve]?'),
        ("[etdc]\nendpoints = []\ntimeout = 1", 'unknown table "etdc"; did you mean etcd?'),
        ('"a\\nb" = 1', 'unknown key "a\\nb"'),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path, toml: str, words: str) -> None:
    """A misspelt or misplaced key would otherwise be a default that nobody wanted."""
    file = write(tmp_path, toml)
    assert problems(file=file) == [f"{file}: {words}"]


def test_an_unknown_variable_is_refused_with_the_nearest_known_one() -> None:
    """The environment is checked for misspelt names as the file is."""
    assert problems(env={"IPAMD_RESERVE_MIM": "1", "IPAMD_XYZ": "1", "PATH": "/bin"}) == [
        "IPAMD_RESERVE_MIM: unknown environment variable; did you mean IPAMD_RESERVE_MIN?",
        "IPAMD_XYZ: unknown environment variable",
    ]


def test_variables_that_kubernetes_injects_for_a_service_are_let_pass() -> None:
    """A Service named ipamd or ipamd-metrics in the namespace must not keep the daemon from starting."""
    names = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_9100_TCP", "PORT_9100_TCP_ADDR"]
    env = {f"IPAMD_{service}{name}": "tcp://10.0.0.1:9100" for service in ("", "METRICS_") for name in names}
    assert load(NODE, env, None).config == Config(node="n1")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"node": ""}, "node is empty; give this node's name in Kubernetes [node from flag:--node]"),
        (
            {"reserve.min": "300"},
            (
                "reserve.min is 300, more than reserve.max, 256; lower the one or raise the other "
                "[reserve.min from flag:--reserve-min, reserve.max from default]"
            ),
        ),
        (
            {"store": "etcd"},
            (
                "store is etcd but etcd.endpoints is empty; give the endpoints or choose store = embedded "
                "[store from flag:--store, etcd.endpoints from default]"
            ),
        ),
        (
            {"store": "embedded", "etcd.endpoints": "http://a:1"},
            (
                "store is embedded but etcd.endpoints is given; leave out one of them "
                "[store from flag:--store, etcd.endpoints from flag:--etcd-endpoints]"
            ),
        ),
        (
            {"etcd.endpoints": "http://a:1,https://b:1"},
            (
                "etcd.endpoints has both http and https; one connection serves them all: use one of the two "
                "[etcd.endpoints from flag:--etcd-endpoints]"
            ),
        ),
        (
            {"etcd.endpoints": "http://a:1", "etcd.ca_file": "/ca"},
            (
                "etcd.ca_file, etcd.cert_file and etcd.key_file need https and no endpoint has it; write the endpoints "
                "with https:// or leave the files out [etcd.endpoints from flag:--etcd-endpoints, "
                "etcd.ca_file from flag:--etcd-ca-file, etcd.cert_file from default, etcd.key_file from default]"
            ),
        ),
        (
            {"etcd.endpoints": "https://a:1", "etcd.cert_file": "/c"},
            (
                "etcd.cert_file and etcd.key_file belong together; give both or none "
                "[etcd.cert_file from flag:--etcd-cert-file, etcd.key_file from default]"
            ),
        ),
        (
            {"etcd.endpoints": "https://a:1", "etcd.key_file": "/k"},
            (
                "etcd.cert_file and etcd.key_file belong together; give both or none "
                "[etcd.cert_file from default, etcd.key_file from flag:--etcd-key-file]"
            ),
        ),
        (
            {"etcd.endpoints": "http://a:1", "etcd.username": "u"},
            (
                "etcd.username and etcd.password_file belong together; give both or none "
                "[etcd.username from flag:--etcd-username, etcd.password_file from default]"
            ),
        ),
        (
            {"etcd.endpoints": "http://a:1", "etcd.password_file": "/p"},
            (
                "etcd.username and etcd.password_file belong together; give both or none "
                "[etcd.username from default, etcd.password_file from flag:--etcd-password-file]"
            ),
        ),
    ],
)
def test_keys_that_do_not_fit_together_are_refused_with_where_each_came_from(
    overrides: dict[str, str], words: str
) -> None:
    """Each rule between keys has its message."""
    assert problems(overrides) == [words]


def test_a_full_etcd_configuration_is_accepted() -> None:
    """The rules let pass what they are there to demand."""
    etcd = {
        "etcd.endpoints": "https://a:2379,https://10.0.0.2:2379,https://[fd00::1]:2379",
        "etcd.ca_file": "/ca",
        "etcd.cert_file": "/c",
        "etcd.key_file": "/k",
        "etcd.username": "u",
        "etcd.password_file": "/p",
        "store": "etcd",
    }
    config = load({**NODE, **etcd}, {}, None).config
    assert (config.store, config.etcd.password_file) == ("etcd", Path("/p"))


def test_a_rule_on_a_refused_value_is_left_out() -> None:
    """One mistake gives one problem: a value that was refused does not also break a rule with its default."""
    assert problems({"reserve.max": "x", "reserve.min": "300"}) == [
        '--reserve-max: must be a whole number from 1 to 65536, not "x"'
    ]


def test_a_bad_value_is_refused_even_where_a_later_source_overrides_it(tmp_path: Path) -> None:
    """A mistake in the file does not wait for the day on which the flag goes."""
    file = write(tmp_path, "[reserve]\nmin = 0\n")
    assert problems({"reserve.min": "5"}, file=file) == [
        f"{file}: reserve.min: must be a whole number from 1 to 4096, not 0"
    ]


def test_all_problems_of_all_sources_are_told_at_once(tmp_path: Path) -> None:
    """One start is enough to see everything that must be mended."""
    file = write(tmp_path, 'stor = "etcd"\n[flush]\nlinger = "x"\n[etcd]\ncert_file = "/c"\n')
    with pytest.raises(ConfigError) as refused:
        load({**NODE, "log_level": "loud"}, {"IPAMD_API_MAX_BODY": "many"}, file)
    assert str(refused.value) == (
        "cannot use the configuration:\n"
        f'  {file}: unknown key "stor"; did you mean store at the top of the file?\n'
        f"  {file}: flush.linger: must be a number from 0 to 5, not text\n"
        '  IPAMD_API_MAX_BODY: must be a whole number from 4096 to 67108864, not "many"\n'
        '  --log-level: must be one of debug, error, info, warning, not "loud"\n'
        "  etcd.ca_file, etcd.cert_file and etcd.key_file need https and no endpoint has it; write the endpoints "
        f"with https:// or leave the files out [etcd.endpoints from default, etcd.ca_file from default, "
        f"etcd.cert_file from file:{file}, etcd.key_file from default]\n"
        "  etcd.cert_file and etcd.key_file belong together; give both or none "
        f"[etcd.cert_file from file:{file}, etcd.key_file from default]"
    )


@pytest.mark.parametrize(
    "endpoint", ["http://root:hunter2@a:1", "root:hunter2@a:1", "https://hunter2@a:1", "http://u:hunter2@a\x01:1"]
)
def test_a_password_in_an_endpoint_is_refused_and_not_repeated(tmp_path: Path, endpoint: str) -> None:
    """Endpoints are logged and printed, messages too: neither may hold a password."""
    file = write(tmp_path, f"[etcd]\nendpoints = ['{endpoint}']\n") if "\x01" not in endpoint else None
    told = problems({"etcd.endpoints": endpoint}, {"IPAMD_ETCD_ENDPOINTS": endpoint}, file)
    assert len(told) == (3 if file else 2)
    assert "hunter2" not in str(told)


def test_a_password_under_a_key_that_does_not_exist_is_not_repeated(tmp_path: Path) -> None:
    """Who tries etcd.password is pointed to etcd.password_file, without the password in the log."""
    file = write(tmp_path, "[etcd]\npassword = 'hunter2'\n")
    told = problems(env={"IPAMD_ETCD_PASSWORD": "hunter2"}, file=file)
    assert told == [
        f'{file}: unknown key "password" in [etcd]; did you mean password_file in [etcd]?',
        "IPAMD_ETCD_PASSWORD: unknown environment variable; did you mean IPAMD_ETCD_PASSWORD_FILE?",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"node = ", "is not TOML: Invalid value (at end of document)"),
        (b"a = 1\na = 2\n", "is not TOML: Cannot overwrite a value (at line 2, column 6)"),
        (b"node = '\xff'", "is not TOML: 'utf-8' codec can't decode byte 0xff in position 8: invalid start byte"),
    ],
)
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    """The message says where in the file it goes wrong."""
    file = tmp_path / "ipamd.toml"
    file.write_bytes(content)
    assert problems(file=file) == [f"{file}: {words}"]


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    """A file that was asked for and cannot be read is a problem, not an empty file."""
    assert problems(file=tmp_path / "none") == [f"{tmp_path}/none: cannot be read: No such file or directory"]
    assert problems(file=tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]


def test_the_default_file_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --config the usual file is read if there is one."""
    file = tmp_path / "ipamd.toml"
    monkeypatch.setattr("ipamd.config.sources.DEFAULT_FILE", file)
    assert default_file() is None
    file.touch()
    assert default_file() == file


def test_a_default_file_out_of_reach_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that cannot get at its configuration says so instead of running without it."""
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr("ipamd.config.sources.DEFAULT_FILE", tmp_path / "loop" / "ipamd.toml")
    file = default_file()
    assert file is not None
    assert problems(file=file) == [f"{file}: cannot be read: Too many levels of symbolic links"]


def test_printing_says_of_each_line_what_it_is_and_where_it_came_from(tmp_path: Path) -> None:
    """The printed file explains itself."""
    file = write(tmp_path, "[reserve]\nmax = 64\n")
    lines = render(load({**NODE, "etcd.timeout": "2"}, {"IPAMD_RESERVE_WAIT": "0"}, file)).splitlines()
    start = lines.index("[reserve]") - 1
    assert lines[:2] == ["# this node's name in Kubernetes (default: the host's name)", 'node = "n1"  # flag:--node']
    assert lines[start : start + 8] == [
        "# Free addresses that the store already gives this node.",
        "[reserve]",
        "# addresses to keep in reserve at rest, for each pool in use",
        "min = 16  # default",
        "# addresses that a burst may grow the reserve to",
        f"max = 64  # file:{file}",
        "# seconds that an ADD waits for a free address",
        "wait = 0.0  # env:IPAMD_RESERVE_WAIT",
    ]


def test_the_path_of_the_file_cannot_forge_a_line_of_what_is_printed(tmp_path: Path) -> None:
    """An origin stays a comment, whatever the file is called."""
    file = tmp_path / 'x\nnode = "evil"\n#.toml'
    file.write_text("log_level = 'debug'")
    assert tomllib.loads(render(load(NODE, {}, file)))["node"] == "n1"


# --- default pools by Calico's own variables ------------------------------------------------------------------


def test_the_variables_of_calicos_node_agent_are_understood() -> None:
    """Each of its settings for default pools, in its own words."""
    env = {
        "CALICO_IPV4POOL_CIDR": "10.48.0.0/16",
        "CALICO_IPV4POOL_BLOCK_SIZE": "24",
        "CALICO_IPV4POOL_IPIP": "off",
        "CALICO_IPV4POOL_VXLAN": "Cross-Subnet",
        "CALICO_IPV4POOL_NAT_OUTGOING": "no",
        "CALICO_IPV4POOL_NODE_SELECTOR": "rack == '0'",
        "CALICO_IPV4POOL_DISABLE_BGP_EXPORT": "1",
        "CALICO_IPV6POOL_CIDR": "none",
        "CALICO_IPV6POOL_BLOCK_SIZE": "",
        "CALICO_IPV6POOL_VXLAN": "always",
        "CALICO_IPV6POOL_NAT_OUTGOING": "true",
        "CALICO_NODENAME": "is none of our business",
    }
    pools = load(NODE, env, None).config.default_pools
    assert pools == DefaultPools(
        ipv4_cidr="10.48.0.0/16",
        ipv4_block_size=24,
        ipv4_vxlan="CrossSubnet",
        ipv4_nat_outgoing=False,
        ipv4_node_selector="rack == '0'",
        ipv4_disable_bgp_export=True,
        ipv6_vxlan="Always",
        ipv6_nat_outgoing=True,
    )


def test_calicos_variables_stand_between_the_file_and_our_own(tmp_path: Path) -> None:
    """They win over the file, and yield to IPAMD_ variables and flags."""
    file = write(tmp_path, "[default_pools]\nipv4_block_size = 20\nipv4_ipip = 'Always'\nipv4_nat_outgoing = false\n")
    env = {"CALICO_IPV4POOL_BLOCK_SIZE": "21", "CALICO_IPV4POOL_IPIP": "CrossSubnet"}
    loaded = load(NODE, {**env, "IPAMD_DEFAULT_POOLS_IPV4_BLOCK_SIZE": "22"}, file)
    pools = loaded.config.default_pools
    assert (pools.ipv4_block_size, pools.ipv4_ipip, pools.ipv4_nat_outgoing) == (22, "CrossSubnet", False)
    assert loaded.origins["default_pools.ipv4_ipip"] == "env:CALICO_IPV4POOL_IPIP"
    assert load({**NODE, "default_pools.ipv4_ipip": "Never"}, env, None).config.default_pools.ipv4_ipip == "Never"


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        (
            {"CALICO_IPV4POOL_IPIP": "maybe"},
            'CALICO_IPV4POOL_IPIP: must be one of Always, CrossSubnet, Never, not "maybe"',
        ),
        (
            {"CALICO_IPV4POOL_IPIP": "Always", "CALICO_IPV4POOL_VXLAN": "Always"},
            (
                "default_pools.ipv4_ipip and default_pools.ipv4_vxlan are both on; a pool has one tunnel: turn one off "
                "[default_pools.ipv4_ipip from env:CALICO_IPV4POOL_IPIP, "
                "default_pools.ipv4_vxlan from env:CALICO_IPV4POOL_VXLAN]"
            ),
        ),
        (
            {"NO_DEFAULT_POOLS": "True", "CALICO_IPV4POOL_CIDR": "10.0.0.0/16"},
            (
                "default_pools.none is true but a CIDR is given; leave out one of them "
                "[default_pools.none from env:NO_DEFAULT_POOLS, default_pools.ipv4_cidr from env:CALICO_IPV4POOL_CIDR, "
                "default_pools.ipv6_cidr from default]"
            ),
        ),
        (
            {"CALICO_IPV4POOL_CIDR": "10.3.0.0/28"},
            (
                "a default pool of 10.3.0.0/28 does not hold a block of /26; make the pool larger or its blocks smaller "
                "[default_pools.ipv4_cidr from env:CALICO_IPV4POOL_CIDR, default_pools.ipv4_block_size from default]"
            ),
        ),
        (
            {"CALICO_IPV6POOL_CIDR": "fd00::/124"},
            (
                "a default pool of fd00::/124 does not hold a block of /122; make the pool larger or its blocks smaller "
                "[default_pools.ipv6_cidr from env:CALICO_IPV6POOL_CIDR, default_pools.ipv6_block_size from default]"
            ),
        ),
    ],
)
def test_what_calico_refuses_of_a_default_pool_is_refused(env: dict[str, str], problem: str) -> None:
    """Told at the start, in words, with the variable that says so."""
    assert problems(env=env) == [problem]


def test_a_selector_that_cannot_be_read_is_refused() -> None:
    """With the character at which it cannot."""
    (problem,) = problems(env={"CALICO_IPV6POOL_NODE_SELECTOR": "rack = 1"})
    assert problem.startswith("CALICO_IPV6POOL_NODE_SELECTOR: must be a selector: ")


_paths = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.isprintable).map("/{}".format)
_hosts = st.sampled_from(["a", "etcd-0.example.org", "10.0.0.1", "[fd00::1]", "localhost"])
_addresses = st.builds("{}:{}".format, _hosts, st.integers(1, 65535))
_texts: dict[str, st.SearchStrategy[str]] = {
    "node": st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?(\.[a-z0-9]{1,5})?", fullmatch=True),
    "socket": _paths,
    "state_dir": _paths,
    "socket_group": st.text(st.characters(codec="utf-8"), max_size=20).filter(str.isprintable),
    "durability": st.sampled_from(["journal", "fsync", "etcd"]),
    "node_labels": st.sampled_from(["", "rack=0", "topology.kubernetes.io/zone=b-1,empty="]),
    "metrics_address": st.just("") | _addresses,
    "etcd.endpoints": st.lists(_addresses.map("https://{}".format), max_size=3).map(",".join),
    "etcd.timeout": st.floats(0.1, 60).map("{:.17f}".format),
    "embedded.path": _paths,
    "reserve.min": st.integers(1, 256).map(str),
    "flush.linger": st.floats(0, 5).map("{:.17f}".format),
    "flush.max_bytes": st.integers(65536, 1_500_000).map(str),
    "default_pools.ipv6_cidr": st.sampled_from(["", "fd00::/48", "fd00:10:244::/64"]),
    "default_pools.ipv4_nat_outgoing": st.sampled_from(["true", "false"]),
    "default_pools.ipv4_node_selector": st.sampled_from(["all()", "rack == '0' && !has(gpu)"]),
    "kubernetes.config": st.sampled_from(["", "in-cluster", "/etc/kubernetes/kubelet.conf"]),
}


@given(st.fixed_dictionaries({}, optional=_texts))
def test_what_is_printed_loads_as_the_same_configuration(
    tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any]
) -> None:
    """--print-config makes a file that can take the place of all sources."""
    loaded = load({**NODE, **overrides}, {}, None)
    file = tmp_path_factory.getbasetemp() / "printed.toml"
    file.write_text(render(loaded))
    again = load({}, {}, file)
    assert again.config == loaded.config
    assert set(again.origins.values()) == {f"file:{file}"}


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:9100", "localhost", 9100),
        ("10.0.0.1:0", "10.0.0.1", 0),
        ("[::]:9100", "::", 9100),
        ("a-b.c_d:1", "a-b.c_d", 1),
    ],
)
def test_an_address_splits_into_host_and_port(text: str, host: str, port: int) -> None:
    """Brackets belong to the writing, not to the address."""
    assert split_address(text) == (host, port)


def test_a_shared_prefix_does_not_make_two_names_alike() -> None:
    """Otherwise every misspelt variable would look like some other variable."""
    assert suggest("IPAMD_ZZ", ["IPAMD_QQ"], "IPAMD_") == ""
    assert suggest("IPAMD_NODA", ["IPAMD_NODE", "IPAMD_STORE"], "IPAMD_") == "; did you mean IPAMD_NODE?"


def test_messages_never_hold_what_a_terminal_obeys(tmp_path: Path) -> None:
    """Names and values in messages are escaped: a file cannot clear the screen of who reads the log."""
    file = write(tmp_path, '"\\u001b[2J" = 1\nlog_level = "\\u009b2J"\n')
    told = problems(env={"IPAMD_\x1b[2J": "x"}, file=file)
    assert len(told) == 3
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", "".join(told))
