"""The one piece of page arithmetic both towers need."""

from __future__ import annotations


def pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that hold `num_tokens` tokens of `page_size` each."""
    return -(-num_tokens // page_size)
