"""Records captured from Calico's own programs: read, and written back byte for byte."""

import json
import re

import pytest

from ipamd.core import keys
from ipamd.core.pool import decode_pool
from ipamd.core.records import (
    BlockRecord,
    HandleRecord,
    IpamConfig,
    affinity_record,
    affinity_state,
    datastore_locked,
    decode_config,
    new_block,
    reserved_cidrs,
)
from ipamd.core.settings import Settings
from tests.core.captured import captured


def cases(kind: keys.Kind) -> list[object]:
    """The captured records of a kind, each with a readable name."""
    return [pytest.param(key, value, id=f"{name}:{key.rpartition('/')[2]}") for name, key, value in captured(kind)]


@pytest.mark.parametrize(("key", "value"), cases(keys.Kind.BLOCK))
def test_a_block_is_written_as_calico_writes_it(key: str, value: bytes) -> None:
    """A block read and written again differs in nothing but its sequence number, which is one higher."""
    record = BlockRecord(value)
    number = record.sequence
    expected = value.replace(b'"sequenceNumber":%d,' % number, b'"sequenceNumber":%d,' % (number + 1), 1)
    assert record.encode() == expected
    assert keys.block_key(record.cidr) == key
    assert keys.cidr_of(key) == record.cidr


@pytest.mark.parametrize(("key", "value"), cases(keys.Kind.HANDLE))
def test_a_handle_is_written_as_calico_writes_it(key: str, value: bytes) -> None:
    """A handle read and written again is the same bytes."""
    assert HandleRecord(value).encode() == value
    assert keys.handle_key(keys.name_of(key)) == key


@pytest.mark.parametrize(("key", "value"), cases(keys.Kind.AFFINITY))
def test_an_affinity_is_written_as_calico_writes_it(key: str, value: bytes) -> None:
    """An affinity in the state that was read is the same bytes, written anew or over the old record."""
    state = affinity_state(value)
    assert state in ("confirmed", "pending", "pendingDeletion")
    assert affinity_record(state) == affinity_record(state, value) == value
    node = re.fullmatch(r"/calico/ipam/v2/host/([^/]+)/ipv[46]/block/[^/]+", key)
    assert node is not None
    assert keys.affinity_key(node[1], keys.cidr_of(key)) == key


@pytest.mark.parametrize(("key", "value"), cases(keys.Kind.POOL))
def test_a_pool_is_read(key: str, value: bytes) -> None:
    """A pool has the name, CIDR, block size and limits that its record says."""
    pool, spec = decode_pool(value), json.loads(value)["spec"]
    assert (pool.name, str(pool.cidr), pool.block_size) == (keys.name_of(key), spec["cidr"], spec["blockSize"])
    assert pool.allowed_uses == tuple(spec["allowedUses"])
    assert pool.manual == (spec.get("assignmentMode") == "Manual")
    assert pool.disabled == spec.get("disabled", False)
    assert pool.node_selector.text == spec["nodeSelector"]


@pytest.mark.parametrize(("_key", "value"), cases(keys.Kind.RESERVATION))
def test_a_reservation_is_read(_key: str, value: bytes) -> None:
    """A reservation lists its CIDRs, single addresses as CIDRs of one."""
    texts = [text if "/" in text else text + "/32" for text in json.loads(value)["spec"]["reservedCIDRs"]]
    assert [str(cidr) for cidr in reserved_cidrs(value)] == texts


def test_a_reservation_need_not_be_strictly_masked() -> None:
    """Calico takes an address with a prefix length for its network; such an entry must not void the others."""
    value = b'{"spec":{"reservedCIDRs":["10.10.0.5/30","10.10.0.0","fd00:0::5/126","fd00::9"]}}'
    texts = ["10.10.0.4/30", "10.10.0.0/32", "fd00::4/126", "fd00::9/128"]
    assert [str(cidr) for cidr in reserved_cidrs(value)] == texts


@pytest.mark.parametrize(("_key", "value"), cases(keys.Kind.CONFIG))
def test_the_configuration_is_read(_key: str, value: bytes) -> None:
    """The IPAM configuration has the limits that its record says."""
    stored = json.loads(value)
    assert decode_config(value) == IpamConfig(
        stored["strict_affinity"],
        stored["auto_allocate_blocks"],
        stored.get("maxBlocksPerHost", 0),
        stored.get("ipCooldownSeconds", 0),
    )


