"""``import host-local``: takes over the addresses of pods that the reference plugin host-local started.

host-local keeps a folder for each network below its data directory: a file for each address, named by it, with the
container's id and below it the interface; ``last_reserved_ip.<n>`` with the address last given out of range set n; and
``lock``, an advisory lock (flock) that each of its processes takes first, and this command too.
"""

import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ipamd.ctl.command import Group, command
from ipamd.ctl.errors import CommandError
from ipamd.ctl.output import counted
from ipamd.ctl.target import Target

DATA_DIR = Path("/var/lib/cni/networks")
"""Where host-local keeps its folders, unless its configuration has ``dataDir``."""

_LAST = "last_reserved_ip."
_LOCK = "lock"
_IMPORTED = ".imported"

_HOST_LOCAL = """\
  ipamctl import host-local --dry-run
  ipamctl import host-local -- ipamd install-cni /opt/cni/bin --as host-local
  ipamctl import host-local --data-dir /var/lib/cni/networks
"""


@command("host-local", _HOST_LOCAL)
@click.option("--data-dir", type=click.Path(path_type=Path), default=DATA_DIR, help=f"its folders ({DATA_DIR})")
@click.option("--interface", default="eth0", help="of files that name none, as old versions wrote them (eth0)")
@click.option("--dry-run", is_flag=True, help="only say what would be taken over")
@click.argument("then", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
async def host_local(
    target: Target,
    data_dir: Path,
    interface: str,
    dry_run: bool,  # noqa: FBT001 - click passes names
    then: tuple[str, ...],
) -> None:
    """Take over the addresses that the plugin host-local has given out, without restarting a pod.

    All of it or nothing. host-local is locked out meanwhile; COMMAND, which puts ipamd's plugin in its place, runs
    before the lock is let go, so that no pod gets an address from either in between. Then its folders are moved away.
    """
    with ExitStack() as locks:
        networks = [_read(folder, interface, locks) for folder in _folders(data_dir)]
        told = await target.daemon().post("/v1/import/host-local", {"networks": networks, "dry_run": dry_run})
        click.echo(_words(told, networks))
        for conflict in told["conflicts"]:
            click.echo(f"  conflict: {conflict}")
        if told["conflicts"]:
            raise CommandError(
                "cannot take over host-local's addresses: see the conflicts; nothing would be taken over"
            )
        if dry_run:
            return
        if then:
            _run(then)
        for folder in _folders(data_dir):
            click.echo(f"moved {folder} to {_move_away(folder)}")


def _folders(data_dir: Path) -> list[Path]:
    try:
        return sorted(each for each in data_dir.iterdir() if each.is_dir() and not each.is_symlink())
    except FileNotFoundError:
        raise CommandError(
            f"cannot read what host-local holds: there is no folder {data_dir}; name its dataDir with --data-dir"
        ) from None
    except OSError as error:
        raise _unreadable(data_dir, error) from error


def _read(folder: Path, interface: str, locks: ExitStack) -> dict[str, Any]:
    """A network as the daemon wants it; its lock is held until ``locks`` ends."""
    try:
        locks.enter_context(_locked(folder))
        held, last = [], {}
        for file in sorted(folder.iterdir()):
            if file.name == _LOCK:
                continue
            text = file.read_text()
            if file.name.startswith(_LAST):
                last[file.name.removeprefix(_LAST)] = text.strip()
            else:
                container, _, named = text.strip().partition("\n")
                held.append(
                    {"address": file.name, "container": container.strip(), "interface": named.strip() or interface}
                )
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(folder, error) from error
    return {"name": folder.name, "held": held, "last": last}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / _LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _run(then: Sequence[str]) -> None:
    sys.stdout.flush()
    try:
        code = os.spawnvp(os.P_WAIT, then[0], list(then))  # noqa: S606 - the user's own words, as given
    except OSError as error:
        code = error.errno or 1
    if code:
        raise CommandError(
            f"cannot put ipamd's plugin in host-local's place: {' '.join(then)} ended with {code}; the addresses are "
            "taken over, and host-local goes on: correct the command and run this again"
        )


def _move_away(folder: Path) -> Path:
    """Rename a network's folder, which no host-local looks for any more; returns where it is."""
    away = folder.parent.with_name(folder.parent.name + _IMPORTED)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    try:
        away.mkdir(mode=0o755, exist_ok=True)
        return folder.rename(away / f"{folder.name}-{stamp}")
    except OSError as error:
        raise CommandError(
            f"cannot move {folder} to {away}: {error.strerror}; its addresses are taken over: move it away yourself"
        ) from error


def _words(told: dict[str, Any], networks: Sequence[dict[str, Any]]) -> str:
    verb = "would take" if told["dry_run"] else "took"
    done = f"{verb} over {counted(told['new'], 'address')} of {counted(len(networks), 'network')}"
    others = [f"{told['known']} were here already"] if told["known"] else []
    others += [f"{told['ended']} are of containers deleted since"] if told["ended"] else []
    return "; ".join((done, *others))


def _unreadable(path: Path, error: Exception) -> CommandError:
    cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CommandError(f"cannot read what host-local holds in {path}: {cause}; run as root, and look at the folder")


import_ = Group("import", [host_local], epilog=_HOST_LOCAL, help="Take over what another IPAM plugin holds.")
