"""Tells the service manager how the daemon is: the protocol of sd_notify(3) and sd_watchdog_enabled(3).

A datagram with lines ``NAME=value`` goes to the socket that the environment names. Without one nothing is sent. What
cannot be sent is left: a service manager that does not listen is no reason to serve nobody. Imports nothing of ipamd.
"""

import socket
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Final

import trio

STATUS_PERIOD: Final = 5.0
"""Seconds after which a status that has changed is sent."""


class Supervisor:
    """The service manager of the process ``pid``, as its environment tells; the variables are removed from it.

    ``told`` is whether there is one. ``watchdog`` is after how many seconds of silence it takes the daemon for hung,
    0 if it does not. A watchdog for another process is not ours to feed.
    """

    def __init__(self, environ: MutableMapping[str, str], pid: int) -> None:
        path = environ.pop("NOTIFY_SOCKET", "")
        usec, meant_for = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        # "@" stands for the zero byte of an abstract socket; other address families are not spoken.
        self._address = f"\0{path[1:]}" if path.startswith("@") else path if path.startswith("/") else ""
        ours = usec.isascii() and usec.isdigit() and meant_for in ("", str(pid))
        self.watchdog = int(usec) / 1e6 if ours and self._address else 0.0
        self.told = bool(self._address)
        self._status = ""

    def tell(self, *lines: str) -> None:
        """Send lines as one datagram; never waits."""
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            sender.sendto("\n".join(lines).encode(), self._address)

    def status(self, text: str, *lines: str) -> None:
        """Send lines with the one that ``systemctl status`` shows, if it is another than before."""
        line = "STATUS=" + text.replace("\n", " ")
        changed = (line,) if text != self._status else ()
        self._status = text
        if changed or lines:
            self.tell(*lines, *changed)

    async def attend(self, sentence: Callable[[], str]) -> None:
        """Feed the watchdog for as long as the event loop turns, and keep the status true."""
        feed = ("WATCHDOG=1",) if self.watchdog else ()
        period = min(STATUS_PERIOD, self.watchdog / 3) if self.watchdog else STATUS_PERIOD
        while self.told:
            self.status(sentence(), *feed)
            await trio.sleep(period)
