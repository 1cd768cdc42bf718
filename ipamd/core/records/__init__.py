"""Calico's records as values: decoded from and encoded to exactly the bytes that Calico's programs write.

Formats are those of Calico's etcd datastore. What Go's JSON encoder does is kept: field order, maps sorted by key,
``&``, ``<`` and ``>`` escaped. Fields that are not known here survive a rewrite at their place: a record is decoded
into its raw parts, and only the parts that changed are encoded again.

``RecordError`` is raised for bytes that are no such record.
"""

from ipamd.core.records.block import (
    RESERVE_NOTE,
    WINDOWS_HANDLE,
    BlockRecord,
    Owner,
    attribute,
    cooling_attribute,
    new_block,
)
from ipamd.core.records.cluster import (
    IpamConfig,
    cluster_guid,
    datastore_locked,
    decode_config,
    node_labels,
    pressure_at,
    pressure_record,
    reserved_cidrs,
    serving_instance,
)
from ipamd.core.records.encoding import MALFORMED, RecordError, go_json, go_time, parse_go_time, parse_rfc3339, rfc3339
from ipamd.core.records.handle import HandleRecord, affinity_record, affinity_state, handle_blocks

__all__ = [
    "MALFORMED",
    "RESERVE_NOTE",
    "WINDOWS_HANDLE",
    "BlockRecord",
    "HandleRecord",
    "IpamConfig",
    "Owner",
    "RecordError",
    "affinity_record",
    "affinity_state",
    "attribute",
    "cluster_guid",
    "cooling_attribute",
    "datastore_locked",
    "decode_config",
    "go_json",
    "go_time",
    "handle_blocks",
    "new_block",
    "node_labels",
    "parse_go_time",
    "parse_rfc3339",
    "pressure_at",
    "pressure_record",
    "reserved_cidrs",
    "rfc3339",
    "serving_instance",
]
