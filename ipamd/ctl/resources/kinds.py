"""The table of kinds."""

from typing import Any

import click
from click.shell_completion import CompletionItem

from ipamd.config import suggest
from ipamd.ctl.resources.blockaffinity import BLOCK_AFFINITY
from ipamd.ctl.resources.ipamconfiguration import IPAM_CONFIGURATION
from ipamd.ctl.resources.ippool import IP_POOL
from ipamd.ctl.resources.ipreservation import IP_RESERVATION
from ipamd.ctl.resources.kind import Kind
from ipamd.ctl.resources.node import NODE

KINDS: tuple[Kind, ...] = (IP_POOL, IP_RESERVATION, IPAM_CONFIGURATION, NODE, BLOCK_AFFINITY)

CALLED = {called: kind for kind in KINDS for called in kind.called}
"""Every kind by each of its names on the command line."""


class KindType(click.ParamType[Kind]):
    """A kind, as a command line names it: ``ippool``, ``IPPools``, ``ippools.projectcalico.org``."""

    name = "kind"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Kind:
        """Find it; fails, as click does, for what is no kind."""
        if isinstance(value, Kind):
            return value
        called = str(value).lower().removesuffix(".projectcalico.org").removesuffix(".crd")
        if called not in CALLED:
            known = ", ".join(kind.called[-1] for kind in KINDS)
            self.fail(f"there is no kind {value!r}{suggest(called, CALLED)}; the kinds are {known}", param, context)
        return CALLED[called]

    def shell_complete(self, _context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The kinds that begin so."""
        return [CompletionItem(kind.called[-1]) for kind in KINDS if kind.called[-1].startswith(incomplete.lower())]
