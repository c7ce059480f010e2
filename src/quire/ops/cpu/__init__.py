"""Ops in C++ for CPUs: `library` loads them, `program` runs or records them, `table` has the op table's functions."""
