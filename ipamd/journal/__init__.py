"""What survives a crash of the daemon: the local, append-only file of the facts its ledger consists of.

``format`` and ``recovery`` are pure: bytes to facts, and what a found file may be used for. ``statefile`` is one open
file; ``journal`` is the stage the daemon uses: lock, append, group commit, checkpoint. Imports of ipamd only ``core``.
"""
