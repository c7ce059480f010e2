"""One file per group of endpoints; each has `add_routes(app)` and knows nothing of the others."""
