"""The daemon's configuration: one frozen value, from defaults, a TOML file, the environment and flags.

``schema`` is the value and the table of its keys, ``values`` turns one raw value into a typed one, ``checks`` holds
the rules between keys, ``sources`` reads the four sources in rising precedence, ``render`` prints the outcome.

No secret is ever a value here, only the paths of files that hold one (``etcd.key_file``, ``etcd.password_file``),
and an endpoint with a user and password in it is refused: so a configuration may be printed and logged as it is.
Messages about refused values keep to that too: they never repeat what follows an unknown key, nor an endpoint with
an ``@`` in it.

May import nothing of ipamd but ``core.address``.
"""

from ipamd.config.render import render
from ipamd.config.schema import KEYS, Config, DefaultPools, Key
from ipamd.config.sources import DEFAULT_FILE, ConfigError, Loaded, default_file, load, suggest
from ipamd.config.values import split_address

__all__ = [
    "DEFAULT_FILE",
    "KEYS",
    "Config",
    "ConfigError",
    "DefaultPools",
    "Key",
    "Loaded",
    "default_file",
    "load",
    "render",
    "split_address",
    "suggest",
]
