"""Initial weights from which copying is learned at once.

Knows: how two layers find what followed the last occurrence of the present token (an "induction" circuit).
Does not know: training, which is free to change all of it.

Most tasks copy names, words and numbers out of the conversation. From random weights it takes a small network
thousands of steps to find the two attention layers that do so; writing them into the initial weights saves those
steps. The first layer brings every position what the token before it was; the second looks for positions whose token
before is the present one, and brings the token found there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMBEDDING_STD = 0.15
# The first coordinate of all embeddings: a constant that heads without biases can be steered by.
_CONSTANT = 1.2
_STEER = 0.85
_BRING = 0.4
_MATCH = 8.0
_COPY = 2.0


def _frequencies(head_dim: int, theta: float) -> Tensor:
    return theta ** -(torch.arange(0, head_dim, 2) / head_dim)


def _directions(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Returns orthonormal rows that leave out the constant coordinate."""
    square = torch.linalg.qr(torch.randn(size - 1, size - 1, generator=generator))[0]
    return torch.cat((torch.zeros(count, 1), square[:count]), dim=1)


@torch.no_grad()
def write_copying(
    embedding: nn.Parameter, layers: list[dict[str, nn.Parameter]], head_dim: int, theta: float, generator: torch.Generator
) -> None:
    """Overwrites the embeddings and the attention of the first two layers.

    Args:
        embedding: the token embeddings.
        layers: of each of the two layers the projections "q", "k", "v" and "o".
        head_dim: size of one head.
        theta: base of the rotary positions.
        generator: where random directions come from.
    """
    embedding.normal_(std=EMBEDDING_STD, generator=generator)
    embedding[:, 0] = _CONSTANT
    hidden = embedding.shape[1]
    half = head_dim // 2
    group = layers[0]["q"].shape[0] // layers[0]["k"].shape[0]
    frequencies = _frequencies(head_dim, theta)
    # Slow dimensions hardly turn over a sentence, so contents can be compared in them.
    slow = [i for start in (0, half) for i in range(start + half // 2, start + half)]
    for kv in range(layers[0]["k"].shape[0] // head_dim):
        keys = slice(kv * head_dim, (kv + 1) * head_dim)
        queries = slice(kv * group * head_dim, kv * group * head_dim + head_dim)
        fast = (torch.arange(half) < max(1, 3 * half // 8)).float()
        first, second = layers[0], layers[1]
        seen, written, copied = (_directions(head_dim, hidden, generator) for _ in range(3))
        first["k"][keys] *= 0.1
        first["q"][queries] *= 0.1
        first["k"][keys, 0] = torch.cat((fast * _STEER, torch.zeros(half)))
        first["q"][queries, 0] = torch.cat((fast * _STEER * frequencies.cos(), -fast * _STEER * frequencies.sin()))
        first["v"][keys] = seen
        first["o"][:, queries] = _BRING * written.T
        second["k"][keys] *= 0.1
        second["q"][queries] *= 0.1
        second["k"].data[keys] = second["k"][keys].index_copy(0, torch.tensor(slow), written[slow])
        second["q"].data[queries] = second["q"][queries].index_copy(0, torch.tensor(slow), _MATCH * seen[slow])
        second["v"][keys] = copied
        second["o"][:, queries] = _COPY * copied.T
