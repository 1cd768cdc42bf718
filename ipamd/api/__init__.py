"""How a request arrives and a reply leaves: HTTP (pure), the CNI contract (pure), handlers, routes, server."""
