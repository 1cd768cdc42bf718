"""DELs that came while the daemon was away: the plugin kept each in a file, as the request it could not deliver.

A file is named ``<boot id>.<start of the DEL>.<process>`` and hidden by a dot while it is written. It goes when the
release is in the state file; one that is still hidden after a minute goes, too, because its plugin was killed and its
runtime told nothing. What was promised to the runtime is a success, so a DEL that is refused now is told to
the log and given up.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from ipamd.api.access import ROOT, Peer
from ipamd.api.http import BadRequestError, Parser, Request, Response
from ipamd.core.clock import THIS_BOOT

_HEAD: Final = 1 << 20
_BODY: Final = 64 << 20
"""The most that a plugin sends (bytes)."""
_UNFINISHED: Final = re.compile(r"\.[0-9a-f-]{36}\.[0-9]{20}\.[0-9]+")
_WRITING: Final = 60 * 1_000_000_000
"""The longest for which a plugin writes without a pause (ns)."""


class Spool:
    """The directory of kept DELs. ``carry_out`` before the first request is served, and now and then after it.

    ``answer`` serves a DEL; ``durable`` tells whether what was answered is in the state file; ``unix`` reads the clock
    (ns); ``report`` takes words for the log.
    """

    def __init__(
        self,
        directory: Path,
        boot: str,
        answer: Callable[[Request, Peer], object],
        durable: Callable[[], bool],
        unix: Callable[[], int],
        report: Callable[[str, dict[str, str]], None],
    ) -> None:
        self._directory, self._boot, self._answer = directory, boot, answer
        self._durable, self._unix, self._report = durable, unix, report
        self._peer = Peer(os.getpid(), ROOT, 0)
        self._stuck: set[str] = set()
        """What cannot be removed: carried out or told once, and no more."""
        self._unmade = ""
        self.carried_out = 0
        """DELs carried out since the start."""

    def prepare(self) -> None:
        """Make the directory, for its owner only; without it a plugin fails where it could have kept a DEL."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            if str(error) != self._unmade:
                words = {"spool": str(self._directory), "error": str(error)}
                self._report("cannot keep DELs while the daemon is away", words)
            self._unmade = str(error)

    def carry_out(self) -> None:
        """Carry out what is there, in the order in which it began."""
        try:
            found = [path.name for path in self._directory.iterdir()]
        except FileNotFoundError:
            self.prepare()  # somebody removed it
            return
        except OSError:
            return
        self._clear_away(name for name in found if _UNFINISHED.fullmatch(name))
        names = [name for name in found if not name.startswith(".")]
        self._stuck.intersection_update(names)
        # Files of another boot are older than all of this one's, whatever their boot id.
        for name in sorted(names, key=lambda name: (name.startswith(f"{self._boot}."), name)):
            if name not in self._stuck and not self._carry_out(name):
                return  # kept until the state file can be written again

    def _clear_away(self, hidden: Iterable[str]) -> None:
        """Remove what nobody writes any more: a plugin takes no more DELs than so many files."""
        for name in hidden:
            with suppress(OSError):  # finished meanwhile; or it stays, and costs a place
                path = self._directory / name
                if self._unix() - path.lstat().st_mtime_ns > _WRITING:
                    path.unlink()

    def _carry_out(self, name: str) -> bool:
        path = self._directory / name
        try:
            request = self._read(path)
            if not name.startswith(f"{self._boot}."):  # its clock says nothing here: it began before everything
                request = replace(request, headers={**request.headers, "ipamd-started": str(THIS_BOOT)})
            response = self._answer(request, self._peer)
        except (BadRequestError, OSError) as error:
            self._report("cannot carry out a kept DEL, leaving it out", {"file": name, "error": str(error)})
        else:
            if isinstance(response, Response) and response.status != 200:
                answer = response.body.decode(errors="replace")
                self._report("a kept DEL was refused", {"file": name, "answer": answer})
            elif not self._durable():
                return False
            self.carried_out += 1
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._stuck.add(name)
            words = f"{error.strerror}; remove it, or see why it cannot be"
            self._report("cannot remove what lies among the kept DELs", {"path": str(path), "error": words})
        return True

    @staticmethod
    def _read(path: Path) -> Request:
        """The request in a file; raises BadRequestError, OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode) or about.st_uid not in (ROOT, os.geteuid()):
                raise BadRequestError(403, "it is not a file of root or of the daemon's user")
            parser = Parser(_HEAD, _BODY)
            with os.fdopen(fd, "rb", closefd=False) as file:
                parser.feed(file.read(_HEAD + _BODY))
        finally:
            os.close(fd)
        request = parser.next()
        if request is None:
            raise BadRequestError(400, "it is not complete")
        if request.headers.get("cni-command") != "DEL":
            raise BadRequestError(400, "it is not a DEL")
        return request
