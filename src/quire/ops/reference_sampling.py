"""The sampling ops in plain torch: the specification of faster ones. Formulas stand in `quire.ops.sampling`."""

from __future__ import annotations

import torch
from torch import Tensor

from quire.ops.sampling import LOGPROB_FLOOR, TokenLogprobTensors

WEIGHT_ONE = 2.0**52
"""Fixed-point one. The weights of a row sum to at most 2⁵² (1 + 2⁻²⁰), well inside int64 and exact in float64."""

SHORTLISTS = (256, 4096)
"""How many of the largest logits top-k and top-p look at before they look at all; the first suits nearly every row."""

_WORD = 0xFFFFFFFF
_PHILOX_ROUNDS = 10
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """See `quire.ops.sampling.greedy`."""
    values, ids = logits.max(dim=-1)
    return ids, values


def read_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """See `quire.ops.sampling.read_tokens`."""
    return tokens.index_select(0, places).long()


def append_tokens(tokens: Tensor, places: Tensor, ids: Tensor) -> None:
    """See `quire.ops.sampling.append_tokens`."""
    tokens.index_copy_(0, places + 1, ids.int())


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
    found = torch.searchsorted(running, target.unsqueeze(-1), right=True).squeeze(-1)
    return found.clamp_(max=logits.shape[-1] - 1)  # past the end only where there was nothing to draw from


def fixed_point_weights(logits: Tensor, temperature: Tensor) -> Tensor:
    """softmax((x - max x) / temperature) · 2⁵², rounded down: [R, V] → int64 [R, V]."""
    # Subtracting the maximum first keeps a small temperature from overflowing.
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature.unsqueeze(-1)
    return (scaled.softmax(-1) * WEIGHT_ONE).long()  # exact: a power of two changes only the exponent


def order_keys(values: Tensor) -> Tensor:
    """Distinct int64 keys that sort float32 [R, V] by value, the lower id first among equals in descending order."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0: minus zero equals zero
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # sign and magnitude to two's complement
    size = values.shape[-1]
    return ordered.long().mul_(size).sub_(torch.arange(size, device=values.device))


def keep_largest(weights: Tensor, keys: Tensor, *, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Weights [R, V] with all but each row's top-k, then top-p tokens set to 0, in the order of descending keys.

    Looks at a few largest first; rows for which those do not settle the question are looked at again with more.
    """
    size = weights.shape[-1]
    result = torch.zeros_like(weights)
    limits = torch.where(top_k > 0, top_k.clamp(max=size), size)
    totals = weights.sum(-1)
    left = torch.arange(weights.shape[0], device=weights.device)
    for count in (*(count for count in SHORTLISTS if count < size), size):
        order = keys.topk(count, dim=-1).indices  # [left, count], largest first
        ranked = weights.gather(-1, order)
        is_reached = ranked.sum(-1).double() >= top_p * totals.double()
        is_settled = (limits <= count) | ((limits == size) & is_reached)
        kept = torch.zeros_like(weights).scatter_(-1, order, _nucleus(ranked, limits, top_p, totals))
        result.index_copy_(0, left[is_settled], kept[is_settled])
        rest = ~is_settled
        if not bool(rest.any()):
            break
        left, weights, keys = left[rest], weights[rest], keys[rest]
        limits, top_p, totals = limits[rest], top_p[rest], totals[rest]
    return result


def _nucleus(ranked: Tensor, limit: Tensor, share: Tensor, totals: Tensor) -> Tensor:
    """Weights [R, C] in descending order, those beyond top-k `limit` and top-p `share` set to 0.

    Right whenever the C largest hold every token that stays; `totals` are sums over the whole vocabulary.
    """
    count = ranked.shape[-1]
    ranked = ranked * (torch.arange(count, device=ranked.device) < limit.unsqueeze(-1))
    total = torch.where(limit <= count, ranked.sum(-1), totals)
    before = ranked.cumsum(-1) - ranked
    return ranked * (before.double() < (share * total.double()).unsqueeze(-1))


def mask_tokens(logits: Tensor, lines: Tensor, masks: Tensor, *, ids: Tensor, largest: Tensor) -> None:
    """See `quire.ops.sampling.mask_tokens`."""
    bits = torch.arange(32, device=masks.device, dtype=torch.int32)
    is_allowed = ((masks.unsqueeze(-1) >> bits) & 1).bool().flatten(1)[:, : logits.shape[-1]]  # [C, V]
    masked = logits.index_select(0, lines).masked_fill_(~is_allowed, float("-inf"))
    left_ids, left = greedy(masked)
    before, before_ids = largest[lines], ids[lines]
    is_sound = before.isfinite()
    largest.index_copy_(0, lines, torch.where(is_sound, left, before))
    ids.index_copy_(0, lines, torch.where(is_sound, left_ids, before_ids))
    logits.index_copy_(0, lines, masked)


def penalize(logits: Tensor, *, tokens: Tensor, num_prompt: Tensor, num_tokens: Tensor, penalties: Tensor) -> Tensor:
    """See `quire.ops.sampling.penalize`."""
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    exists = columns < num_tokens.unsqueeze(-1)  # [R, L]
    in_output = exists & (columns >= num_prompt.unsqueeze(-1))
    # Places past a row's tokens repeat its first token: equal ids get equal values, so repeated writes agree.
    ids = torch.where(exists, tokens, tokens[:, :1] * exists[:, :1]).long()
    counts = torch.zeros(logits.shape, dtype=torch.int32, device=logits.device)
    count = counts.scatter_add_(1, ids, in_output.int()).gather(1, ids)
    old = logits.gather(1, ids)  # [R, L]
    repetition, presence, frequency = penalties.unsqueeze(-1).unbind(1)  # [R, 1] each
    new = torch.where(old > 0, old / repetition, old * repetition) - frequency * count - presence * (count > 0)
    # A tiny repetition penalty can push a positive logit to infinity; the largest float keeps its rank.
    new = new.clamp(max=torch.finfo(new.dtype).max)
    return logits.scatter(1, ids, torch.where(exists[:, :1], new, old))


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
