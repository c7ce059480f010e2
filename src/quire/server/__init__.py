"""The HTTP server in front of one engine: routes, errors, keys, limits, metrics, the request log. Torch-free."""
