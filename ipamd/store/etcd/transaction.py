"""Change sets as etcd transactions, and their replies as outcomes. Pure.

Alternatives nest: the failure branch of one holds the next as its only operation; the last one's failure branch
reads what the caller needs to decide again: every key that any of the sets names, and the window of keys.

etcd's limit on operations (128) counts, for each level, the largest of comparisons, success and failure
operations, and adds the levels up; it is left to etcd to enforce, since its limit can be configured.
"""

from collections.abc import Sequence

from ipamd.store.base import ChangeSet, KeyRange, Outcome, Record
from ipamd.store.etcd import messages, rpc


def build(alternatives: Sequence[ChangeSet], window: KeyRange | None) -> rpc.Request:
    """The transaction that commits the first of ``alternatives`` (at least one) that can be."""
    outermost = txn = messages.Txn()
    _fill(txn, alternatives[0])
    for changes in alternatives[1:]:
        txn = txn.instead()
        _fill(txn, changes)
    for key in named_keys(alternatives):
        txn.get_key_instead(key.encode())
    if window is not None:
        txn.get_instead(window_request(window))
    return outermost.request


def _fill(txn: messages.Txn, changes: ChangeSet) -> None:
    for change in changes:
        key = change.key.encode()
        txn.expect(key, change.expected)
        if change.value is not None:
            txn.put(key, change.value, change.lease)
        elif change.expected:
            txn.delete(key)


def named_keys(alternatives: Sequence[ChangeSet]) -> tuple[str, ...]:
    """Every key once, in the order of its first mention."""
    return tuple(dict.fromkeys(change.key for changes in alternatives for change in changes))


def window_request(window: KeyRange) -> rpc.Request:
    """The keys of ``window``, in byte order."""
    return messages.get(window.start.encode(), window.end.encode(), limit=window.limit, keys_only=True)


def outcome(reply: rpc.TxnReply, alternatives: Sequence[ChangeSet], window: KeyRange | None) -> Outcome:
    """What the transaction of ``build`` did."""
    revision = reply.header.revision
    branch = reply
    for index in range(len(alternatives)):
        if index:
            branch = branch.responses[0].response_txn
        if branch.succeeded:
            return Outcome(chosen=index, revision=revision, records={})
    ranges = [response.response_range for response in branch.responses]
    found = ranges.pop() if window is not None else None
    current = [record(kv) for answer in ranges for kv in answer.kvs]
    return Outcome(
        chosen=None,
        revision=revision,
        records={entry.key: entry for entry in current},
        window=keys(found) if found is not None else (),
    )


def record(kv: rpc.KeyValue) -> Record:
    """The record that a message holds."""
    return Record(key=kv.key.decode(), value=kv.value, revision=kv.mod_revision)


def keys(reply: rpc.RangeReply) -> tuple[str, ...]:
    """The keys of a range, in its order."""
    return tuple(kv.key.decode() for kv in reply.kvs)
