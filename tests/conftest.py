"""For all tests: Hypothesis draws the same examples in every run of CI, so that a red build is about its change.

Tests run in several processes. As root each has a network of its own, as the pods of two tests may get one address.
"""

import os

from hypothesis import settings

from tests.machine import leave_network

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_configure() -> None:
    """Leave the host's network, before anything is started."""
    if "PYTEST_XDIST_WORKER" in os.environ and os.geteuid() == 0:
        leave_network()
