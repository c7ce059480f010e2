"""Rotary tables: each scaling against its formula, and what fixes those that depend on the length."""

from __future__ import annotations

import math

import pytest
import torch

from quire.layers.config import RopeConfig
from quire.layers.rope import RotaryTable, inverse_frequencies

PLAIN = {"theta": 10000.0, "rotary_dim": 16, "max_position": 128}


def rope(kind, **changes):
    return RopeConfig(rope_type=kind, **{**PLAIN, **changes})


def plain(theta=10000.0, dim=16):
    return torch.tensor([theta ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.double)


def assert_close(actual, expected):
    assert actual.dtype == torch.float32
    assert torch.allclose(actual.double(), expected, rtol=1e-5, atol=0)


def test_default_and_linear_are_powers_of_theta():
    assert_close(inverse_frequencies(rope("default", theta=500.0), 64), plain(500.0))
    assert_close(inverse_frequencies(rope("linear", factor=4.0), 64), plain() / 4)


def test_dynamic_keeps_its_base_up_to_the_trained_length_and_stretches_it_beyond():
    config = rope("dynamic", factor=2.0)
    assert_close(inverse_frequencies(config, 128), plain())
    stretched = 10000.0 * (2.0 * 512 / 128 - 1.0) ** (16 / 14)
    assert_close(inverse_frequencies(config, 512), plain(stretched))


def test_llama3_keeps_short_waves_stretches_long_ones_and_blends_between():
    config = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=64)
    frequencies = inverse_frequencies(config, 128).double()
    for actual, base in zip(frequencies, plain(), strict=True):
        turns = 64 * float(base) / (2 * math.pi)
        blend = min(1.0, max(0.0, (turns - 1.0) / 3.0))
        assert actual.item() == pytest.approx(float(base) * (blend + (1 - blend) / 8), rel=1e-5)


def test_yarn_ramps_from_kept_to_interpolated_pairs():
    config = rope("yarn", factor=4.0, original_max_position=64, beta_fast=4.0, beta_slow=1.0, truncate=False)
    low, high = (16 * math.log(64 / (b * 2 * math.pi)) / (2 * math.log(10000.0)) for b in (4.0, 1.0))
    expected = []
    for pair, base in enumerate(plain().tolist()):
        ramp = min(1.0, max(0.0, (pair - max(low, 0)) / (high - max(low, 0))))
        expected.append(base / 4 * ramp + base * (1 - ramp))
    assert_close(inverse_frequencies(config, 128), torch.tensor(expected, dtype=torch.double))


@pytest.mark.parametrize(("length", "factor"), [(64, 1.5), (65, 3.0)])
def test_longrope_takes_the_long_set_when_more_than_the_trained_length_is_served(length, factor):
    config = rope("longrope", original_max_position=64, short_factor=(1.5,) * 8, long_factor=(3.0,) * 8)
    assert_close(inverse_frequencies(config, length), plain() / factor)


def test_the_table_holds_cos_and_sin_of_every_position_times_the_attention_factor(context):
    table = RotaryTable(rope("default", attention_factor=1.25), context)
    positions = torch.tensor([0, 5, 63])
    cos, sin = table(positions)
    angles = positions.double().unsqueeze(1) * plain()
    assert torch.allclose(cos.double(), 1.25 * angles.cos(), atol=1e-5)
    assert torch.allclose(sin.double(), 1.25 * angles.sin(), atol=1e-5)


def test_the_table_is_rounded_once_to_the_model_dtype(make_context):
    exact, rounded = (
        RotaryTable(rope("default"), make_context(dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(exact.cos.bfloat16(), rounded.cos)


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="unknown rope type 'spiral'"):
        inverse_frequencies(rope("spiral"), 64)
