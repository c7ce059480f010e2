"""The sampling ops in plain torch: the specification of faster ones. Formulas stand in `quire.ops.sampling`."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.sampling import LOGPROB_FLOOR, TokenLogprobTensors

WEIGHT_ONE = 2.0**52
"""Fixed-point one. The weights of a row sum to at most 2⁵² (1 + 2⁻²⁰), well inside int64 and exact in float64."""

NUM_CANDIDATES = 256
"""Largest logits tried first for top-p and top-k; enough for nearly every nucleus."""

_WORD = 0xFFFFFFFF
_PHILOX_ROUNDS = 10
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """See `quire.ops.sampling.greedy`."""
    values, ids = logits.max(dim=-1)
    return ids, values


def philox(counter: list[Tensor], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Philox4x32-10 on words held in int64: four counter words and two key words [R] → four words [R]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_PHILOX_ROUNDS):
        # int64 products wrap modulo 2⁶⁴, and shifting then masking reads the high word whatever the sign.
        first, second = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((second >> 32) & _WORD) ^ c1 ^ k0,
            second & _WORD,
            ((first >> 32) & _WORD) ^ c3 ^ k1,
            first & _WORD,
        )
        k0, k1 = (k0 + _PHILOX_WEYL[0]) & _WORD, (k1 + _PHILOX_WEYL[1]) & _WORD
    return [c0, c1, c2, c3]


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """See `quire.ops.sampling.uniform`."""
    zero = torch.zeros_like(positions)
    counter = [positions & _WORD, (positions >> 32) & _WORD, zero, zero]
    words = philox(counter, (seeds & _WORD, (seeds >> 32) & _WORD))
    return ((words[0] >> 5) * 2**26 + (words[1] >> 6)).double() * 2.0**-53


def draw(
    logits: Tensor, *, temperature: Tensor, min_p: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor
) -> Tensor:
    """See `quire.ops.sampling.draw`."""
    weights = fixed_point_weights(logits, temperature)  # [R, V] int64
    if bool((min_p > 0).any()):
        least = weights.amax(-1).double() * min_p.double()
        weights = weights.masked_fill(weights < least.unsqueeze(-1), 0)
    narrowed = ((top_k > 0) & (top_k < logits.shape[-1])) | (top_p < 1)
    rows = narrowed.nonzero().squeeze(-1)
    if rows.numel():
        narrow = keep_largest(weights[rows], order_keys(logits[rows]), top_k=top_k[rows], top_p=top_p[rows])
        weights = weights.index_copy(0, rows, narrow)
    running = weights.cumsum(-1)
    # floor(u · total) < total: u ≤ 1 - 2⁻⁵³, and the float64 product of that with an integer total rounds below it.
    target = (uniform * running[:, -1].double()).long()
    return torch.searchsorted(running, target.unsqueeze(-1), right=True).squeeze(-1)


def fixed_point_weights(logits: Tensor, temperature: Tensor) -> Tensor:
    """softmax((x - max x) / temperature) · 2⁵², rounded down: [R, V] → int64 [R, V]."""
    # Subtracting the maximum first keeps a small temperature from overflowing.
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature.unsqueeze(-1)
    return (scaled.softmax(-1).double() * WEIGHT_ONE).long()


def order_keys(values: Tensor) -> Tensor:
    """Distinct int64 keys that sort float32 [R, V] by value, the lower id first among equals in descending order."""
    bits = (values + 0.0).view(torch.int32).long()  # + 0.0: minus zero equals zero
    ordered = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # sign and magnitude to two's complement
    size = values.shape[-1]
    return ordered * size + torch.arange(size - 1, -1, -1, device=values.device)


def keep_largest(weights: Tensor, keys: Tensor, *, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Weights [R, V] with all but each row's top-k, then top-p tokens set to 0, in the order of descending keys.

    The largest few are looked at first; rows for which they do not settle the question are sorted whole.
    """
    size = weights.shape[-1]
    result = torch.zeros_like(weights)
    if size <= NUM_CANDIDATES:
        return _keep_among(weights, keys, size, top_k=top_k, top_p=top_p)
    is_limited = (top_k > 0) & (top_k <= NUM_CANDIDATES)
    order = keys.topk(NUM_CANDIDATES, dim=-1).indices
    reached = weights.gather(-1, order).sum(-1)
    is_covered = is_limited | (~(top_k > 0) & (reached.double() >= top_p.double() * weights.sum(-1).double()))
    for rows, count in ((is_covered.nonzero().squeeze(-1), NUM_CANDIDATES), ((~is_covered).nonzero().squeeze(-1), size)):
        if rows.numel():
            part = _keep_among(weights[rows], keys[rows], count, top_k=top_k[rows], top_p=top_p[rows])
            result.index_copy_(0, rows, part)
    return result


