"""The op table's part for tokens and their choice: signatures, shapes, formulas; ops run where their first tensor is.

V is the vocabulary, R rows, L columns of a token table. Every op treats each row alone, so a row's result has the same
bits alone and in any batch. `ops/reference_sampling.py` holds the bodies in plain torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, cast

from torch import Tensor

from quire.ops.dispatch import FAST_MODULES, choose

LOGPROB_FLOOR = -9999.0
"""What a log-probability of minus infinity is reported as, because JSON has no infinity."""

REFERENCE = "quire.ops.reference_sampling"


class TokenLogprobTensors(NamedTuple):
    """Log-probabilities of chosen tokens and of the most likely ones; entry 0 of a row is the chosen token."""

    token_ids: Tensor
    """[R, 1 + k] int64."""
    logprobs: Tensor
    """[R, 1 + k] float32."""
    ranks: Tensor
    """[R, 1 + k] int64: 1 + the number of tokens that come before it; equal log-probabilities order by id."""


@cache
def _body(device_type: str, op: str) -> Callable[..., Any]:
    names = (*FAST_MODULES.get(device_type, ()), REFERENCE)
    return choose(op, [importlib.import_module(name) for name in names])


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row and its id, the lowest id of equals: [R, V] → ids [R] int64, values [R].

    The value tells rows that cannot be drawn from: NaN where any logit is NaN, ±inf where the maximum is infinite.
    """
    return cast(tuple[Tensor, Tensor], _body(logits.device.type, "greedy")(logits))


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """One random number per row from (seed, position) alone: seeds, positions [R] int64 → [R] float64 in [0, 1).

    Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with the seed's 64 bits as key
    and (position low, position high, 0, 0) as counter, low words first. Of its four words w0..w3 the number is
    (⌊w0 / 2⁵⌋ · 2²⁶ + ⌊w1 / 2⁶⌋) · 2⁻⁵³.
    """
    return cast(Tensor, _body(seeds.device.type, "uniform")(seeds, positions))


def draw(
    logits: Tensor, *, temperature: Tensor, min_p: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor
) -> Tensor:
    """Draw one token per row: logits [R, V] float32, parameters [R] → ids [R] int64.

    A row whose maximum is not finite gets some id of the vocabulary; `greedy` tells which rows those are.

    1. p = softmax((x - max x) / temperature), as fixed-point weights w = ⌊p · 2⁵²⌋, whose sums are exact in any order;
    2. min_p: tokens with w < min_p · max w are out;
    3. top_k: of those left, the k largest logits stay, the lower id of equals (k ≤ 0: all);
    4. top_p: of those left, largest first, a token stays while the sum of w before it is < top_p · total;
    5. the token is the first id whose running sum of w, over ids in order, exceeds ⌊uniform · total⌋.
    """
    run = _body(logits.device.type, "draw")
    return cast(Tensor, run(logits, temperature=temperature, min_p=min_p, top_k=top_k, top_p=top_p, uniform=uniform))


def read_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """The tokens at some places: tokens [N] int32, places [T] int64 → [T] int64."""
    return cast(Tensor, _body(tokens.device.type, "read_tokens")(tokens, places))


def append_tokens(tokens: Tensor, places: Tensor, ids: Tensor) -> None:
    """Put ids [R] int64 right behind places [R] int64 of tokens [N] int32."""
    _body(tokens.device.type, "append_tokens")(tokens, places, ids)


def mask_tokens(logits: Tensor, lines: Tensor, masks: Tensor, *, ids: Tensor, largest: Tensor) -> None:
    """Allow some tokens only: logits [R, V] float32, in place; lines [C] int64, masks [C, ⌈V / 32⌉] int32.

    Line lines[c] keeps token v where bit v mod 32 of word ⌊v / 32⌋ of masks[c] is set; its other logits become -∞.
    `ids` [R] int64 and `largest` [R] are what `greedy` found in the logits, and then what it finds in those that are
    left; but a line whose largest logit was not finite stays as it was found, whatever the mask hides.
    """
    _body(logits.device.type, "mask_tokens")(logits, lines, masks, ids=ids, largest=largest)


def penalize(logits: Tensor, *, tokens: Tensor, num_prompt: Tensor, num_tokens: Tensor, penalties: Tensor) -> Tensor:
    """Make tokens that occurred less likely: logits [R, V] float32 → [R, V], the input is not changed.

    tokens [R, L] holds each row's `num_prompt` [R] prompt tokens and then its output, `num_tokens` [R] in all; entries
    past them are not read. penalties [R, 3] = repetition r, presence a, frequency b. With c the occurrences in the
    output: x ← x / r if x > 0 else x · r, for tokens of prompt or output (Keskar et al., CTRL, 2019);
    then x ← x - b·c - a·[c > 0].
    """
    run = _body(logits.device.type, "penalize")
    return cast(Tensor, run(logits, tokens=tokens, num_prompt=num_prompt, num_tokens=num_tokens, penalties=penalties))


def log_probs(logits: Tensor) -> Tensor:
    """log softmax over the vocabulary in float32, not below `LOGPROB_FLOOR`: [R, V] → [R, V]; NaN stays NaN."""
    return cast(Tensor, _body(logits.device.type, "log_probs")(logits))


def token_logprobs(logprobs: Tensor, token_ids: Tensor, num_top: int) -> TokenLogprobTensors:
    """The entries of the tokens that were taken and of the `num_top` most likely: logprobs [R, V], token_ids [R]."""
    run = _body(logprobs.device.type, "token_logprobs")
    return cast(TokenLogprobTensors, run(logprobs, token_ids, num_top))
