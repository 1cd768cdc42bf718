"""A real etcd and real daemons, as the tests of real parts have them."""

from tests.real.conftest import etcd, start

__all__ = ["etcd", "start"]
