"""Asking before something is done that cannot be undone."""

import sys

import click

from ipamd.ctl.errors import CommandError, UsageError


def ask(question: str, *, yes: bool) -> None:
    """Ask on the terminal; ``yes``: it was answered on the command line. Raises CommandError for no, UsageError."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("cannot ask whether to release them: standard input is no terminal; say --yes")
    if not click.confirm(question, err=True):
        raise CommandError("nothing was released")
