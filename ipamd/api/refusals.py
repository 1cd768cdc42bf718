"""What the server answers by itself, when there is no handler to ask: errors in the form of a CNI error object.

Serialized once, so that a server in trouble has nothing left to build. May import ``http`` and ``ipamd.core.errors``.
"""

from typing import Final

import msgspec

from ipamd.api.http import Response, serialize
from ipamd.core.errors import Code


def refusal(status: int, code: Code, msg: str) -> Response:
    """Return an error of the server's own, in the form of a CNI error object."""
    body = msgspec.json.encode({"cniVersion": "1.1.0", "code": code, "msg": msg})
    return Response(status, body, headers=(("Ipamd-Exit", "1"),), close=True)  # without it the plugin believes nothing


OVERLOADED: Final = serialize(
    refusal(503, Code.TRY_AGAIN_LATER, "cannot serve the connection: too many are open; try again later"),
    keep_alive=False,
)
FULL: Final = serialize(
    refusal(503, Code.TRY_AGAIN_LATER, "cannot read the request: too many others have half arrived; try again later"),
    keep_alive=False,
)
TOO_SLOW: Final = serialize(
    refusal(408, Code.TRY_AGAIN_LATER, "cannot read the request: it did not arrive in time; send it at once"),
    keep_alive=False,
)
STOPPING: Final = serialize(
    refusal(503, Code.TRY_AGAIN_LATER, "cannot serve the request: ipamd is stopping; try again later"), keep_alive=False
)
CRASHED: Final = serialize(
    refusal(500, Code.IO_FAILURE, "cannot serve the request: internal error of ipamd; see its log"), keep_alive=False
)
