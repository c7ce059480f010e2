"""Drawing on the kernels: the tokens of the reference, whatever the parameters, the pool and the company."""

from __future__ import annotations

import math

import pytest
import torch

from quire.ops import reference_sampling
from quire.ops.cpu import table

SIZES = [1, 2, 15, 16, 17, 511, 512, 513, 1000, 5003]


def columns(rows, *, temperature=1.0, min_p=0.0, top_k=0, top_p=1.0, seed=0):
    """Parameters of so many rows, with a random number for each."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "temperature": torch.full((rows,), temperature),
        "min_p": torch.full((rows,), min_p, dtype=torch.float64),
        "top_k": torch.full((rows,), top_k),
        "top_p": torch.full((rows,), top_p, dtype=torch.float64),
        "uniform": torch.rand(rows, generator=generator, dtype=torch.float64),
    }


PARAMETERS = [
    {},
    {"temperature": 0.3},
    {"temperature": 40.0},
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"top_p": 0.999, "temperature": 3.0},
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": 100_000, "top_p": 0.5},
    {"top_k": 7, "top_p": 0.7},
    {"top_k": 300, "top_p": 0.2, "min_p": 0.01},
    {"min_p": 0.2},
    {"min_p": 1.0},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_draws_are_those_of_the_reference(pool, memory, random, parameters):
    given = columns(9, **parameters)
    guarded = {name: memory.filled(column) for name, column in given.items()}
    for size in SIZES:
        logits = random(9, size, scale=3.0)
        found = table.draw(memory.filled(logits), **guarded).tolist()
        assert found == reference_sampling.draw(logits, **given).tolist(), size


@pytest.mark.parametrize("parameters", [{"top_k": 5}, {"top_p": 0.4}, {"top_k": 40, "top_p": 0.6}], ids=str)
def test_of_equal_logits_the_lower_ids_stay(pool, random, parameters):
    """Values are few, so that every border falls among equal ones; an all-equal row is one bin."""
    logits = random(40, 700).round()
    logits[0] = 0.0
    given = columns(40, **parameters)
    assert table.draw(logits, **given).tolist() == reference_sampling.draw(logits, **given).tolist()


@pytest.mark.parametrize("temperature", [1e-5, 1e-3])
def test_tokens_far_below_the_largest_share_one_bin_and_keep_their_order(pool, random, temperature):
    logits = random(6, 300)
    given = columns(6, temperature=temperature, top_k=30, top_p=0.99)
    assert table.draw(logits, **given).tolist() == logits.argmax(-1).tolist()


def test_the_ends_of_the_random_numbers_stay_within_what_is_kept(pool):
    logits = torch.tensor([[-math.inf, 1.0, 1.0, -math.inf, 1.0, -math.inf]]).repeat(2, 1)
    given = columns(2) | {"uniform": torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)}
    assert table.draw(logits, **given).tolist() == [1, 4]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("parameters", [{}, {"top_p": 0.9}], ids=str)
def test_a_row_that_cannot_be_drawn_from_gets_an_id_and_disturbs_no_other(pool, memory, random, bad, parameters):
    logits = random(3, 700)
    given = columns(3, **parameters)
    expected = table.draw(logits, **given).tolist()
    for place in (0, 600, 699):  # the last one is past the whole vectors
        spoilt = logits.clone()
        spoilt[1, place] = bad
        assert table.draw(memory.filled(spoilt), **given).tolist() == [expected[0], 0, expected[2]]
    assert table.draw(torch.full((1, 40), -math.inf), **columns(1, **parameters)).tolist() == [0]


def test_a_row_draws_alone_what_it_draws_in_a_batch(pool, random):
    """REL-15: also where the neighbours ask for other work."""
    logits = random(12, 3000, scale=2.0)
    given = columns(12) | {
        "top_k": torch.tensor([0, 1, 50] * 4),
        "top_p": torch.tensor([1.0, 0.9, 0.3, 0.99] * 3, dtype=torch.float64),
    }
    together = table.draw(logits, **given).tolist()
    alone = [
        table.draw(logits[i : i + 1], **{name: column[i : i + 1] for name, column in given.items()}).item()
        for i in range(12)
    ]
    assert together == alone


def test_rows_may_lie_apart_and_columns_be_turned(pool, memory, random):
    wide = random(4, 200)
    given = columns(4, top_p=0.8)
    expected = reference_sampling.draw(wide[:, :150], **given).tolist()
    assert table.draw(memory.filled(wide)[:, :150], **given).tolist() == expected
    assert table.draw(wide[:, :150].t().contiguous().t(), **given).tolist() == expected


def test_random_numbers_are_those_of_the_reference_to_the_bit(pool, memory):
    seeds = torch.tensor([0, 1, -1, 2**62 + 5, -(2**63)]).repeat(3)
    positions = torch.tensor([0, 7, 2**40]).repeat_interleave(5)
    found = table.uniform(memory.filled(seeds), memory.filled(positions))
    assert torch.equal(found, reference_sampling.uniform(seeds, positions))


def test_tokens_are_read_and_appended_at_any_places_of_a_table(pool, memory):
    tokens = torch.randint(0, 1 << 30, (500,), dtype=torch.int32)
    places = torch.randperm(499)[:70]
    ids = torch.randint(0, 1 << 30, (140,))[::2]  # they may lie apart
    expected = tokens.clone()
    assert torch.equal(table.read_tokens(tokens, memory.filled(places)), tokens[places].long())
    reference_sampling.append_tokens(expected, places, ids)
    table.append_tokens(tokens, memory.filled(places), ids)
    assert torch.equal(tokens, expected)


def test_masks_leave_some_lines_their_allowed_tokens_and_the_others_alone(pool, memory):
    for num_rows, size, num_masked in [(1, 1, 1), (3, 31, 2), (5, 32, 5), (8, 33, 3), (70, 1000, 40), (2, 64, 0)]:
        logits = torch.randn(num_rows, size)
        lines = torch.randperm(num_rows)[:num_masked]
        masks = torch.randint(-(2**31), 2**31, (num_masked, (size + 31) // 32), dtype=torch.int32)
        masks[:1, :1] = -1  # a word that allows all
        masks[:, 1:9] = 0
        ours = _masked_like_the_reference(logits, memory.filled(logits), memory.filled(lines), masks)
        bits = masks[:1].repeat_interleave(32, 1)[:, :size] >> torch.arange(size) % 32 & 1
        assert torch.equal(ours[lines[:1]] == -math.inf, bits == 0)


def test_masks_reach_rows_that_lie_apart(pool, memory):
    wide = torch.randn(4, 200)
    lines, masks = torch.tensor([3, 1]), torch.randint(-99, 99, (2, 5), dtype=torch.int32)
    ours = memory.filled(wide)
    _masked_like_the_reference(wide[:, 20:170].clone(), ours[:, 20:170], lines, masks)
    assert torch.equal(ours[:, :20], wide[:, :20])
    assert torch.equal(ours[:, 170:], wide[:, 170:])


def test_the_lowest_of_equal_allowed_tokens_is_the_largest_and_a_mask_may_leave_none(pool, memory):
    logits = torch.randn(3, 600)
    logits[0, [5, 300, 599]] = 9.0
    masks = torch.full((2, 19), -1, dtype=torch.int32)
    masks[0, 0], masks[1] = 0, 0
    ids, _ = greedy = table.greedy(memory.filled(logits))
    table.mask_tokens(logits, torch.tensor([0, 2]), masks, ids=ids, largest=greedy[1])
    assert ids[0] == 300
    assert greedy[1][2] == -math.inf


def test_a_mask_hides_no_fault_of_a_line(pool, memory):
    logits = torch.randn(3, 300)
    logits[0, 7], logits[1, 8] = math.nan, math.inf
    masks = torch.zeros(3, 10, dtype=torch.int32)
    masks[:, 4] = -1
    _masked_like_the_reference(logits, memory.filled(logits), torch.arange(3), masks)


def _masked_like_the_reference(logits, ours, lines, masks):
    """The logits in `ours` after our kernel's masks; asserts that all it wrote is what the reference writes."""
    expected = logits.clone()
    found, expected_found = table.greedy(ours), table.greedy(logits)
    reference_sampling.mask_tokens(expected, lines, masks, ids=expected_found[0], largest=expected_found[1])
    table.mask_tokens(ours, lines, masks, ids=found[0], largest=found[1])
    for mine, theirs in zip((ours, *found), (expected, *expected_found), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    return ours
