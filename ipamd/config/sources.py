"""The four sources of the configuration, read in rising precedence, with every problem told at once.

Order: defaults, the TOML file, the variables of Calico's node agent for its default pools, our own environment, flags.
A value that a later source overrides must still be a good one: a file with a mistake in it is a trap for the day the
override goes.

May import nothing of ipamd but ``config``'s schema, values and checks.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec.structs
from msgspec import Struct

from ipamd.config.checks import broken_rules
from ipamd.config.schema import KEYS, TABLES, Config, Key
from ipamd.config.values import BadValueError, escaped, from_calico, from_raw, from_text, kind_of, quoted

DEFAULT_FILE = Path("/etc/ipamd/ipamd.toml")

_INJECTED = re.compile(r"IPAMD_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
"""What Kubernetes puts into the environment of a pod for a Service whose name begins with ``ipamd``."""


class ConfigError(Exception):
    """A configuration that cannot be used; ``problems`` has a line for each reason."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  ".join(("cannot use the configuration:", *self.problems)))


class Loaded(Struct, frozen=True):
    """A configuration and, by the path of each key, where its value came from.

    An origin is ``default``, ``file:<path>``, ``env:<variable>`` or ``flag:<flag>``.
    """

    config: Config
    origins: dict[str, str]


def default_file() -> Path | None:
    """The file to read when none is named: DEFAULT_FILE, or None if there is none.

    One that is there but cannot be reached is not passed over: ``load`` will say so.
    """
    try:
        DEFAULT_FILE.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass
    return DEFAULT_FILE


def load(argv_overrides: Mapping[str, str], env: Mapping[str, str], file: Path | None) -> Loaded:
    """The effective configuration.

    ``argv_overrides`` has texts by the path of the key (``reserve.min``), ``file`` must exist if given. Raises
    ConfigError with everything that is wrong in any of the sources.
    """
    reading = _Reading()
    base = Config()
    if file is not None:
        reading.take_file(file)
    reading.take_environment(env)
    for path, text in argv_overrides.items():
        reading.take(KEYS[path], f"flag:{KEYS[path].flag}", KEYS[path].flag, from_text, text)
    return reading.finish(base)


def suggest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown name: the known one that looks most like it, if any does.

    ``prefix`` is what all of them begin with, and so does not make them alike.
    """
    near = difflib.get_close_matches(name.removeprefix(prefix), [k.removeprefix(prefix) for k in known], n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


class _Reading:
    """The sources read so far: the last value of each key with its origin, and all problems."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._origins = dict.fromkeys(KEYS, "default")
        self._problems: list[str] = []
        self._refused: set[str] = set()

    def take(self, key: Key, origin: str, label: str, parse: Callable[[Key, Any], Any], raw: object) -> None:
        """Take a key's value from a source; ``label`` names both in messages."""
        try:
            value = parse(key, raw)
        except BadValueError as error:
            self._problems.append(f"{label}: {error}")
            self._refused.add(key.path)
            return
        self._values[key.path] = value
        self._origins[key.path] = origin

    def take_file(self, file: Path) -> None:
        name = escaped(str(file))
        try:
            document = tomllib.loads(file.read_bytes().decode())
        except OSError as error:
            self._problems.append(f"{name}: cannot be read: {error.strerror}")
            return
        except ValueError as error:
            self._problems.append(f"{name}: is not TOML: {error}")
            return
        for key, raw in document.items():
            if key not in TABLES:
                self._take_from_file(name, "", key, raw)
            elif isinstance(raw, dict):
                for inner, inner_raw in raw.items():
                    self._take_from_file(name, key, inner, inner_raw)
            else:
                self._problems.append(f"{name}: {key}: must be a table, [{key}], not {kind_of(raw)}")

    def _take_from_file(self, name: str, table: str, inner: str, raw: object) -> None:
        for key in KEYS.values():
            if (key.table, key.name) == (table, inner):
                self.take(key, f"file:{name}", f"{name}: {key.path}", from_raw, raw)
                return
        if isinstance(raw, dict) and not table:
            self._problems.append(f"{name}: unknown table {quoted(inner)}{suggest(inner, TABLES)}")
            return
        where = f" in [{table}]" if table else ""
        self._problems.append(f"{name}: unknown key {quoted(inner)}{where}{_suggest_key(table, inner)}")

    def take_environment(self, env: Mapping[str, str]) -> None:
        for key in KEYS.values():
            if env.get(key.calico):  # an empty variable is none, for Go's programs
                self.take(key, f"env:{key.calico}", key.calico, from_calico, env[key.calico])
        known = {key.environment: key for key in KEYS.values()}
        for name, text in sorted(env.items()):
            if name in known:
                self.take(known[name], f"env:{name}", name, from_text, text)
            elif name.startswith("IPAMD_") and not _INJECTED.fullmatch(name):
                self._problems.append(f"{escaped(name)}: unknown environment variable{suggest(name, known, 'IPAMD_')}")

    def finish(self, base: Config) -> Loaded:
        """The configuration with the defaults that follow from other keys or the host; raises ConfigError."""
        if "node" not in self._values and "node" not in self._refused:
            self.take(KEYS["node"], "default", "host name (without --node)", from_raw, base.node)
        if self._values.get("etcd.endpoints"):
            self._values.setdefault("store", "etcd")
        if "state_dir" in self._values:
            self._values.setdefault("embedded.path", self._values["state_dir"] / "ipamd.db")
            self._values.setdefault("spool_dir", self._values["state_dir"] / "del.d")
        config = self._assemble(base)
        problems = [*self._problems, *broken_rules(config, self._origins, self._refused)]
        if problems:
            raise ConfigError(problems)
        return Loaded(config, self._origins)

    def _assemble(self, base: Config) -> Config:
        changes: dict[str, dict[str, Any]] = {table: {} for table in ("", *TABLES)}
        for path, value in self._values.items():
            changes[KEYS[path].table][KEYS[path].name] = value
        top = changes.pop("")
        tables = {name: msgspec.structs.replace(getattr(base, name), **new) for name, new in changes.items()}
        return msgspec.structs.replace(base, **top, **tables)


def _suggest_key(table: str, name: str) -> str:
    """A known key like this one: of the same name in another table, else the one that looks most like it."""
    path = f"{table}.{name}" if table else name
    same = [key for key in KEYS.values() if key.name == name]
    near = same or [KEYS[match] for match in difflib.get_close_matches(path, list(KEYS), n=1)]
    if not near:
        return ""
    return f"; did you mean {near[0].name} {f'in [{near[0].table}]' if near[0].table else 'at the top of the file'}?"
