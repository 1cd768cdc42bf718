"""Three daemons beside Calico's own algorithm on a pool of 64 addresses: no address twice, nothing leaked."""

import os

import pytest

from ipamd.store.etcd import EtcdSettings, EtcdStore
from tests.calico.mixed import Mix
from tests.etcd_process import EtcdProcess
from tests.nodes import pool_record
from tests.real.conftest import Start

pytestmark = pytest.mark.real

OPERATIONS = int(os.environ.get("IPAMD_MIXED_OPERATIONS", "800"))
"""``make soak-mixed`` asks for 10,000."""
SEED = int(os.environ.get("IPAMD_MIXED_SEED", "1"))

KINDS = {
    "ipamd ADD", "ipamd DEL", "tunnel", "tunnel released", "tunnel crashed", "calico ADD", "calico ADD crashed",
    "calico DEL", "calico DEL crashed", "calico release by address", "calico node deleted", "collected", "borrowed",
}  # fmt: skip
"""What must have happened for a run to count."""


async def test_daemons_and_calicos_programs_share_a_pool(etcd: EtcdProcess, start: Start) -> None:
    """Whatever they do at once, each address has one holder; at rest the store has what lives, and then nothing."""
    etcd.put(*pool_record("mixed", "10.64.0.0/26", blockSize=29))
    daemons = [start(f"node-{name}", "--reserve-min", "4") for name in "abc"]
    store = EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,)))
    try:
        mix = Mix(etcd, store, daemons, OPERATIONS, SEED)
        await mix.run()
        assert mix.done.keys() >= KINDS
        assert mix.living.most > 48
        await mix.settled()
        await mix.empty()
        state = await mix.settled()
        assert state.pods() == {}
        assert {handle for handle in state.handles if not handle.startswith("ipamd-reserve-")} <= mix.leaky
    finally:
        await store.aclose()
