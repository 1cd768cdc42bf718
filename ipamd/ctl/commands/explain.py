"""``explain``: why a pod, an address or a node is served as it is, as the daemon says it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from ipamd.ctl import completion
from ipamd.ctl.command import Group, command
from ipamd.ctl.errors import UsageError
from ipamd.ctl.output import Column, Output, Sheet, counted, output_option, show, tell
from ipamd.ctl.target import Target

_EXAMPLES = """\
  ipamctl explain pod default/web-1
  ipamctl explain address 192.168.0.7
  ipamctl explain node
"""


_MARKS = {True: "yes", False: "no "}

_POD = """\
  ipamctl explain pod default/web-1
  ipamctl explain pod default/web-1 --cni-config /etc/cni/net.d/10-calico.conflist
  ipamctl explain pod default/web-1 -o yaml
"""


@command("pod", _POD)
@click.argument("pod", metavar="NAMESPACE/NAME", shell_complete=completion.pods)
@click.option("--cni-config", metavar="FILE", help="CNI configuration of the pod's network (.conf or .conflist)")
@output_option
async def pod(target: Target, pod: str, cni_config: str | None, output: Output) -> None:
    """Show what a pod holds and what its next ADD would be answered, with each pool that admits or excludes it.

    The CNI configuration has a say in it; without one the pod asks for no pool, and for each IP version with pools.
    """
    query = {"pod": pod, **({"config": _network(Path(cni_config))} if cni_config else {})}
    _show(output, await _ask(target, query), f"pod/{pod}", _pod)


_ADDRESS = """\
  ipamctl explain address 192.168.0.7
  ipamctl explain address fd00:10:244::7 -o jsonpath='{.state}'
"""


@command("address", _ADDRESS)
@click.argument("address", metavar="IP")
@output_option
async def address(target: Target, address: str, output: Output) -> None:
    """Show where an address is, who has it, and what keeps it from being assigned."""
    _show(output, await _ask(target, {"address": address}), f"address/{address}", _address)


_NODE = """\
  ipamctl explain node
  ipamctl explain node node-a -o custom-columns=NODE:.node,LABELS:.labels
