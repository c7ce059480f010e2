"""Decides which values belong to training, to validation and to the final evaluation.

Knows: the split rule for every kind of value. Does not know: the tasks that use the values,
nor the corpus; `proof.py` shows on the real corpus that the rule was kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

Split = Literal["train", "valid", "test"]

# No multiples of ten: worked sums show those as operands ("20 + 40 = 60").
TEST_NUMBERS: tuple[int, ...] = (24, 27, 33, 38, 41, 46, 52, 58, 63, 67, 72, 79, 85, 91)
VALID_NUMBERS: tuple[int, ...] = (29, 35, 44, 56, 68, 76, 83, 97)

# Out of 100 hash buckets.
_TEST_BUCKETS = 12
_VALID_BUCKETS = 18
# Out of every 6 phrasings of a list, one is for the test and one for validation.
_PHRASING_PERIOD = 6


def split_of_number(value: int) -> Split:
    """Returns the split in which a number may be an operand."""
    if value in TEST_NUMBERS:
        return "test"
    return "valid" if value in VALID_NUMBERS else "train"


def split_of_text(text: str) -> Split:
    """Returns the split of a word, a name or any other text, whatever its letter case."""
    digest = hashlib.blake2b(text.lower().encode(), digest_size=4).digest()
    bucket = int.from_bytes(digest, "big") % 100
    if bucket < _TEST_BUCKETS:
        return "test"
    return "valid" if bucket < _VALID_BUCKETS else "train"


def normalised(text: str) -> str:
    """Returns the letters, digits and slots of a text: what is left of it without style."""
    return "".join(c for c in text.lower() if c.isalnum() or c in "{}")


def phrasings(texts: Sequence[str], split: Split) -> list[str]:
    """Returns those phrasings of a list that the split may use; style variants stay together."""
    order: dict[str, int] = {}
    for text in texts:
        order.setdefault(normalised(text), len(order))
    held: dict[int, Split] = {_PHRASING_PERIOD - 1: "test", _PHRASING_PERIOD - 2: "valid"}
    return [t for t in texts if held.get(order[normalised(t)] % _PHRASING_PERIOD, "train") == split]
