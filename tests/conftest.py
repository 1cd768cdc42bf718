"""For all tests: Hypothesis draws the same examples in every run of CI, so that a red build is about its change.

Tests run in several processes. As root each has a network of its own, as the pods of two tests may get one address.
"""

import ctypes
import os
import socket
from fcntl import ioctl
from struct import pack

from hypothesis import settings

CLONE_NEWNET = 0x40000000
"""``<linux/sched.h>``; ``os.unshare`` came with Python 3.12."""
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
"""``<linux/sockios.h>``, ``<linux/if.h>``."""

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_configure() -> None:
    """Leave the host's network, before anything is started."""
    if "PYTEST_XDIST_WORKER" in os.environ and os.geteuid() == 0 and not ctypes.CDLL(None).unshare(CLONE_NEWNET):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            ioctl(any_socket, SIOCSIFFLAGS, pack("16sH14x", b"lo", IFF_UP))
