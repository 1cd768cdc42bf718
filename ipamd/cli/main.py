"""The command ``ipamd``: run the daemon, install the CNI plugin.

Exit codes: 0 done, 1 refused or failed, 2 a mistake on the command line or in the configuration. What was asked for
goes to standard output, everything else to standard error.

A flag for each key of the configuration is made from the table of keys. What a command needs is imported when it
runs, so that ``ipamd version`` and ``--help`` are quick.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.inspect import LiteralType

import ipamd
from ipamd.api.access import group_id
from ipamd.config import DEFAULT_FILE, KEYS, Config, ConfigError, Key, default_file, load, render, suggest
from ipamd.config.schema import TABLES

OK, FAILED, USAGE = 0, 1, 2

COMMANDS = ("run", "install-cni", "version")

_TOP = """\
examples:
  ipamd                                         run the daemon (as does `ipamd run`)
  ipamd --etcd-endpoints http://127.0.0.1:2379  the same, with the records in etcd
  ipamd --check-config                          say whether the configuration is good
  ipamd install-cni /opt/cni/bin                put the CNI plugin where the runtime looks
  ipamd run --help                              all flags of the daemon

A command line without a command is that of `run`.
"""

_RUN_USAGE = "ipamd run [--config FILE] [--demo] [--print-config | --check-config] [--KEY VALUE ...]"

_RUN = f"""\
Each key of the configuration can be set, in rising precedence, in the file ({DEFAULT_FILE}, or the
one that --config names), in the environment and by a flag: reserve.min is

  [reserve]
  min = 32                  in the file
  IPAMD_RESERVE_MIN=32      in the environment
  --reserve-min 32          as a flag

examples:
  ipamd run --demo --state-dir /tmp/ipamd --socket /tmp/ipamd/ipamd.sock --default-pools-ipv4-cidr 10.42.0.0/16
  ipamd run --config /etc/ipamd/test.toml --log-level debug
  ipamd run --etcd-endpoints https://10.0.0.1:2379,https://10.0.0.2:2379 --etcd-ca-file /etc/etcd/ca.crt
  ipamd run --print-config > ipamd.toml
"""

_INSTALL = """\
The directory is the one in which the container runtime looks for plugins. An existing file of the same name is
replaced in one step, also while pods are being started.

examples:
  ipamd install-cni /opt/cni/bin
  ipamd install-cni /opt/cni/bin --as ipamd calico-ipam
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (default: that of the process) and return its exit code.

    Raises SystemExit, as argparse does, after --help (0) and for a mistake on the command line (2).
    """
    arguments = _parse(sys.argv[1:] if argv is None else list(argv))
    if arguments.command == "version":
        sys.stdout.write(f"ipamd {ipamd.__version__}\n")
        return OK
    if arguments.command == "install-cni":
        return _install_cni(Path(arguments.directory), arguments.names)
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    given: dict[str, str | None] = {path: getattr(arguments, path) for path in KEYS}
    overrides = {path: text for path, text in given.items() if text is not None}
    try:
        file = default_file() if arguments.config is None else Path(arguments.config)
        loaded = load(overrides, os.environ, file)
    except ConfigError as error:
        sys.stderr.write(f"ipamd: {error}\n")
        return USAGE
    if arguments.print_config:
        sys.stdout.write(render(loaded))
        return OK
    if arguments.check_config:
        group = loaded.config.socket_group
        if loaded.origins["socket_group"] != "default" and group and group_id(group) is None:
            text = f"socket_group is {group}, which this host does not have; only root and the daemon's user may read"
            sys.stderr.write(f"ipamd: {text}; create the group or correct its name\n")
        sys.stdout.write("ok\n")
        return OK
    return _serve(loaded.config, demo=arguments.demo)


def _serve(config: Config, *, demo: bool) -> int:
    from ipamd import logs
    from ipamd.daemon import run

    logs.configure(config.log_level, config.log_format, sys.stderr)
    return run(config, demo=demo)


def _install_cni(directory: Path, names: Sequence[str]) -> int:
    from ipamd.cni.install import InstallError, install

    try:
        paths = install(directory, names)
    except InstallError as error:
        sys.stderr.write(f"ipamd: {error}\n")
        return FAILED
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    return OK


def _parse(argv: list[str]) -> argparse.Namespace:
    parser, commands = _parsers()
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")):
        argv = ["run", *argv]
    if argv[0] == "--version":
        argv = ["version", *argv[1:]]
    if not argv[0].startswith("-") and argv[0] not in COMMANDS:
        parser.error(f"unknown command {argv[0]!r}{suggest(argv[0], COMMANDS)}")
    arguments, unknown = parser.parse_known_args(argv)
    flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    known = [key.flag for key in KEYS.values()] if arguments.command == "run" else []
    if flags:  # without what follows: it may be a password meant for a flag that does not exist
        words = [f"unknown flag {flag}{suggest(flag, known, '--')}" for flag in flags]
        commands[arguments.command].error("\n  ".join(words))
    if unknown:
        commands[arguments.command].error(f"unexpected argument {unknown[0]!r}")
    return arguments


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole line, and those of the commands."""
    # Without abbreviations: `--etcd-password secret` would be taken for `--etcd-password-file`.
    settings: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(
        "ipamd", description="IP address management for a Kubernetes node.", epilog=_TOP, **settings
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    run = commands.add_parser(
        "run", help="run the daemon", description="Run the daemon.", usage=_RUN_USAGE, epilog=_RUN, **settings
    )
    _add_run(run)
    install = commands.add_parser(
        "install-cni",
        help="install the CNI plugin",
        description="Install the CNI plugin and print the paths it was installed as.",
        epilog=_INSTALL,
        **settings,
    )
    install.add_argument("directory", metavar="DIR", help="directory of the runtime's plugins")
    install.add_argument(
        "--as", dest="names", metavar="NAME", nargs="+", default=["ipamd"], help="names to install it as (ipamd)"
    )
    version = commands.add_parser("version", help="print the version", description="Print the version.", **settings)
    return parser, {"run": run, "install-cni": install, "version": version}


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("--config", metavar="FILE", help=f"configuration to read instead of {DEFAULT_FILE}")
    run.add_argument("--demo", action="store_true", help="when ready, print three lines to try the daemon with")
    instead = run.add_mutually_exclusive_group()
    instead.add_argument(
        "--print-config", action="store_true", help="print the effective configuration, with its sources, and exit"
    )
    instead.add_argument("--check-config", action="store_true", help="print ok or what is wrong, and exit")
    defaults = Config(node="")
    groups = {"": run.add_argument_group("configuration")}
    for key in KEYS.values():
        if key.table not in groups:
            groups[key.table] = run.add_argument_group(f"configuration [{key.table}]", TABLES[key.table])
        default = key.of(defaults)
        shown = f" (default: {default})" if default not in ("", (), None) and "(default" not in key.help else ""
        text = f"{key.help}{shown}".replace("%", "%%")
        groups[key.table].add_argument(key.flag, dest=key.path, metavar=_metavar(key), help=text)


def _metavar(key: Key) -> str:
    return "|".join(str(value) for value in key.type.values) if isinstance(key.type, LiteralType) else "VALUE"
