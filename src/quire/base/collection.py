"""Keeps Python's garbage collector out of imports and out of what they leave behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect nothing while the block runs, and never look again at what it made; for processes of our own.

    Importing torch makes half a million objects that live as long as the process. Going through them over and over
    takes a fifth of the import, and later each full collection would be a pause of some 50 ms between two steps.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
