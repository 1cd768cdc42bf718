"""The CNI plugin: a static C program that carries a call to the daemon, its build, and its installation.

Nothing of the daemon is imported here and nothing here is imported by the daemon: they meet at the socket.
"""
