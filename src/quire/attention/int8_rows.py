"""K and V as int8 with one float32 scale per token and kv head: the formula of int8 pages, in plain torch.

A head's D numbers are int8 * scale with scale = largest magnitude / 127, so each is off by at most half a scale. The
scale is NaN where one of the numbers is infinite or NaN: what was no number stays none.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_BYTES = 4


def to_int8_rows(x: Tensor) -> Tensor:
    """x [..., D] as [..., D + 4] bytes: the numbers, then their scale."""
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True)
    scale = torch.where(largest.isfinite(), largest / 127, torch.nan)
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    numbers = (x * inverse).nan_to_num(nan=127.0).round().clamp(-127, 127).to(torch.int8)
    return torch.cat((numbers, scale.contiguous().view(torch.int8)), dim=-1)


def from_int8_rows(rows: Tensor) -> Tensor:
    """The float32 numbers [..., D] of rows made by `to_int8_rows`."""
    size = rows.shape[-1] - SCALE_BYTES
    return rows[..., :size].float() * rows[..., size:].contiguous().view(torch.float32)
