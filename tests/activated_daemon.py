"""A daemon that is handed its listening socket, as systemd hands it over: the socket outlives the daemon."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.daemon_process import POOLS, Daemon


class Activated(Daemon):
    """A daemon that is handed its listening socket as systemd does: as descriptor 3, told by LISTEN_FDS."""

    def __init__(
        self, directory: Path, listener: socket.socket, node: str = "node-a", flags: Sequence[str] = POOLS
    ) -> None:
        super().__init__(directory, node, *flags)
        self._listener = listener

    def start(self, *, ready: bool = True) -> None:
        """Start the process with the socket as its descriptor 3."""
        flags = ["--node", self.node, "--state-dir", str(self.directory / "state"), *self.flags]
        # The shell becomes the daemon, so that its process id is the one that LISTEN_PID names.
        script = 'fd=$1; shift; [ "$fd" = 3 ] || eval "exec 3<&$fd"; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
        command = [sys.executable, "-m", "ipamd", "run", "--socket", str(self.directory / "unused.sock"), *flags]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/bash", "-c", script, "activate", str(self._listener.fileno()), *command],
                pass_fds=(self._listener.fileno(),), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        if ready:
            self.wait_ready()