"""


@command("node", _NODE)
@click.argument("node", metavar="[NAME]", default="", shell_complete=completion.of("node"))
@output_option
async def node(target: Target, node: str, output: Output) -> None:
    """Show what this daemon's node may use: each pool, the cluster's limits, its blocks and reserves."""
    told = await _ask(target, {"node": node})
    _show(output, told, f"node/{told['node']}", _node)


explain = Group(
    "explain",
    [pod, address, node],
    epilog=_EXAMPLES,
    help="Say why, step by step, by the code that decides; nothing is changed by asking.",
)


async def _ask(target: Target, query: Mapping[str, str]) -> dict[str, Any]:
    told: dict[str, Any] = await target.daemon().get(f"/v1/explain?{urlencode(query)}")
    return told


def _show(output: Output, told: dict[str, Any], name: str, words: Any) -> None:
    if output.form in ("table", "wide"):
        tell(words(told))
    else:
        show(output, Sheet((Column("NAME", lambda _: name),), lambda _: name), [told], told)


def _network(file: Path) -> str:
    """The network configuration in a file: that of the plugin that has an ``ipam`` section, of a list."""
    import json

    try:
        found = json.loads(file.read_text())
        plugins = found.pop("plugins", None)
        if plugins is not None:  # what the runtime makes of a list for each plugin
            named = {key: found[key] for key in ("cniVersion", "name") if key in found}
            found = {**next(each for each in plugins if "ipam" in each), **named}
        return json.dumps(found, separators=(",", ":"))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"cannot read the CNI configuration {file}: {error}") from error
    except StopIteration:
        raise UsageError(f"cannot use the CNI configuration {file}: none of its plugins has an ipam section") from None


# --- in words -----------------------------------------------------------------------------------------------------


def _pod(told: dict[str, Any]) -> Iterator[str]:
    yield f"Pod {told['pod']} on node {told['node']}"
    if told["kubernetes"]:
        yield f"  Kubernetes: {told['kubernetes']}"
    yield ""
    yield "Holds" if told["holds"] else "Holds no address."
    for held in told["holds"]:
        whose = f"pool {held['pool']}, block {held['block']}" if "block" in held else "host-local ranges"
        flushed = "" if held.get("flushed", True) else ", not in the store yet"
        borrowed = f", borrowed from {held['borrowed_from']}" if held.get("borrowed_from") else ""
        yield f"  {held['address']}  {whose}{borrowed}, since {held['since'] or 'unknown'}{flushed}"
        interface = f" {held['interface']}" if held["interface"] else ""
        yield f"    container {held['container']}{interface} of network {held['network']}"
    if told["refusal"]:
        yield ""
        yield from _refusal("The next ADD", told["refusal"])
    for decision in told["decisions"]:
        yield ""
        yield from _decision(decision)


def _refusal(what: str, refusal: dict[str, Any]) -> Iterator[str]:
    yield f"{what} is refused with code {refusal['code']}:"
    yield f"  {refusal['msg']}"


def _decision(decision: dict[str, Any]) -> Iterator[str]:
    what = f"IPv{decision['family']}: the next ADD"
    if decision["requested"]:
        what += f", which asks for {decision['requested']},"
    elif decision["named"]:
        what += f", for which {decision['named_by']} names {', '.join(decision['named'])},"
    if decision["outcome"] == "address":
        place = f" of pool {decision['pool']}, block {decision['block']}" if decision["pool"] else ""
        yield f"{what} gets {decision['address']}{place}"
    elif decision["outcome"] == "wait":
        yield f"{what} waits: {decision['why']}"
    else:
        yield from _refusal(what, decision["refusal"])
    yield from _pools(decision["pools"])


def _pools(pools: list[dict[str, Any]]) -> Iterator[str]:
    for step in pools:
        cidr = f" ({step['cidr']})" if step["cidr"] else ""
        remedy = f"; {step['remedy']}" if step["remedy"] else ""
        yield f"  {_MARKS[step['admitted']]} pool {step['pool']}{cidr} {step['why']}{remedy}"
        for whose in ("node", "namespace"):
            labels = step[f"{whose}_labels"]
            if labels:
                compared = ", ".join(f"{name} is {'absent' if v is None else repr(v)}" for name, v in labels.items())
                yield f"        of the {whose}'s labels, {compared}"
        if step["admitted"] or step["blocks"] or step["reserve"]:
            following = f", the next is {step['next']}" if step["next"] else ""
            yield (
                f"        {counted(step['blocks'], 'block')} of this node; {counted(step['reserve'], 'address')} in "
                f"reserve{following}; {step['unreserved']} more free; {counted(step['waiting'], 'ADD')} waiting"
            )
        if step["no_block"]:
            yield f"        no further block: {step['no_block']}"
        if step["no_address"]:
            yield f"        no address: {step['no_address']}"


def _address(told: dict[str, Any]) -> Iterator[str]:
    yield f"Address {told['address']}: {told['what']}"
    if told["pool"]:
        whose = told["affinity"].replace(":", " ", 1) or "nobody"
        yield f"  pool {told['pool']}, block {told['block']} of {whose}"
    holder = told["holder"]
    if holder is not None:
        fields = ("handle", "node", "network", "container", "interface", "namespace", "pod", "since")
        yield "  holder: " + ", ".join(f"{name} {holder[name]}" for name in fields if holder[name])
        if holder["attributes"]:
            yield "  in the store: " + ", ".join(f"{name}={value}" for name, value in holder["attributes"].items())
    for network, who in told["ranges"].items():
        yield f"  held of host-local ranges of network {network} by container {who[1]} ({who[2]})"
    yield ""
    if told["hindrances"]:
        yield "A pod of this node that does not ask for it does not get it now:"
        yield from (f"  {why}" for why in told["hindrances"])
    else:
        yield "Nothing keeps it from a pod of this node."
    yield ""
    yield from _decision(told["on_request"])


def _node(told: dict[str, Any]) -> Iterator[str]:
    ready = "ready" if not told["reason"] else told["reason"]
    yield f"Node {told['node']}: {ready}"
    yield "  labels: " + (", ".join(f"{name}={value}" for name, value in told["labels"].items()) or "none")
    yield (
        f"  at most {told['max_blocks']} blocks; "
        f"{'may' if told['auto_allocate_blocks'] else 'may not'} claim them by itself; "
        f"{'strict affinity: borrows nothing' if told['strict_affinity'] else 'may borrow from other nodes'}; "
        f"released addresses cool for {told['cooldown_seconds']} s"
    )
    yield from (f"  the {what}" for what in _states(told))
    yield ""
    yield "Pools, for pods that name none"
    yield from _pools(told["pools"])
    yield ""
    yield "Blocks" if told["blocks"] else "No blocks."
    for block in told["blocks"]:
        whose = "own" if block["affine"] else f"of {block['affinity'] or 'nobody'}"
        yield (
            f"  {block['cidr']} ({whose}, pool {block['pool'] or 'gone'}): {block['in_use']} in use, "
            f"{block['in_reserve']} in reserve, {block['unreserved']} free, {block['lent']} lent, "
            f"{block['cooling']} cooling, {block['unflushed']} not in the store yet"
        )


def _states(told: dict[str, Any]) -> Iterator[str]:
    if told["locked"]:
        yield "datastore is locked"
    if told["draining"]:
        yield "node is being drained"
