"""The `quire` command: one file per subcommand; flags and their help come from the fields of `base/config.py`."""
