"""Synthetic work for benchmarks: texts and token prompts of given lengths, the same for the same seed."""

from __future__ import annotations

import random

_WORDS = (
    *("river", "stone", "paper", "letter", "garden", "window", "morning", "winter", "summer", "story", "bridge"),
    *("village", "market", "teacher", "harbour", "lantern", "forest", "copper", "silver", "mountain", "island"),
    *("captain", "basket", "kitchen", "orchard", "weather", "railway", "station", "library", "music", "painter"),
    *("doctor", "farmer", "sailor", "baker", "potter", "weaver", "builder", "number", "question", "answer"),
)


def random_text(num_words: int, *, seed: int) -> str:
    """`num_words` common words in random order."""
    draw = random.Random(seed)
    return " ".join(draw.choice(_WORDS) for _ in range(num_words))


def random_prompts(num_prompts: int, *, low: int, high: int, vocab_rows: int, seed: int) -> list[list[int]]:
    """Prompts of `low` to `high` random token ids below `vocab_rows`.

    Ids are uniform, so no two prompts share a prefix worth caching and a prefix cache cannot flatter the numbers.
    """
    draw = random.Random(seed)
    return [[draw.randrange(vocab_rows) for _ in range(draw.randint(low, high))] for _ in range(num_prompts)]
