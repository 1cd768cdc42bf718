"""The configuration as one frozen value, and the table of its keys.

The annotations say everything about a key once: type, range, choices and its line of help. ``KEYS`` is read off
them, and the names of a key in the environment and on the command line follow from its path alone: ``reserve.min``
is ``IPAMD_RESERVE_MIN`` and ``--reserve-min``. Only the default pools have a second name, that of Calico's node agent.

May import nothing of ipamd.
"""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec.inspect
import msgspec.structs
from msgspec import Meta, Struct, field

_MIB = 1 << 20


def _host_name() -> str:
    return socket.gethostname().lower()


class Etcd(Struct, frozen=True, kw_only=True):
    """How to reach etcd."""

    endpoints: Annotated[
        tuple[str, ...], Meta(description="etcd members, each as http://host:port or https://host:port")
    ] = ()
    ca_file: Annotated[Path | None, Meta(description="certificates that etcd's own are checked against")] = None
    cert_file: Annotated[Path | None, Meta(description="client certificate, with etcd.key_file")] = None
    key_file: Annotated[Path | None, Meta(description="private key of etcd.cert_file")] = None
    username: Annotated[str, Meta(description="etcd user, with etcd.password_file")] = ""
    password_file: Annotated[Path | None, Meta(description="file that holds the etcd user's password")] = None
    timeout: Annotated[float, Meta(ge=0.1, le=60, description="seconds that one call to etcd may take")] = 5.0


class Embedded(Struct, frozen=True, kw_only=True):
    """The store in a local file, for one node."""

    path: Annotated[Path, Meta(description="the store's file (default: ipamd.db in state_dir)")] = Path(
        "/var/lib/ipamd/ipamd.db"
    )


class Reserve(Struct, frozen=True, kw_only=True):
    """Free addresses that the store already gives this node."""

    min: Annotated[
        int, Meta(ge=1, le=4096, description="addresses to keep in reserve at rest, for each pool in use")
    ] = 16
    max: Annotated[int, Meta(ge=1, le=65536, description="addresses that a burst may grow the reserve to")] = 256
    wait: Annotated[float, Meta(ge=0, le=120, description="seconds that an ADD waits for a free address")] = 10.0
    decay: Annotated[
        float, Meta(ge=1, le=86400, description="seconds after which a grown reserve shrinks by a step")
    ] = 30.0


class Api(Struct, frozen=True, kw_only=True):
    """Limits of the daemon's socket."""

    max_connections: Annotated[int, Meta(ge=1, le=65536, description="connections open at once")] = 1024
    max_body: Annotated[int, Meta(ge=4096, le=64 * _MIB, description="bytes in a request's body")] = _MIB
    max_head: Annotated[int, Meta(ge=1024, le=_MIB, description="bytes in a request's head")] = 16384
    request_timeout: Annotated[
        float, Meta(ge=0.1, le=600, description="seconds in which a request's head and body must arrive")
    ] = 10.0
    idle_timeout: Annotated[
        float, Meta(ge=0.1, le=3600, description="seconds that a connection may stay without a request")
    ] = 60.0


class Flush(Struct, frozen=True, kw_only=True):
    """How changes are gathered into transactions."""

    linger: Annotated[
        float,
        Meta(
            ge=0,
            le=5,
            description="seconds to gather changes for a transaction; a fifth where somebody waits, or soon will",
        ),
    ] = 0.1
    # etcd takes at most 128 operations and 1.5 MiB in a transaction; both leave room for its own framing.
    max_operations: Annotated[int, Meta(ge=1, le=120, description="operations in one transaction")] = 64
    max_bytes: Annotated[int, Meta(ge=65536, le=1_500_000, description="bytes in one transaction")] = _MIB


Mode = Literal["Never", "Always", "CrossSubnet"]