@pytest.mark.parametrize(("_key", "value"), cases(keys.Kind.CLUSTER_INFORMATION))
def test_the_lock_is_read(_key: str, value: bytes) -> None:
    """Each captured cluster is unlocked; the same record with datastoreReady false is locked."""
    assert not datastore_locked(value)
    assert datastore_locked(value.replace(b'"datastoreReady":true', b'"datastoreReady":false'))


def test_every_kind_was_captured() -> None:
    """No golden test above is empty; a pool's pressure is no record of Calico's."""
    for kind in keys.Kind:
        assert captured(kind) or kind in (keys.Kind.OTHER, keys.Kind.PRESSURE)


def test_settings_take_in_everything_that_was_captured() -> None:
    """A node's settings understand all records of a cluster, and keep the bytes for the state file."""
    for kind in (keys.Kind.POOL, keys.Kind.RESERVATION, keys.Kind.CONFIG, keys.Kind.CLUSTER_INFORMATION):
        settings = Settings("node-a")
        for _name, key, value in captured(kind):
            settings.apply(key, value)
            assert settings.records[key] == value


def test_a_new_block_is_written_as_calico_writes_one() -> None:
    """A block that ipamd makes has the fields of one that Calico made, in the same order."""
    _name, _key, theirs = captured(keys.Kind.BLOCK)[0]
    record = BlockRecord(theirs)
    ours = new_block(record.cidr, "host:node-a", 1_795_218_461_000_000_000).encode()
    assert list(json.loads(ours)) == list(json.loads(theirs))
    assert json.loads(ours)["affinity_claim_time"] == "2026-11-20T23:47:41Z"
    assert json.loads(ours)["allocations"] == [None] * 64


def test_unknown_fields_of_a_block_survive_at_their_place() -> None:
    """A field that is not known here, at the top or in an attribute, is where it was, spelt as it was."""
    value = (
        b'{"x":{"b": 1.50,"a":"\\u003c"},"cidr":"10.0.0.0/30","affinity":null,"allocations":[0,null,null,null],'
        b'"unallocated":[3,1,2],"y":[],"attributes":[{"handle_id":"h","z":1e3,"secondary":null,"alternateOwnerAttrs":{"k":"v"}}],'
        b'"sequenceNumber":7,"sequenceNumberForAllocation":{"0":6},"deleted":false,"last":null}'
    )
    record = BlockRecord(value)
    assert record.encode() == value.replace(b'"sequenceNumber":7', b'"sequenceNumber":8')


def test_unknown_fields_of_handles_and_affinities_survive() -> None:
    """A rewrite of a handle or an affinity keeps what is not known here, at its place."""
    handle = HandleRecord(b'{"a":1,"block":{"10.0.0.0/30":1},"deleted":false,"z":[2]}')
    handle.set("10.0.0.4/30", 2)
    assert handle.encode() == b'{"a":1,"block":{"10.0.0.0/30":1,"10.0.0.4/30":2},"deleted":false,"z":[2]}'
    assert affinity_record("confirmed", b'{"a":1,"state":"pending","deleted":false,"z":2}') == (
        b'{"a":1,"state":"confirmed","deleted":false,"z":2}'
    )


def test_a_block_in_cooldown_keeps_its_released_addresses() -> None:
    """An address in cooldown (an attribute without handle) counts as allocated, to nobody, and is written back."""
    values = [value for _name, _key, value in captured(keys.Kind.BLOCK) if b"releasedAt" in value]
    assert values
    for value in values:
        record = BlockRecord(value)
        cooling = [o for o in range(record.cidr.size) if (owner := record.owner(o)) and not owner.handle]
        assert cooling
        assert not set(cooling) & set(record.unallocated)
        assert all(str(ordinal) in record.sequences for ordinal in cooling)


def test_an_old_block_without_a_map_of_sequences_gets_one_before_its_end() -> None:
    """A block from before sequenceNumberForAllocation is written with the map where Calico puts it."""
    value = (
        b'{"cidr":"10.0.0.0/31","affinity":null,"allocations":[null,null],"unallocated":[0,1],"attributes":[],'
        b'"deleted":false}'
    )
    assert list(json.loads(BlockRecord(value).encode()))[-3:] == [
        "sequenceNumber",
        "sequenceNumberForAllocation",
        "deleted",
    ]
