"""Every record that Calico's own programs left in etcd, by kind of key: the golden data."""

import json
from pathlib import Path

from ipamd.core import keys

DATA = Path(__file__).parent.parent / "data" / "calico"


def captured(kind: keys.Kind) -> list[tuple[str, str, bytes]]:
    """All captured records of a kind: file, key and value."""
    return [
        (path.stem, key, value.encode())
        for path in sorted(DATA.glob("*.json"))
        for key, value in json.loads(path.read_text())["etcd"].items()
        if keys.kind_of(key) is kind
    ]


def steps(name: str) -> list[dict[str, object]]:
    """The steps of one capture that called the IPAM plugin."""
    return [step for step in json.loads((DATA / f"{name}.json").read_text())["steps"] if "plugin" in step]
