"""From raw numbers to what users compare: probabilities of labels, and how well two vectors agree. Plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

ACTIVATIONS = ("softmax", "sigmoid", "identity")


def activated(logits: Sequence[float], activation: str) -> list[float]:
    """Logits as shown: softmax over all of them, sigmoid of each, or as they are.

    Raises:
        ValueError: for another name.
    """
    match activation:
        case "softmax":
            top = max(logits)
            weights = [math.exp(logit - top) for logit in logits]
            total = math.fsum(weights)
            return [weight / total for weight in weights]
        case "sigmoid":
            return [_sigmoid(logit) for logit in logits]
        case "identity":
            return list(logits)
    raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Cosine of the angle between two vectors of one size; 0 where either has no direction."""
    product = math.fsum(a * b for a, b in zip(one, other, strict=True))
    lengths = math.sqrt(math.fsum(a * a for a in one)) * math.sqrt(math.fsum(b * b for b in other))
    return product / lengths if lengths else 0.0


def _sigmoid(x: float) -> float:
    """1 / (1 + e^-x) without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))
