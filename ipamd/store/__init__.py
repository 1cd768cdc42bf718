"""What the rest of the cluster sees: the store protocol, its implementations, and what writes to and reads from it."""
