"""``bundle``: one archive of what the daemon says of itself, for a bug report."""

import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ipamd import __version__
from ipamd.ctl.command import command
from ipamd.ctl.errors import CommandError
from ipamd.ctl.target import Target

_BUNDLE = """\
  ipamctl bundle
  ipamctl bundle ipamd-node-a.tar.gz
"""

_PARTS = {
    "status.json": "/v1/status",
    "check.json": "/v1/check",
    "config.json": "/v1/config",
    "pools.json": "/v1/pools",
    "blocks.json": "/v1/blocks",
    "allocations.json": "/v1/allocations",
    "reserve.json": "/v1/reserve",
    "tunnel-addresses.json": "/v1/tunnel-addresses",
    "explain-node.json": "/v1/explain?node",
    "events.json": "/v1/events",
    "routes.json": "/",
    "metrics.txt": "/metrics",
}
"""What is in it: name, and what the daemon is asked for."""

_README = """\
ipamctl {version}, {time}

What `GET` of these routes of the daemon said: {parts}.
Passwords, tokens and keys are taken out; names and addresses of pods and nodes are in it.
The log of the daemon beside this: journalctl -u ipamd --since -1h. Its last lines are in events.json (kind "log").
"""

_SECRET = re.compile(r"pass(word|phrase|wd)?|secret|token|credential|private|(^|_)key$", re.IGNORECASE)
_PATH = re.compile(r"(_file|_dir|_path)$|^key_file$", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/@\s\"']+(?=@)")
REMOVED = "<removed>"


@command("bundle", _BUNDLE)
@click.argument("file", type=click.Path(path_type=Path), required=False)
async def bundle(target: Target, file: Path | None) -> None:
    """Write one archive (.tar.gz) for a bug report: version, configuration, status, records, events, metrics.

    Passwords, tokens and keys are taken out; names and addresses of pods and nodes are in it.
    """
    daemon = target.daemon()
    now = datetime.now(UTC)
    parts = {name: cleaned(await daemon.request("GET", path)) for name, path in _PARTS.items()}
    about = _README.format(
        version=__version__, time=now.isoformat(timespec="seconds"), parts=", ".join(_PARTS.values())
    )
    path = file or Path(f"ipamd-{now.strftime('%Y%m%dT%H%M%SZ')}.tar.gz")
    _write(path, {"README": about.encode(), **parts}, int(now.timestamp()))
    click.echo(path)


def cleaned(answer: bytes) -> bytes:
    """An answer without secrets: values under names such as ``password``, and logins in URLs."""
    text = _LOGIN.sub(REMOVED, answer.decode(errors="replace"))
    try:
        value = json.loads(text)
    except ValueError:
        return text.encode()
    return json.dumps(_without_secrets(value), indent=2).encode() + b"\n"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_secrets(each) for each in value]
    if isinstance(value, dict):
        return {
            name: REMOVED
            if each and isinstance(each, str) and _SECRET.search(name) and not _PATH.search(name)
            else _without_secrets(each)
            for name, each in value.items()
        }
    return value


def _write(path: Path, parts: dict[str, bytes], time: int) -> None:
    import tarfile

    folder = path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")
    try:
        with path.open("xb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
            path.chmod(0o600)
            for name, data in parts.items():
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mtime, entry.mode = len(data), time, 0o600
                archive.addfile(entry, io.BytesIO(data))
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}; name another file") from error
