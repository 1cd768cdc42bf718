"""What the cluster tells a node, beside its blocks: pools, reservations, IPAM configuration, lock.

Holds the raw records (for the checkpoint) and their meaning. A record that cannot be understood leaves the last
meaning of its key in force and raises RecordError.
"""

from collections.abc import Mapping
from typing import TypeVar

from msgspec.structs import replace

from ipamd.core import keys
from ipamd.core.address import Cidr
from ipamd.core.pool import Pool, decode_pool
from ipamd.core.records import (
    IpamConfig,
    RecordError,
    cluster_guid,
    datastore_locked,
    decode_config,
    node_labels,
    reserved_cidrs,
)
from ipamd.core.selection import Selection


class Settings:
    """The cluster's settings as this node last saw them.

    ``node_labels`` are those of the Node record; without one, those that the daemon was configured with.
    """

    def __init__(self, node: str, labels: Mapping[str, str] | None = None) -> None:
        self.node = node
        self.node_labels = self._configured_labels = dict(labels or {})
        self.records: dict[str, bytes] = {}
        self.pools: dict[str, Pool] = {}
        self._broken: dict[str, str] = {}
        self.reservations: dict[str, tuple[Cidr, ...]] = {}
        self.config = IpamConfig()
        self.locked = False
        self.cluster = ""
        """The clusterGUID of ClusterInformation; "" while it is not known."""
        self._selections: dict[str, Selection] = {}

    @property
    def selection(self) -> Selection:
        """Which pools serve which requests for workloads on this node."""
        return self.selection_for("Workload")

    def selection_for(self, use: str) -> Selection:
        """Which pools serve which requests for a use (``Workload``, ``Tunnel``): worked out once per change."""
        selection = self._selections.get(use)
        if selection is None:
            selection = self._selections[use] = Selection(
                self.pools.values(), self.node, self.node_labels, use, broken=self._broken
            )
        return selection

    def apply(self, key: str, value: bytes | None) -> bool:
        """Take in a record; returns whether it is a pool, on which the order of blocks depends."""
        kind, name = keys.kind_of(key), keys.name_of(key)
        if kind is keys.Kind.POOL:
            self._take_pool(name, value)
        elif kind is keys.Kind.RESERVATION:
            _set(self.reservations, name, None if value is None else reserved_cidrs(value))
        elif kind is keys.Kind.CONFIG:
            self.config = decode_config(value)
        elif kind is keys.Kind.CLUSTER_INFORMATION:
            self.locked = datastore_locked(value)
            self.cluster = cluster_guid(value)
        elif kind is keys.Kind.NODE and name == self.node:
            self.node_labels = self._configured_labels if value is None else node_labels(value)
            self._selections = {}
        else:
            return False
        if value is None:
            self.records.pop(key, None)
        else:
            self.records[key] = value
        return kind is keys.Kind.POOL

    def _take_pool(self, name: str, value: bytes | None) -> None:
        self._selections = {}
        self._broken.pop(name, None)
        try:
            _set(self.pools, name, None if value is None else replace(decode_pool(value), name=name))
        except RecordError as error:
            if name not in self.pools:
                self._broken[name] = str(error)
            raise

    def barred_in(self, block: Cidr) -> int:
        """Bitmap of a block's ordinals that a reservation keeps from automatic assignment."""
        bits = 0
        for cidrs in self.reservations.values():
            for cidr in cidrs:
                if cidr.contains(block):
                    return (1 << block.size) - 1
                if block.contains(cidr):
                    bits |= ((1 << cidr.size) - 1) << (cidr.base - block.base)
        return bits


_Value = TypeVar("_Value")


def _set(table: dict[str, _Value], name: str, value: _Value | None) -> None:
    if value is None:
        table.pop(name, None)
    else:
        table[name] = value