class DefaultPools(Struct, frozen=True, kw_only=True):
    """Pools to create at start, when the store has none of the IP version; the defaults are Calico's."""

    none: Annotated[bool, Meta(description="create no pool; a CIDR must not be given then")] = False
    ipv4_cidr: Annotated[str, Meta(description="IPv4 pool to create; empty: none")] = ""
    ipv4_block_size: Annotated[int, Meta(ge=20, le=32, description="prefix length of its blocks")] = 26
    ipv4_ipip: Annotated[Mode, Meta(description="its ipipMode, not with ipv4_vxlan")] = "Never"
    ipv4_vxlan: Annotated[Mode, Meta(description="its vxlanMode, not with ipv4_ipip")] = "Never"
    ipv4_nat_outgoing: Annotated[bool, Meta(description="its natOutgoing")] = True
    ipv4_node_selector: Annotated[str, Meta(description="its nodeSelector")] = "all()"
    ipv4_disable_bgp_export: Annotated[bool, Meta(description="its disableBGPExport")] = False
    ipv6_cidr: Annotated[str, Meta(description="IPv6 pool to create; empty: none")] = ""
    ipv6_block_size: Annotated[int, Meta(ge=116, le=128, description="prefix length of its blocks")] = 122
    ipv6_vxlan: Annotated[Mode, Meta(description="its vxlanMode")] = "Never"
    ipv6_nat_outgoing: Annotated[bool, Meta(description="its natOutgoing")] = False
    ipv6_node_selector: Annotated[str, Meta(description="its nodeSelector")] = "all()"
    ipv6_disable_bgp_export: Annotated[bool, Meta(description="its disableBGPExport")] = False


class Kubernetes(Struct, frozen=True, kw_only=True):
    """The Kubernetes API, for the annotations of pods and namespaces."""

    config: Annotated[
        str, Meta(description="how to reach the API: in-cluster, or a kubeconfig's path; empty: it is not asked")
    ] = ""
    timeout: Annotated[
        float, Meta(ge=0.1, le=60, description="seconds that an ADD waits for what the API says of its pod")
    ] = 5.0


class Cleaner(Struct, frozen=True, kw_only=True):
    """Clearing away what nobody in the cluster owns: one daemon at a time does it."""

    interval: Annotated[
        float, Meta(ge=0, le=86400, description="seconds between two steps of its walk; 0: this node takes no part")
    ] = 60.0
    grace: Annotated[
        float, Meta(ge=5, le=31_536_000, description="seconds for which a record must look left over before it goes")
    ] = 3600.0


class Runtime(Struct, frozen=True, kw_only=True):
    """What the container runtime says lives on this node."""

    results_dir: Annotated[
        Path, Meta(description="libcni's cache of results, by which lost addresses are taken back and leaks found")
    ] = Path("/var/lib/cni/results")
    leak_grace: Annotated[
        float,
        Meta(
            ge=60, le=31_536_000, description="seconds for which an allocation must look leaked before it is released"
        ),
    ] = 600.0


