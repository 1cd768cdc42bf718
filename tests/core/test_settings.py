"""What a node takes from the cluster's records: its labels, and which pools serve it, from the moment they change."""

import pytest

from ipamd.core import keys
from ipamd.core.errors import RefusedError
from ipamd.core.records import RecordError
from ipamd.core.settings import Settings
from tests.calico_objects import node_record
from tests.nodes import add_request, pool_record

NODE = keys.NODES + "n1"


@pytest.fixture
def settings() -> Settings:
    """Of a node that was configured with rack=1."""
    settings = Settings("n1", {"rack": "1"})
    for number in (0, 1):
        settings.apply(*pool_record(f"rack-{number}", f"10.{number}.0.0/16", nodeSelector=f'rack == "{number}"'))
    return settings


def serving(settings: Settings) -> list[str]:
    """The pools that serve all pods of this node."""
    return [pool.name for pool in settings.selection.serving(4)]


def test_the_labels_are_those_of_the_node_record(settings: Settings) -> None:
    """The record decides while there is one, even if it has no labels; without one the configuration does."""
    assert serving(settings) == ["rack-1"]
    settings.apply(NODE, node_record({"rack": "0"}))
    assert (settings.node_labels, serving(settings)) == ({"rack": "0"}, ["rack-0"])
    settings.apply(NODE, node_record(None))
    assert (settings.node_labels, serving(settings)) == ({}, [])
    settings.apply(NODE, None)
    assert serving(settings) == ["rack-1"]


def test_the_record_of_another_node_says_nothing(settings: Settings) -> None:
    """Labels are a node's own."""
    settings.apply(keys.NODES + "n2", node_record({"rack": "0"}, "n2"))
    assert serving(settings) == ["rack-1"]


@pytest.mark.parametrize("value", [b"nonsense", b"{}", b'{"metadata":{"labels":{"rack":0}}}', b'{"metadata":{"labels":[]}}'])  # fmt: skip
def test_a_node_record_that_cannot_be_understood_leaves_the_last_labels(settings: Settings, value: bytes) -> None:
    """A pod must not get an address of another rack because somebody broke a record."""
    settings.apply(NODE, node_record({"rack": "0"}))
    with pytest.raises(RecordError, match="not a Node: "):
        settings.apply(NODE, value)
    assert serving(settings) == ["rack-0"]


def test_a_pool_whose_record_breaks_goes_on_as_it_was(settings: Settings) -> None:
    """The last meaning of the record stands, and a refusal accounts for the pool once."""
    settings.apply(NODE, node_record({"rack": "2"}))
    with pytest.raises(RecordError):
        settings.apply(keys.POOLS + "rack-0", b"nonsense")
    with pytest.raises(RefusedError) as refused:
        settings.selection.choose(add_request("c", started=1), 4)
    assert refused.value.msg.count("pool rack-0 ") == 1
    settings.apply(NODE, node_record({"rack": "0"}))
    assert serving(settings) == ["rack-0"]


def test_a_pool_that_changes_serves_otherwise_at_once(settings: Settings) -> None:
    """Which pools serve follows each change of a record."""
    settings.apply(*pool_record("rack-1", "10.1.0.0/16", nodeSelector="all()", disabled=True))
    assert serving(settings) == []
    settings.apply(*pool_record("rack-1", "10.1.0.0/16", nodeSelector="!has(zone)"))
    assert serving(settings) == ["rack-1"]
    settings.apply(keys.POOLS + "rack-1", None)
    assert serving(settings) == []
