"""What the routes that people use have in common: reading a query, showing a value, refusing in words."""

import difflib
from collections.abc import Iterable
from urllib.parse import parse_qsl

import msgspec

from ipamd.api.http import Request, Response
from ipamd.api.steps import STATUS
from ipamd.core.errors import Code, RefusedError


def shown(value: object, status: int = 200) -> Response:
    """A value as JSON that people can read."""
    return Response(status, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def refused(error: RefusedError) -> Response:
    """A refusal, in the form of a CNI error object."""
    body = msgspec.json.encode({"code": int(error.code), "msg": error.msg})
    return Response(STATUS.get(error.code, 400), body, headers=(("Ipamd-Exit", "1"),))


def read_query(request: Request, known: Iterable[str]) -> dict[str, str]:
    """The parameters of a query, each of which must be known and given once; raises RefusedError (4)."""
    known, found = list(known), dict[str, str]()
    for name, value in parse_qsl(request.query, keep_blank_values=True):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}" if near else f"the parameters are {', '.join(known)}"
            raise _unreadable(request, f"there is no parameter {name[:80]!r}; {hint}")
        if name in found:
            raise _unreadable(request, f"parameter {name} is there twice; give it once")
        found[name] = value
    return found


def _unreadable(request: Request, why: str) -> RefusedError:
    return RefusedError(Code.INVALID_ENVIRONMENT, f"cannot read the query of {request.path}: {why}")
