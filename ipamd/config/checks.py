"""The rules between keys: each says what does not fit together and what to do.

A rule names the keys it reads, so that it is left out where one of them was refused already, and so that the
message can say where each of them came from.

May import nothing of ipamd but ``config.schema`` and ``core.address``.
"""

from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct

from ipamd.config.schema import Config
from ipamd.core.address import parse_cidr


class Rule(Struct, frozen=True):
    """``broken`` gives the words for a configuration that breaks the rule, else an empty text."""

    keys: tuple[str, ...]
    broken: Callable[[Config], str]


def broken_rules(config: Config, origins: Mapping[str, str], refused: set[str]) -> Iterator[str]:
    """What does not fit together in a configuration, leaving out rules on keys in ``refused``."""
    for rule in RULES:
        if refused.intersection(rule.keys):
            continue
        words = rule.broken(config)
        if words:
            sources = ", ".join(f"{key} from {origins[key]}" for key in rule.keys)
            yield f"{words} [{sources}]"


def _node_named(config: Config) -> str:
    return "" if config.node else "node is empty; give this node's name in Kubernetes"


def _reserve_ordered(config: Config) -> str:
    if config.reserve.min <= config.reserve.max:
        return ""
    return (
        f"reserve.min is {config.reserve.min}, more than reserve.max, {config.reserve.max}; "
        "lower the one or raise the other"
    )


def _etcd_has_endpoints(config: Config) -> str:
    if config.store != "etcd" or config.etcd.endpoints:
        return ""
    return "store is etcd but etcd.endpoints is empty; give the endpoints or choose store = embedded"


def _embedded_has_none(config: Config) -> str:
    if config.store != "embedded" or not config.etcd.endpoints:
        return ""
    return "store is embedded but etcd.endpoints is given; leave out one of them"


def _one_scheme(config: Config) -> str:
    if len({endpoint.partition(":")[0] for endpoint in config.etcd.endpoints}) < 2:
        return ""
    return "etcd.endpoints has both http and https; one connection serves them all: use one of the two"


def _certificates_used(config: Config) -> str:
    files = (config.etcd.ca_file, config.etcd.cert_file, config.etcd.key_file)
    if not any(files) or any(endpoint.startswith("https:") for endpoint in config.etcd.endpoints):
        return ""
    return (
        "etcd.ca_file, etcd.cert_file and etcd.key_file need https and no endpoint has it; "
        "write the endpoints with https:// or leave the files out"
    )


def _certificate_with_key(config: Config) -> str:
    if (config.etcd.cert_file is None) == (config.etcd.key_file is None):
        return ""
    return "etcd.cert_file and etcd.key_file belong together; give both or none"


def _user_with_password(config: Config) -> str:
    if bool(config.etcd.username) == (config.etcd.password_file is not None):
        return ""
    return "etcd.username and etcd.password_file belong together; give both or none"


def _pools_or_none(config: Config) -> str:
    pools = config.default_pools
    if not pools.none or not (pools.ipv4_cidr or pools.ipv6_cidr):
        return ""
    return "default_pools.none is true but a CIDR is given; leave out one of them"


def _pool_holds_a_block(cidr: str, size: int) -> str:
    if not cidr or parse_cidr(cidr).prefix <= size:
        return ""
    return f"a default pool of {cidr} does not hold a block of /{size}; make the pool larger or its blocks smaller"


def _one_tunnel(config: Config) -> str:
    pools = config.default_pools
    if "Never" in (pools.ipv4_ipip, pools.ipv4_vxlan):
        return ""
    return "default_pools.ipv4_ipip and default_pools.ipv4_vxlan are both on; a pool has one tunnel: turn one off"


RULES: tuple[Rule, ...] = (
    Rule(("node",), _node_named),
    Rule(("store", "etcd.endpoints"), _etcd_has_endpoints),
    Rule(("store", "etcd.endpoints"), _embedded_has_none),
    Rule(("etcd.endpoints",), _one_scheme),
    Rule(("etcd.endpoints", "etcd.ca_file", "etcd.cert_file", "etcd.key_file"), _certificates_used),
    Rule(("etcd.cert_file", "etcd.key_file"), _certificate_with_key),
    Rule(("etcd.username", "etcd.password_file"), _user_with_password),
    Rule(("reserve.min", "reserve.max"), _reserve_ordered),
    Rule(("default_pools.none", "default_pools.ipv4_cidr", "default_pools.ipv6_cidr"), _pools_or_none),
    Rule(
        ("default_pools.ipv4_cidr", "default_pools.ipv4_block_size"),
        lambda c: _pool_holds_a_block(c.default_pools.ipv4_cidr, c.default_pools.ipv4_block_size),
    ),
    Rule(
        ("default_pools.ipv6_cidr", "default_pools.ipv6_block_size"),
        lambda c: _pool_holds_a_block(c.default_pools.ipv6_cidr, c.default_pools.ipv6_block_size),
    ),
    Rule(("default_pools.ipv4_ipip", "default_pools.ipv4_vxlan"), _one_tunnel),
)
