"""What the Kubernetes API tells a node: its pods' annotations, all namespaces' labels and annotations, its pod CIDRs.

``access`` finds the API server and the credentials, ``client`` asks it, ``objects`` reads what it answers,
``reflector`` keeps one kind of object up to date by list and watch, ``cluster`` is what the daemon asks.

Imported only where ``kubernetes.config`` is set. May import nothing of ipamd but ``core``.
"""
