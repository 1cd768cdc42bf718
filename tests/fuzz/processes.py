"""Processes that each do a share of a campaign, while somebody watches."""

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

GLANCE = 0.2
"""Seconds between two looks of the watcher."""


def share_out(work: Callable[..., None], shares: Sequence[tuple[object, ...]], watch: Callable[[], bool]) -> list[Any]:
    """What each process sent over the connection that is the last argument of its work; None if it failed.

    ``watch`` is asked now and then whether all is well; if not, the processes end and nothing is returned.
    """
    workers: list[tuple[multiprocessing.Process, Connection]] = []
    for share in shares:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        worker = multiprocessing.Process(target=work, args=(*share, theirs))
        worker.start()
        theirs.close()
        workers.append((worker, ours))
    try:
        while any(not ours.poll() for _worker, ours in workers):
            if not watch():
                return []
            workers[0][0].join(GLANCE)
        return [_received(ours) for _worker, ours in workers]
    finally:
        for worker, ours in workers:
            worker.kill()
            worker.join()
            ours.close()


def _received(ours: Connection) -> object:
    try:
        return ours.recv()
    except EOFError:  # its traceback is on standard error
        return None
