"""Measurements: offline throughput, a running server under load, paging against contiguous memory, and their tables."""
