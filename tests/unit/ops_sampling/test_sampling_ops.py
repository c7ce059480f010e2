"""The sampling ops against naive Python, exact distributions and published vectors; each row alone in any batch."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.ops import reference_sampling as reference
from quire.ops import sampling as ops
from quire.ops.reference_sampling import order_keys, philox

# Known answers of Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, result.
PHILOX_VECTORS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw(logits, *, temperature=1.0, min_p=0.0, top_k=0, top_p=1.0, uniform):
    """`ops.draw` with parameters given as numbers or per row."""
    count = len(logits)

    def column(value, dtype):
        return torch.as_tensor(value, dtype=dtype).expand(count)

    return ops.draw(
        logits,
        temperature=column(temperature, torch.float32),
        min_p=column(min_p, torch.float64),
        top_k=column(top_k, torch.int64),
        top_p=column(top_p, torch.float64),
        uniform=column(uniform, torch.float64),
    )


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX_VECTORS)
def test_philox_gives_its_published_vectors(counter, key, expected):
    words = philox([torch.tensor([word]) for word in counter], tuple(torch.tensor([word]) for word in key))
    assert [int(word) for word in words] == expected


def test_the_uniform_number_follows_its_formula_from_the_philox_words():
    """The first published vector is seed 0, position 0."""
    expected = ((0x6627E8D5 >> 5) * 2**26 + (0xE169C58D >> 6)) / 2**53
    assert ops.uniform(torch.tensor([0]), torch.tensor([0])).tolist() == [expected]


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
@settings(deadline=None, max_examples=50)
def test_uniform_numbers_are_in_the_unit_interval_and_independent_of_the_batch(seed, position):
    """REL-15"""
    alone = ops.uniform(torch.tensor([seed]), torch.tensor([position]))
    batch = ops.uniform(torch.tensor([1, seed, -5]), torch.tensor([7, position, 0]))
    assert 0 <= alone.item() < 1
    assert batch[1].item() == alone.item()


def test_uniform_numbers_are_evenly_spread_over_seeds_and_positions():
    for seeds, positions in (
        (torch.arange(20_000), torch.full((20_000,), 9)),
        (torch.full((20_000,), 9), torch.arange(20_000)),
    ):
        counts = torch.histc(ops.uniform(seeds, positions).float(), bins=50, min=0, max=1)
        assert float(((counts - 400) ** 2 / 400).sum()) < 95  # chi-square, 49 degrees: 0.01 % above


def exact_probabilities(logits, temperature, min_p, top_k, top_p):
    """The documented distribution of one row, in plain Python floats."""
    top = max(logits)
    weights = {i: math.exp((x - top) / temperature) for i, x in enumerate(logits)}
    weights = {i: w for i, w in weights.items() if w >= min_p * max(weights.values())}
    ranked = sorted(weights, key=lambda i: (-logits[i], i))
    if top_k > 0:
        ranked = ranked[:top_k]
    total, before, kept = sum(weights[i] for i in ranked), 0.0, []
    for i in ranked:
        if before < top_p * total:
            kept.append(i)
        before += weights[i]
    mass = sum(weights[i] for i in kept)
    return {i: weights[i] / mass for i in kept}


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 3.0},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"temperature": 1.7, "top_k": 9, "top_p": 0.8, "min_p": 0.05},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [20, 700])
def test_draws_follow_the_documented_distribution(params, size):
    """S80: chi-square of seeded draws against the exact probabilities, vocabulary below and above the shortcut."""
    settings_ = {"temperature": 1.0, "min_p": 0.0, "top_k": 0, "top_p": 1.0} | params
    row = normal(size, seed=1) * (1 if size == 20 else 2.5)
    expected = exact_probabilities(row.tolist(), **settings_)
    count = 20_000 if size == 20 else 6_000
    counts: Counter[int] = Counter()
    for part in range(10):
        seeds = torch.arange(part * count // 10, (part + 1) * count // 10)
        uniform = ops.uniform(seeds, torch.full_like(seeds, 3))
        counts.update(draw(row.expand(len(seeds), -1), **settings_, uniform=uniform).tolist())
    assert set(counts) <= set(expected)
    likely = [i for i, p in expected.items() if p * count >= 10]
    rest = count - sum(counts[i] for i in likely)
    rest_expected = count * (1 - sum(expected[i] for i in likely))
    chi = sum((counts[i] - count * expected[i]) ** 2 / (count * expected[i]) for i in likely)
    if rest_expected >= 1:
        chi += (rest - rest_expected) ** 2 / rest_expected
    degrees = max(len(likely) - 1, 1)
    assert chi < degrees + 5 * math.sqrt(2 * degrees) + 10


@given(
    st.integers(1, 400),
    st.integers(0, 10**6),
    st.floats(0.05, 5),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    st.sampled_from([0, -1, 1, 3, 50, 300, 10_000]),
    st.sampled_from([1e-9, 0.1, 0.5, 0.9, 0.999, 1.0]),
)
@settings(deadline=None, max_examples=80)
def test_a_draw_is_always_among_the_tokens_that_stay(size, seed, temperature, min_p, top_k, top_p):
    """S80: with ties (logits rounded to quarters), any size and any setting."""
    row = (normal(size, seed=seed) * 8).round() / 4
    uniform = ops.uniform(torch.arange(8) + seed, torch.zeros(8, dtype=torch.int64))
    drawn = draw(
        row.expand(8, -1), temperature=temperature, min_p=min_p, top_k=top_k, top_p=top_p, uniform=uniform
    ).tolist()
    # Limits a hair wider than asked: float32 weights may put a token on the other side of an exact tie.
    allowed = exact_probabilities(row.tolist(), temperature, min_p * (1 - 1e-5), top_k, min(1.0, top_p * (1 + 1e-5)))
    assert set(drawn) <= set(allowed)


def test_the_whole_sort_and_the_shortlists_keep_the_same_tokens(monkeypatch):
    """The shortcut for large vocabularies agrees with sorting everything, bit for bit."""
    rows = 60
    monkeypatch.setattr(reference, "SHORTLISTS", (8, 100))
    logits = normal(rows, 700, seed=5) * torch.linspace(0.01, 6, rows).unsqueeze(-1)
    rng = random.Random(1)
    top_k = torch.tensor([rng.choice([0, 0, 0, 1, 7, 8, 9, 40, 101, 900]) for _ in range(rows)])
    top_p = torch.tensor([rng.choice([0.05, 0.5, 0.9, 0.99, 1.0]) for _ in range(rows)], dtype=torch.float64)
    weights = reference.fixed_point_weights(logits, torch.ones(rows))
    short = reference.keep_largest(weights, order_keys(logits), top_k=top_k, top_p=top_p)
    monkeypatch.setattr(reference, "SHORTLISTS", ())
    assert torch.equal(short, reference.keep_largest(weights, order_keys(logits), top_k=top_k, top_p=top_p))


def test_extreme_numbers_of_the_random_stream_stay_in_range():
    """u = 0 takes the first token with weight, the largest u the last one."""
    row = torch.tensor([[-math.inf, 1.0, 1.0, -math.inf, 1.0, -math.inf]])
    assert draw(row, uniform=0.0).item() == 1
    assert draw(row, uniform=1 - 2.0**-53).item() == 4


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 100.0])
def test_extreme_temperatures_neither_overflow_nor_escape(temperature):
    row = torch.tensor([[3e38, 1.0, -3e38, 2.9e38]])
    drawn = draw(row.expand(50, -1), temperature=temperature, uniform=torch.linspace(0, 0.99, 50))
    assert set(drawn.tolist()) == {0}


@pytest.mark.parametrize("size", [1, 7, 61, 700, 5003])
def test_every_op_gives_a_row_the_same_bits_alone_and_in_a_batch(size):
    """REL-15: bit for bit, whatever the neighbours and the place among them."""
    rows = 9
    logits = normal(rows, size, seed=2) * 3
    tokens = torch.randint(0, size, (rows, 40), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    penalties = torch.tensor([[1.3, 0.5, 0.25]]).repeat(rows, 1)
    lengths, prompts = torch.arange(rows) * 4 + 2, torch.arange(rows) * 2
    uniform = ops.uniform(torch.arange(rows), lengths)

    def all_ops(which):
        part, ids = logits[which], tokens[which, 0].long()
        logprobs = ops.log_probs(part)
        return [
            *ops.greedy(part),
            draw(part, temperature=0.7, top_p=0.8, min_p=0.01, uniform=uniform[which]),
            draw(part, temperature=1.3, uniform=uniform[which]),
            logprobs,
            *ops.token_logprobs(logprobs, ids, min(size, 5)),
            ops.penalize(
                part,
                tokens=tokens[which],
                num_prompt=prompts[which],
                num_tokens=lengths[which],
                penalties=penalties[which],
            ),
        ]

    together = all_ops(torch.arange(rows))
    shuffled = torch.randperm(rows, generator=torch.Generator().manual_seed(4))
    for whole, part in zip(together, all_ops(shuffled), strict=True):
        assert torch.equal(whole[shuffled], part)
    for row in range(rows):
        for whole, alone in zip(together, all_ops(torch.tensor([row])), strict=True):
            assert torch.equal(whole[row : row + 1], alone)


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=4),
    st.integers(0, 12),
    st.floats(0.1, 3),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
@settings(deadline=None, max_examples=60)
def test_penalties_equal_a_naive_loop(histories, num_prompt, repetition, presence, frequency):
    """S80: repetition over prompt and output, presence and frequency over the output only."""
    logits = normal(len(histories), 10, seed=3) * 2
    tokens = torch.full((len(histories), 12), 7, dtype=torch.int32)  # what stands past a row's tokens is not read
    for row, history in enumerate(histories):
        tokens[row, : len(history)] = torch.tensor(history, dtype=torch.int32)
    result = ops.penalize(
        logits,
        tokens=tokens,
        num_prompt=torch.tensor([num_prompt] * len(histories)),
        num_tokens=torch.tensor([len(history) for history in histories]),
        penalties=torch.tensor([[repetition, presence, frequency]]).repeat(len(histories), 1),
    )
    for row, history in enumerate(histories):
        for token in range(10):
            x = logits[row, token].item()
            if token in history:
                x = x / repetition if x > 0 else x * repetition
            count = history[num_prompt:].count(token)
            x -= frequency * count + presence * (count > 0)
            assert result[row, token].item() == pytest.approx(x, rel=1e-5, abs=1e-5)


def test_a_tiny_repetition_penalty_leaves_finite_logits():
    logits = torch.tensor([[100.0, -100.0, 0.0, -math.inf]])
    result = ops.penalize(
        logits,
        tokens=torch.tensor([[0, 1, 2, 3]], dtype=torch.int32),
        num_prompt=torch.tensor([4]),
        num_tokens=torch.tensor([4]),
        penalties=torch.tensor([[torch.finfo(torch.float32).tiny, 0.0, 0.0]]),
    )
    assert not result.isnan().any()
    assert result.max().isfinite()
    assert result[0, 3] == -math.inf


def test_greedy_takes_the_lowest_id_of_equals_at_every_width():
    """Ties are settled the same way everywhere."""
    for size in (2, 9, 64, 1001):
        row = torch.zeros(3, size)
        row[1, size // 2 :] = 1.0
        assert ops.greedy(row)[0].tolist() == [0, size // 2, 0]


def test_log_probabilities_are_finite_and_ranked_with_ties_by_id():
    """REL-13: minus infinity is reported as the floor, so the numbers are valid JSON."""
    logprobs = ops.log_probs(torch.tensor([[1.0, 2.0, 2.0, -math.inf]]))
    result = ops.token_logprobs(logprobs, torch.tensor([3]), 4)
    assert result.token_ids.tolist() == [[3, 1, 2, 0, 3]]
    assert result.ranks.tolist() == [[4, 1, 2, 3, 4]]
    assert result.logprobs[0, 0].item() == ops.LOGPROB_FLOOR
    assert math.isfinite(result.logprobs.sum().item())


def test_order_keys_sort_like_the_floats_with_the_lower_id_first():
    row = torch.tensor([0.0, -0.0, 1.5, -math.inf, -1e-40, 1.5, math.inf, -3.0])
    order = order_keys(row.unsqueeze(0))[0].argsort(descending=True).tolist()
    assert order == [6, 2, 5, 0, 1, 4, 7, 3]


def test_tokens_are_read_where_they_stand_and_appended_behind_it():
    tokens = torch.arange(12, dtype=torch.int32)
    places = torch.tensor([7, 0, 10])
    found = ops.read_tokens(tokens, places)
    assert (found.tolist(), found.dtype) == ([7, 0, 10], torch.int64)
    ops.append_tokens(tokens, places, torch.tensor([40, 41, 42]))
    assert tokens.tolist() == [0, 41, 2, 3, 4, 5, 6, 7, 40, 9, 10, 42]