class Config(Struct, frozen=True, kw_only=True):
    """Everything the daemon can be told.

    Times are seconds, sizes are bytes, paths are absolute. ``load`` is what checks a configuration and works out
    the defaults that depend on other keys (``store``, ``embedded.path``, ``spool_dir``); one made directly is taken at
    its word.
    """

    node: Annotated[str, Meta(description="this node's name in Kubernetes (default: the host's name)")] = field(
        default_factory=_host_name
    )
    node_labels: Annotated[
        str, Meta(description="this node's labels, as rack=0,zone=b, while the store has no Node record of Calico's")
    ] = ""
    socket: Annotated[Path, Meta(description="Unix socket to serve")] = Path("/run/ipamd/ipamd.sock")
    socket_group: Annotated[
        str,
        Meta(
            description="group that may read over the socket; where it does not exist, only root and the daemon's user"
        ),
    ] = "ipamd"
    state_dir: Annotated[Path, Meta(description="directory of the state file")] = Path("/var/lib/ipamd")
    spool_dir: Annotated[
        Path,
        Meta(description="where the plugin keeps DELs while the daemon is away (default: del.d in state_dir)"),
    ] = Path("/var/lib/ipamd/del.d")
    store: Annotated[
        Literal["embedded", "etcd"],
        Meta(description="where the records are kept (default: etcd if etcd.endpoints is given)"),
    ] = "embedded"
    quarantine: Annotated[
        float,
        Meta(
            ge=60,
            le=31_536_000,
            description="seconds that addresses which a lost state file had in reserve are kept back",
        ),
    ] = 3600.0
    drain_on_exit: Annotated[
        bool, Meta(description="give back all that no pod holds when told to stop: before ipamd is taken off a node")
    ] = False
    durability: Annotated[
        Literal["journal", "fsync", "etcd"],
        Meta(description="what an ADD's reply waits for: written to the state file, synced to disk, or in the store"),
    ] = "journal"
    metrics_address: Annotated[
        str, Meta(description="host:port or [::1]:port to serve Prometheus metrics on; empty: off")
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least level that is logged")
    ] = "info"
    log_format: Annotated[Literal["logfmt", "json"], Meta(description="form of a log line")] = "logfmt"
    etcd: Etcd = field(default_factory=Etcd)
    embedded: Embedded = field(default_factory=Embedded)
    reserve: Reserve = field(default_factory=Reserve)
    api: Api = field(default_factory=Api)
    flush: Flush = field(default_factory=Flush)
    default_pools: DefaultPools = field(default_factory=DefaultPools)
    kubernetes: Kubernetes = field(default_factory=Kubernetes)
    runtime: Runtime = field(default_factory=Runtime)
    cleaner: Cleaner = field(default_factory=Cleaner)


class Key(Struct, frozen=True):
    """One key of the configuration; ``type`` is what its annotation says, as msgspec describes it."""

    table: str
    """Empty for the keys at the top of the file."""
    name: str
    type: msgspec.inspect.Type
    help: str

    @property
    def path(self) -> str:
        """Its name everywhere in the code and in messages: ``reserve.min``."""
        return f"{self.table}.{self.name}" if self.table else self.name

    @property
    def environment(self) -> str:
        """Its name in the environment: ``IPAMD_RESERVE_MIN``."""
        return f"IPAMD_{self.path.replace('.', '_').upper()}"

    @property
    def calico(self) -> str:
        """The variable by which Calico's node agent is told the same; "" if it has none."""
        if self.table != "default_pools":
            return ""
        version, _, name = self.name.partition("_")
        return f"CALICO_{version.upper()}POOL_{name.upper()}" if name else "NO_DEFAULT_POOLS"

    @property
    def flag(self) -> str:
        """Its name on the command line: ``--reserve-min``."""
        return f"--{self.path.replace('.', '-').replace('_', '-')}"

    def of(self, config: Config) -> Any:
        """Its value in a configuration."""
        return getattr(getattr(config, self.table) if self.table else config, self.name)


def _keys(struct: type[Struct], table: str = "") -> Iterator[Key]:
    for each in msgspec.structs.fields(struct):
        described = msgspec.inspect.type_info(each.type)
        if isinstance(described, msgspec.inspect.StructType):
            yield from _keys(described.cls, each.name)
            continue
        if not isinstance(described, msgspec.inspect.Metadata):
            raise TypeError(f"cannot describe {struct.__name__}.{each.name}: it has no line of help; give it a Meta")
        extra = described.extra_json_schema or {}
        yield Key(table, each.name, described.type, extra["description"])


KEYS: dict[str, Key] = {key.path: key for key in _keys(Config)}
"""Every key by its path, in the order of the file: first those without a table."""
TABLES: dict[str, str] = {
    each.name: each.type.__doc__ or ""
    for each in msgspec.structs.fields(Config)
    if isinstance(each.type, type) and issubclass(each.type, Struct)
}
"""The names of the tables, with a line of help each."""
