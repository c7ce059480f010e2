"""Rotary position tables: cos and sin of every position the model serves, computed once in float32.

Each position's numbers are computed once, so a token is rotated by the same bits in whatever batch it is. Scalings
that depend on the running length in other engines (dynamic, longrope) are fixed from `max_model_len` here: chunks,
prefix hits and solo runs then agree. Formulas follow the papers named at each function; `transformers` is the arbiter
of details.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from quire import ops
from quire.layers.config import RopeConfig
from quire.layers.context import BuildContext


class RotaryTable(nn.Module):
    """cos and sin [max_model_len, rotary_dim / 2] in the model's dtype."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: RopeConfig, context: BuildContext) -> None:
        super().__init__()
        positions = torch.arange(context.max_model_len, dtype=torch.float32, device=context.device)
        angles = torch.outer(positions, inverse_frequencies(config, context.max_model_len).to(context.device))
        for name, values in (("cos", angles.cos()), ("sin", angles.sin())):
            self.register_buffer(name, (values * config.attention_factor).to(context.dtype), persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [T, rotary_dim / 2] of positions [T]."""
        return ops.embedding(positions, self.cos), ops.embedding(positions, self.sin)


def inverse_frequencies(config: RopeConfig, max_model_len: int) -> Tensor:
    """Radians per position for each pair of a head, float32 [rotary_dim / 2]."""
    match config.rope_type:
        case "default":
            return _plain(config.theta, config)
        case "linear":
            return _plain(config.theta, config) / config.factor
        case "dynamic":
            return _dynamic(config, max_model_len)
        case "llama3":
            return _llama3(config)
        case "yarn":
            return _yarn(config)
        case "longrope":
            return _longrope(config, max_model_len)
    raise ValueError(f"unknown rope type {config.rope_type!r}")


def _exponents(config: RopeConfig) -> Tensor:
    return torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim


def _plain(theta: float, config: RopeConfig) -> Tensor:
    """theta^(-2i / rotary_dim) (Su et al., RoFormer, 2021)."""
    return 1.0 / theta ** _exponents(config)


def _dynamic(config: RopeConfig, max_model_len: int) -> Tensor:
    """The base grows with the length served beyond max_position (NTK-aware scaling; Peng et al., 2023, section 3)."""
    length = max(max_model_len, config.max_position)
    stretch = config.factor * length / config.max_position - (config.factor - 1.0)
    return _plain(config.theta * stretch ** (config.rotary_dim / (config.rotary_dim - 2)), config)


def _llama3(config: RopeConfig) -> Tensor:
    """Long waves are stretched by the factor, short ones kept, those between blended (Grattafiori et al., 2024)."""
    frequencies = _plain(config.theta, config)
    turns = config.original_max_position / (2 * math.pi / frequencies)
    blend = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    blended = (1 - blend) * frequencies / config.factor + blend * frequencies
    stretched = torch.where(turns < config.low_freq_factor, frequencies / config.factor, frequencies)
    between = (turns >= config.low_freq_factor) & (turns <= config.high_freq_factor)
    return torch.where(between, blended, stretched)


def _yarn(config: RopeConfig) -> Tensor:
    """Interpolate slow pairs, keep fast ones, ramp between (Peng et al., YaRN, 2023, section 3.2)."""
    low, high = (_pair_of(turns, config) for turns in (config.beta_fast, config.beta_slow))
    if config.truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, config.rotary_dim - 1.0)
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(config.rotary_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    frequencies = _plain(config.theta, config)
    return frequencies / config.factor * ramp + frequencies * (1 - ramp)


def _pair_of(turns: float, config: RopeConfig) -> float:
    """Index of the pair that makes `turns` full turns over the original length."""
    ratio = config.original_max_position / (turns * 2 * math.pi)
    return config.rotary_dim * math.log(ratio) / (2 * math.log(config.theta))


def _longrope(config: RopeConfig, max_model_len: int) -> Tensor:
    """A factor per pair, of the long set when more than the original length is served (Ding et al., LongRoPE, 2024)."""
    long = max_model_len > config.original_max_position
    factors = torch.tensor(config.long_factor if long else config.short_factor, dtype=torch.float32)
    return 1.0 / (factors * config.theta ** _exponents(config))