def _keep_among(weights: Tensor, keys: Tensor, count: int, *, top_k: Tensor, top_p: Tensor) -> Tensor:
    """`keep_largest` deciding among the `count` largest keys; right whenever no token beyond them stays."""
    order = keys.topk(count, dim=-1).indices  # [R, count], largest first
    ranked = weights.gather(-1, order)
    limit = torch.where(top_k > 0, top_k, weights.shape[-1]).unsqueeze(-1)
    within = torch.arange(count, device=weights.device) < limit
    total = torch.where(top_k > 0, (ranked * within).sum(-1), weights.sum(-1))
    ranked = ranked * within
    before = ranked.cumsum(-1) - ranked
    stays = before.double() < (top_p.double() * total.double()).unsqueeze(-1)
    return torch.zeros_like(weights).scatter_(-1, order, ranked * stays)


def penalize(logits: Tensor, *, tokens: Tensor, num_prompt: Tensor, num_tokens: Tensor, penalties: Tensor) -> Tensor:
    """See `quire.ops.sampling.penalize`."""
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    exists = columns < num_tokens.unsqueeze(-1)  # [R, L]
    ids = torch.where(exists, tokens, 0).long()
    in_output = exists & (columns >= num_prompt.unsqueeze(-1))
    seen = _count(ids, exists, logits.shape[-1])
    counts = _count(ids, in_output, logits.shape[-1])
    repetition, presence, frequency = penalties.unsqueeze(-1).unbind(1)  # [R, 1] each
    scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
    result = torch.where(seen > 0, scaled, logits)
    result = result - frequency * counts - presence * (counts > 0)
    # A tiny repetition penalty can push a positive logit to infinity; the largest float keeps its rank.
    return result.clamp_(max=torch.finfo(result.dtype).max)


def _count(ids: Tensor, mask: Tensor, size: int) -> Tensor:
    """How often each id below `size` occurs in each row where `mask` holds: [R, L] → int32 [R, size]."""
    counts = torch.zeros(ids.shape[0], size, dtype=torch.int32, device=ids.device)
    return counts.scatter_add_(1, ids, mask.int())


def log_probs(logits: Tensor) -> Tensor:
    """See `quire.ops.sampling.log_probs`."""
    return logits.float().log_softmax(-1).clamp_(min=LOGPROB_FLOOR)


def token_logprobs(logprobs: Tensor, token_ids: Tensor, num_top: int) -> TokenLogprobTensors:
    """See `quire.ops.sampling.token_logprobs`."""
    ids = token_ids.unsqueeze(-1)
    taken = logprobs.gather(-1, ids)
    columns = torch.arange(logprobs.shape[-1], device=logprobs.device)
    before = (logprobs > taken) | ((logprobs == taken) & (columns < ids))
    rank = 1 + before.sum(-1, keepdim=True)
    if num_top == 0:
        return TokenLogprobTensors(ids, taken, rank)
    top = order_keys(logprobs).topk(num_top, dim=-1).indices  # [R, k], most likely first
    ranks = torch.arange(1, num_top + 1, device=logprobs.device).expand_as(top)
    return TokenLogprobTensors(
        torch.cat((ids, top), -1), torch.cat((taken, logprobs.gather(-1, top)), -1), torch.cat((rank, ranks), -1)
    )
