"""What the container runtime says lives on this node, read from libcni's cache of results, off the way of any request.

A room of its own beside api, store and kubernetes: one more source of truth, read-only, that may be absent. May import
of ipamd only ``core``.
"""
