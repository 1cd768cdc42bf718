"""libcni's cache as it is found on a node, and as an enemy or a broken disk would leave it."""

import json
import os
from pathlib import Path

import pytest

from ipamd.core.facts import Attachment
from ipamd.core.regain import Living
from ipamd.runtime import results
from ipamd.runtime.results import read_names, read_results
from tests.runtime.results import cached

ADDRESSES = ((4, 0x0A000001), (6, 0xFD << 120 | 1))


@pytest.mark.parametrize("version", ["0.2.0", "0.3.1", "1.0.0"])
def test_a_file_tells_who_lives_with_which_addresses(tmp_path: Path, version: str) -> None:
    """Container, network, interface, pod and addresses, in the results of every version of the specification."""
    path = cached(tmp_path, "c1", ["10.0.0.1", "fd00::1"], version=version)
    attachment = Attachment("k8s-pod-network", "c1", "eth0")
    labels = {"namespace": "default", "pod": "pod-c1"}
    assert read_results(tmp_path) == {path.name: Living(attachment, ADDRESSES, labels)}


@pytest.mark.parametrize("chained", [False, True], ids=["one plugin", "a list"])
@pytest.mark.parametrize(
    ("ipam", "capabilities", "ranged"),
    [
        ({"type": "calico-ipam", "subnet": "10.9.0.0/24"}, {"ipRanges": [[{"subnet": "10.9.0.0/24"}]]}, False),
        ({"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}]]}, None, True),
        ({"type": "host-local"}, None, True),
        ({"type": "ipamd"}, None, False),
        ({"type": "ipamd", "subnet": "10.9.0.0/24"}, None, True),
        ({"type": "ipamd", "ranges": [[{"subnet": "10.9.0.0/24"}]]}, None, True),
        ({"type": "ipamd"}, {"ipRanges": [[{"subnet": "10.9.0.0/24"}]]}, True),
        ({"type": "other", "ranges": [[{"subnet": "10.9.0.0/24"}]]}, None, False),
        ({"type": 7}, None, False),
        ([], None, False),
        ({"type": "ipamd"}, ["ipRanges"], False),
    ],
)
def test_the_configuration_tells_whether_an_address_is_of_ranges(
    tmp_path: Path, ipam: object, capabilities: object, ranged: bool, chained: bool
) -> None:
    """As it decides in a request; what cannot be understood is not of ranges, and its container lives all the same."""
    path = cached(tmp_path, "c1", ["10.9.0.1"], ipam=ipam, capabilities=capabilities, chained=chained)
    assert read_results(tmp_path)[path.name].ranged == ranged


def test_names_alone_tell_which_containers_live(tmp_path: Path) -> None:
    """Whatever the network is called, and also if the file cannot be read; a part of an id is no id."""
    cached(tmp_path, "abc", ["10.0.0.1"])
    cached(tmp_path, "with-dash", ["10.0.0.2"], network="a-b-c")
    (tmp_path / "k8s-pod-network-broken-eth0").write_bytes(b"\xff\x00")
    known = read_names(tmp_path)
    assert known is not None
    for container in ("abc", "with-dash", "broken"):
        assert known.lives(container)
    for container in ("ab", "bc", "eth0", "with-das", "k8s", ""):
        assert not known.lives(container)


def test_a_cache_that_is_absent_empty_or_unreadable_says_nothing(tmp_path: Path) -> None:
    """No source is not the same as a source that knows of nobody."""
    assert read_names(tmp_path) is None
    assert read_names(tmp_path / "none") is None
    (tmp_path / "file").write_text("")
    assert read_names(tmp_path / "file") is None
    assert read_results(tmp_path / "none") == {}


def test_a_directory_too_large_to_be_one_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound no name is believed to be missing."""
    monkeypatch.setattr(results, "MAX_FILES", 3)
    for number in range(4):
        cached(tmp_path, f"c{number}", [])
    assert read_names(tmp_path) is None
    assert read_results(tmp_path) == {}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"kind":"cniCacheV1"}',
        b'{"kind":"cniCacheV2","containerId":"c","ifName":"eth0","networkName":"n"}',
        b'{"kind":"cniCacheV1","containerId":"","ifName":"eth0","networkName":"n"}',
        b'{"kind":"cniCacheV1","containerId":1,"ifName":"eth0","networkName":"n"}',
        b'{"kind":"cniCacheV1","containerId":"c","ifName":"eth0","networkName":"n","result":{"ips":[{"address":"x/8"}]}}',
        b'{"kind":"cniCacheV1","containerId":"c","ifName":"eth0","networkName":"n","cniArgs":[["a"]]}',
        b'{"kind":"cniCacheV1","padding":"' + b"x" * (results.MAX_BYTES + 1) + b'"}',
    ],
)
def test_a_file_that_cannot_be_understood_is_left_out(tmp_path: Path, text: bytes) -> None:
    """Whatever it holds: the others are read."""
    (tmp_path / "n-bad-eth0").write_bytes(text)
    good = cached(tmp_path, "good", ["10.0.0.1"])
    assert list(read_results(tmp_path)) == [good.name]


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A pipe does not stop the reader, a link leads nowhere, a directory is none."""
    os.mkfifo(tmp_path / "n-pipe-eth0")
    (tmp_path / "n-folder-eth0").mkdir()
    target = tmp_path.parent / f"{tmp_path.name}-target"
    target.write_text(json.dumps({"kind": "cniCacheV1", "containerId": "c", "ifName": "e", "networkName": "n"}))
    (tmp_path / "n-link-eth0").symlink_to(target)
    assert read_results(tmp_path) == {}
