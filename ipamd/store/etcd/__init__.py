"""The etcd store: Calico's records in an etcd cluster, through the stubs of the ``etcd3`` package.

Rooms, in the order in which a call passes them: ``store`` (the protocol's verbs), ``transaction`` (pure: change sets
to nested etcd transactions and back), ``session`` (deadline, authentication, failover), ``call`` (one RPC awaited,
errors in words), ``channel`` (one gRPC channel to one endpoint, TLS files), ``messages`` and ``rpc`` (the generated
code, typed); ``watch`` drives the one stream of a watch beside them.

Importing this package imports neither grpc nor protobuf: the first call does, in a worker thread, so that a daemon
whose local state is enough to serve listens before they are loaded.
"""

from ipamd.store.etcd.settings import EtcdSettings
from ipamd.store.etcd.store import EtcdStore

__all__ = ["EtcdSettings", "EtcdStore"]
