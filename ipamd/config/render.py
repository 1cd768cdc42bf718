"""A loaded configuration as a TOML file that says of each line what it is and where its value came from.

What it prints can be loaded again and gives the same configuration.

May import nothing of ipamd but ``config``.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ipamd.config.schema import KEYS, TABLES
from ipamd.config.sources import Loaded


def render(loaded: Loaded) -> str:
    """The configuration as TOML, with its origins as comments."""
    return "".join(f"{line}\n" for line in _lines(loaded))


def _lines(loaded: Loaded) -> Iterator[str]:
    table = ""
    for key in KEYS.values():
        if key.table != table:
            table = key.table
            yield from ("", f"# {TABLES[table]}", f"[{table}]")
        yield f"# {key.help}"
        yield f"{key.name} = {_value(key.of(loaded.config))}  # {loaded.origins[key.path]}"


def _value(value: Any) -> str:
    """A value in TOML; texts are printable (``values``), for which JSON's quoting is TOML's too."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)
    return repr(value)
