"""Opens the store that the configuration names, and makes the pools that it names where the store has none.

Imports of the stages only ``store``; an implementation of it only if it is the one that is named.
"""

import uuid
from collections.abc import Callable
from pathlib import Path

import trio

from ipamd.config import Config, DefaultPools
from ipamd.config.schema import Etcd
from ipamd.core.address import parse_cidr
from ipamd.core.clock import Now
from ipamd.core.pool import Pool
from ipamd.core.settings import Settings
from ipamd.logs import get_logger
from ipamd.store.base import Store, StoreRefusedError, StoreUnavailableError
from ipamd.store.default_pools import DefaultPool, create_default_pools

_log = get_logger("daemon")


async def open_store(config: Config) -> Store:
    """The store; raises what its implementation raises."""
    if config.store == "embedded":
        from ipamd.store.embedded import EmbeddedStore

        return EmbeddedStore(config.embedded.path)
    # In a thread: importing grpc takes 0.1 s, in which the socket already serves from the state file.
    return await trio.to_thread.run_sync(open_etcd, config.etcd)


def open_etcd(etcd: Etcd) -> Store:
    """The store in etcd; it connects with the first call."""
    from ipamd.store.etcd import EtcdSettings, EtcdStore

    return EtcdStore(
        EtcdSettings(
            endpoints=etcd.endpoints,
            ca_file=_text(etcd.ca_file),
            cert_file=_text(etcd.cert_file),
            key_file=_text(etcd.key_file),
            username=etcd.username or None,
            password_file=_text(etcd.password_file),
            timeout=etcd.timeout,
        )
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


async def keep_creating_pools(config: DefaultPools, store: Store, settings: Settings, now: Callable[[], Now]) -> None:
    """Make the default pools; what hinders is said once, and tried again each second until there are all."""
    pools = _default_pools(config)
    told = ""
    while pools:
        try:
            if settings.locked:
                await trio.sleep(1.0)
                continue
            uids = (str(uuid.uuid4()) for _ in pools)
            created, hindered = await create_default_pools(store, pools, uids, now().unix)
            problem = "; ".join(hindered)
        except (StoreUnavailableError, StoreRefusedError) as error:
            created, problem = [], str(error)
        if created:
            _log.info("default pools created", pools=" ".join(created))
        if not problem:
            return
        if problem != told:
            _log.warning("cannot create the default pools", error=problem)
        told = problem
        await trio.sleep(1.0)


def _default_pools(config: DefaultPools) -> list[DefaultPool]:
    """The pools to make where the store has none."""
    pools = []
    if config.ipv4_cidr:
        pool = Pool("default-ipv4-ippool", parse_cidr(config.ipv4_cidr), config.ipv4_block_size)
        modes = (config.ipv4_ipip, config.ipv4_vxlan, config.ipv4_nat_outgoing, config.ipv4_disable_bgp_export)
        pools.append(DefaultPool(pool, config.ipv4_node_selector, *modes))
    if config.ipv6_cidr:
        pool = Pool("default-ipv6-ippool", parse_cidr(config.ipv6_cidr), config.ipv6_block_size)
        modes = ("Never", config.ipv6_vxlan, config.ipv6_nat_outgoing, config.ipv6_disable_bgp_export)
        pools.append(DefaultPool(pool, config.ipv6_node_selector, *modes))
    return pools
