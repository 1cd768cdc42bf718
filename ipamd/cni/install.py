"""Puts the plugin where the container runtime looks for it, under the names that configurations use.

The directory is in use while this runs: kubelet starts pods during an upgrade. So each name is replaced by a rename
of a complete, synced file: at every moment, and after a crash at any moment, a name is the old program or the new
one. All that can be refused is refused before the first name changes. Imports nothing of ipamd.
"""

import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

NAMES = ("ipamd", "calico-ipam", "host-local")
"""What ``ipam.type`` may name; the daemon answers each in its own way."""

BINARIES = Path(__file__).resolve().parent / "bin"

_ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


class InstallError(Exception):
    """The plugin was not installed; the text says why and what to do."""


def binary_for(machine: str) -> Path:
    """Return the plugin for a machine as ``uname -m`` names it. Raises InstallError."""
    architecture = _ARCHITECTURES.get(machine.lower())
    if architecture is None:
        raise InstallError(
            f"cannot install the CNI plugin: there is none for {machine}; it is built for x86_64 and aarch64"
        )
    path = BINARIES / f"ipamd-cni-{architecture}"
    if not path.is_file():
        raise InstallError(
            f"cannot install the CNI plugin: {path} is not there; install ipamd from its wheel, or build the plugin "
            "with `python -m ipamd.cni.build` (needs the package ziglang)"
        )
    return path


def install(directory: Path, names: Sequence[str] = NAMES) -> list[Path]:
    """Install this machine's plugin in a directory of CNI plugins under each of the names; return their paths.

    Existing files of these names are replaced. Raises InstallError: nothing is changed if a name, the directory or
    the machine is wrong; an I/O error half-way leaves the names before it replaced and the others as they were.
    """
    _check(directory, names)
    program = binary_for(platform.machine()).read_bytes()
    targets = [directory / name for name in dict.fromkeys(names)]
    try:
        for target in targets:
            _replace(target, program)
        _sync_directory(directory)
    except OSError as error:
        raise InstallError(
            f"cannot install the CNI plugin in {directory}: {error.strerror}; "
            "see that the directory is writable and its disk has space, then run this again"
        ) from error
    return targets


def _check(directory: Path, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise InstallError(
            f"cannot install the CNI plugin as {', '.join(unknown) or 'nothing'}: choose from {', '.join(NAMES)}"
        )
    if not directory.is_dir():
        raise InstallError(
            f"cannot install the CNI plugin in {directory}: it is not a directory; name the directory of the runtime's "
            "CNI plugins (usually /opt/cni/bin), and create it if there is none yet"
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise InstallError(f"cannot install the CNI plugin in {directory}: it is not writable; run this as root")
    for name in names:
        if (directory / name).is_dir():
            raise InstallError(
                f"cannot install the CNI plugin as {directory / name}: that is a directory; move it away"
            )


def _replace(target: Path, program: bytes) -> None:
    """Make the target the program, in one step as others see it."""
    # The same directory, because a rename is atomic only within one file system.
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(program)
            file.flush()
            os.fchmod(file.fileno(), 0o755)
            os.fsync(file.fileno())
        # Closed by now: the kernel refuses to run a file that somebody has open for writing.
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
