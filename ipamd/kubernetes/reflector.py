"""One kind of object, kept up to date: a list, then a watch from its revision, resumed as long as the server can.

The list is taken from the server's cache (``resourceVersion=0``), where pods are found by their node; asked of etcd it
would read every pod of the cluster, for each node that starts. The watch catches up with what the cache lacked.

A watch that ends is resumed from the last revision seen (bookmarks move it on while nothing happens). 410 Gone, as a
status or as an event: list again. Every other failure: try again, pausing longer each time, and as long as the server
asks for (429, Retry-After).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import trio

from ipamd.kubernetes.client import Client
from ipamd.kubernetes.errors import ApiError, NonsenseError
from ipamd.kubernetes.objects import Event, Listing, Metadata, Object, Status, decode

FIRST_PAUSE = 0.2
LAST_PAUSE = 10.0
LONGEST_PAUSE = 60.0
"""Seconds between attempts: at first, at most by itself, at most as the server asks. Shuffled by a quarter."""

WATCH_SECONDS = (240, 360)
"""How long the server may keep one watch: as long as client-go's, and not the same for all nodes."""

SILENCE = 90.0
"""Seconds without a word after which a watch is begun anew. The API sends a bookmark about every minute."""

_GONE = 410


class Sink(NamedTuple):
    """What is told of the objects: all that there are, one that was made or changed, one that is gone."""

    replace: Callable[[Sequence[Metadata]], None]
    changed: Callable[[Metadata], None]
    deleted: Callable[[Metadata], None]


class Reflector:
    """Lists and watches ``path`` with ``select`` as query, and tells ``sink``.

    ``error`` is why that fails at the moment, else ""; ``report`` is told once of each. ``synced``: a list was had.
    """

    def __init__(
        self, client: Client, path: str, select: Mapping[str, str], sink: Sink, report: Callable[[str], None]
    ) -> None:
        self._client, self._path, self._select, self._sink, self._report = client, path, select, sink, report
        self._revision = ""
        self._heard = False
        self.synced = False
        self.error = ""
        self.lists = 0

    async def run(self) -> None:
        """Never returns."""
        pause = FIRST_PAUSE
        while True:
            asked_for = 0.0
            self._heard = False
            try:
                if not self._revision:
                    await self._list()
                await self._watch()
            except ApiError as error:
                if error.status == _GONE or isinstance(error, NonsenseError):
                    self._revision = ""  # of nonsense too: it would come again, and a list may do without it
                if error.status != _GONE:
                    self._failed(error)
                    asked_for = min(error.retry_after, LONGEST_PAUSE)
            pause = FIRST_PAUSE if self._heard else min(2 * pause, LAST_PAUSE)
            await trio.sleep(max(asked_for, pause * random.uniform(0.75, 1.25)))  # noqa: S311 - no secret

    def _failed(self, error: ApiError) -> None:
        if str(error) != self.error:
            self._report(str(error))
        self.error = str(error)

    async def _list(self) -> None:
        listing = decode(await self._client.get(self._path, {**self._select, "resourceVersion": "0"}), Listing)
        self.lists += 1
        self._sink.replace([item.metadata for item in listing.items or ()])
        self._revision = listing.metadata.resource_version
        self.synced = True

    async def _watch(self) -> None:
        params = {
            **self._select,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._revision,
            "timeoutSeconds": str(random.randint(*WATCH_SECONDS)),  # noqa: S311 - no secret
        }
        await self._client.follow(self._path, params, SILENCE, self._opened, self._take)

    def _opened(self) -> None:
        self.error = ""

    def _take(self, line: bytes) -> None:
        event, metadata = _read(line)
        if event == "DELETED":
            self._sink.deleted(metadata)
        elif event != "BOOKMARK":
            self._sink.changed(metadata)
        self._revision = metadata.resource_version
        self._heard = True


def _read(line: bytes) -> tuple[str, Metadata]:
    """An event's type and object; raises ApiError, also for the ERROR that a server sends before it ends a watch."""
    event = decode(line, Event)
    if event.type == "ERROR":
        status = decode(event.object, Status)
        raise ApiError(f"the Kubernetes API ended a watch: {status.message}", status.code)
    return event.type, decode(event.object, Object).metadata
