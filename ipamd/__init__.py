"""ipamd: IP address management for a Kubernetes node, answered from memory."""

__version__ = "0.1.0"
