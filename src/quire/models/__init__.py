"""Model families, the readers of their configuration, the registry and the one weight loader."""
