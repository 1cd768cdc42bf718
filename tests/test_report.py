"""Readiness: why an ADD could not be served now, of any IP version or of each that a configuration asks for."""

import pytest

from ipamd.config import Config
from ipamd.core import keys
from ipamd.core.address import parse_cidr
from ipamd.core.facts import Committed
from ipamd.core.ledger import Ledger
from ipamd.core.reserve import ReservePolicy
from ipamd.report import Report
from tests.core.blocks import RESERVE, image
from tests.nodes import pool_record

FOUR, SIX = "10.0.0.0/29", "fd00::/125"


@pytest.mark.parametrize(
    ("families", "reason"),
    [
        ((), ""),
        ((4,), ""),
        ((6,), "no address is in reserve; the node is still claiming addresses"),
        ((4, 6), "no address is in reserve; the node is still claiming addresses"),
    ],
)
def test_each_ip_version_that_is_asked_for_must_be_there(families: tuple[int, ...], reason: str) -> None:
    """With IPv4 addresses in reserve and no IPv6 ones a node is ready, but not for a pod of two IP versions."""
    ledger = Ledger("n1", ReservePolicy())
    for name, cidr in (("four", FOUR), ("six", SIX)):
        key, value = pool_record(name, cidr, blockSize=parse_cidr(cidr).prefix)
        ledger.apply(Committed(key, 1, value))
    ledger.apply(Committed(keys.block_key(parse_cidr(FOUR)), 2, image(FOUR, {0: RESERVE})))
    report = Report(Config(), ledger, lambda: 0, list)
    assert report.unready(*families) == reason


@pytest.mark.parametrize(
    ("families", "reason"), [((), "no pool serves this node"), ((6,), "no IPv6 pool serves this node")]
)
def test_no_pool_at_all(families: tuple[int, ...], reason: str) -> None:
    """It is said of which IP version."""
    ledger = Ledger("n1", ReservePolicy())
    ledger.synced = True
    assert Report(Config(), ledger, lambda: 0, list).unready(*families) == reason
