"""The sampler's order of steps, its controls, and that a row's token is its own business."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from quire.base.sampling import SamplingParams
from quire.base.step import NewRow
from quire.ops import sampling as ops
from quire.runner.logits_processor import register_logits_processor, unregister_logits_processor
from quire.runner.sampler import DrawBatch, Greedy, RowStatus, Sampler, status_of

VOCAB = 41
MAX_ROWS = 64


class Bench:
    """A sampler with rows whose tokens are written by hand."""

    def __init__(self, device) -> None:
        self.sampler = Sampler(device=device, max_num_seqs=MAX_ROWS, vocab_size=VOCAB)
        self.tokens = torch.zeros(MAX_ROWS, 64, dtype=torch.int32)
        self.lengths: dict[int, int] = {}

    def add(self, row, params, *, prompt=(), output=(), seed=0, **kw):
        history = [*prompt, *output]
        self.sampler.add(
            [
                NewRow(
                    row=row,
                    token_ids=history,
                    num_prompt_tokens=len(prompt),
                    page_ids=[],
                    params=params,
                    seed=seed,
                    **kw,
                )
            ]
        )
        self.tokens[row, : len(history)] = torch.tensor(history, dtype=torch.int32)
        self.lengths[row] = len(history)
        return self

    def sample(self, logits, rows):
        positions = np.array([self.lengths[row] for row in rows], dtype=np.int64)
        rows = np.array(rows, dtype=np.int64)
        batch = DrawBatch(
            rows=rows,
            positions=positions,
            tokens=self.tokens,
            row_index=torch.from_numpy(rows),
            position_index=torch.from_numpy(positions),
            places=torch.from_numpy(rows * self.tokens.shape[1] + positions),
        )
        return self.sampler.sample(logits.clone(), batch, Greedy(*ops.greedy(logits)))

    def draw(self, logits, rows=(0,)):
        return self.sample(logits, list(rows)).ids.tolist()


@pytest.fixture
def bench(device):
    return Bench(device)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def descending():
    """One row whose most likely tokens are 0, 1, 2, ..."""
    return -torch.arange(VOCAB, dtype=torch.float32).unsqueeze(0)


def statuses(sampled):
    return [status_of(value) for value in sampled.largest.tolist()]


def greedy(**kw):
    return SamplingParams(temperature=0.0, max_tokens=64, **kw)


def test_a_greedy_row_takes_the_largest_logit(bench):
    assert bench.add(0, greedy()).draw(descending()) == [0]


def test_allowed_token_ids_exclude_all_others(bench):
    assert bench.add(0, greedy(allowed_token_ids=[9, 30, 5])).draw(descending()) == [5]


def test_logit_bias_moves_the_choice_and_minus_100_bans(bench):
    assert bench.add(0, greedy(logit_bias={20: 100.0})).draw(descending()) == [20]
    assert bench.add(0, greedy(logit_bias={0: -100.0, 1: -100.0})).draw(descending()) == [2]


def test_stop_ids_cannot_be_drawn_before_min_tokens(bench):
    params = greedy(min_tokens=3)
    for output, expected in (([], 1), ([7, 7], 1), ([7, 7, 7], 0)):
        assert bench.add(0, params, prompt=[4, 4], output=output, stop_ids=(0,)).draw(descending()) == [expected]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ([], 1),  # 0 alone is bad, 1 needs its prefix
        ([9], 2),  # 9 1 would be completed
        ([8, 9], 2),
        ([9, 8], 1),
        ([5, 9, 1], 1),
        ([3, 4, 5], 1),  # 3 4 5 2 ends elsewhere
    ],
)
def test_bad_words_ban_only_the_token_that_would_complete_them(bench, output, expected):
    words = ((0,), (9, 1), (3, 4, 5, 2))
    assert bench.add(0, greedy(), prompt=[9], output=output, bad_words=words).draw(descending()) == [expected]


def test_bad_words_with_one_last_token_ban_it_whichever_prefix_matches(bench):
    words = ((6, 0), (7, 0), (8, 7, 0))
    for output, expected in (([6], 0 + 1), ([7], 1), ([8, 7], 1), ([5], 0)):
        assert bench.add(0, greedy(), prompt=[6], output=output, bad_words=words).draw(descending()) == [expected]


def test_bad_words_look_at_the_output_only(bench):
    """A prefix that ends in the prompt bans nothing."""
    assert bench.add(0, greedy(), prompt=[9], output=[], bad_words=((9, 0),)).draw(descending()) == [0]


def test_penalties_count_as_documented(bench):
    """S80: repetition sees the prompt, presence and frequency do not."""
    row = torch.full((1, VOCAB), -50.0)
    row[0, :3] = torch.tensor([10.0, 9.5, 9.0])
    assert bench.add(0, greedy(repetition_penalty=1.2), prompt=[0, 1]).draw(row) == [2]
    assert bench.add(0, greedy(presence_penalty=2.0), prompt=[0, 1]).draw(row) == [0]
    assert bench.add(0, greedy(presence_penalty=0.75), prompt=[5], output=[0, 0]).draw(row) == [1]
    assert bench.add(0, greedy(frequency_penalty=0.6), prompt=[5], output=[0, 0, 1]).draw(row) == [2]
    assert bench.add(0, greedy(frequency_penalty=-2.0), prompt=[5], output=[2]).draw(row) == [2]


def test_a_masked_row_fails_with_its_reason_and_no_other(bench):
    """SEC-13: ids the model does not have are dropped; when nothing is left the row fails."""
    bench.add(0, greedy(allowed_token_ids=[VOCAB, 10**9, -1])).add(1, greedy())
    bench.add(2, greedy(allowed_token_ids=[3]), bad_words=((3,),))
    sampled = bench.sample(descending().repeat(3, 1), [0, 1, 2])
    assert statuses(sampled) == [RowStatus.ALL_MASKED, RowStatus.DRAWN, RowStatus.ALL_MASKED]
    assert sampled.ids[1] == 0
    assert all(0 <= token_id < VOCAB for token_id in sampled.ids.tolist())


def test_out_of_range_ids_in_every_list_are_dropped(bench):
    """SEC-13: neither an index error nor a write from the end."""
    params = greedy(logit_bias={-1: 100.0, VOCAB: 100.0, 4: 1.5}, min_tokens=1)
    bench.add(0, params, stop_ids=(-2, VOCAB + 5, 0), bad_words=((-1,), (VOCAB,), (2**31, 1)))
    assert bench.draw(descending()) == [1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_bad_logits_fails_alone(bench, value, temperature):
    """REL-15: the neighbours' tokens are those they draw without it."""
    params = SamplingParams(temperature=temperature, top_p=0.9, logprobs=2)
    for row in range(3):
        bench.add(row, params, seed=row)
    logits = normal(3, VOCAB)
    expected = bench.draw(logits, (0, 1, 2))
    logits[1, 17] = value
    sampled = bench.sample(logits, [0, 1, 2])
    assert statuses(sampled) == [RowStatus.DRAWN, RowStatus.NOT_FINITE, RowStatus.DRAWN]
    assert sampled.ids[[0, 2]].tolist() == expected[::2]
    assert 0 <= sampled.ids[1].item() < VOCAB


def test_a_mask_does_not_hide_nan_logits(bench):
    logits = descending()
    logits[0, 9] = math.nan
    assert statuses(bench.add(0, greedy(allowed_token_ids=[1])).sample(logits, [0])) == [RowStatus.NOT_FINITE]


PARAMS = [
    greedy(),
    greedy(logprobs=3),
    SamplingParams(temperature=1.4),
    SamplingParams(temperature=0.8, top_p=0.6),
    SamplingParams(temperature=2.0, top_k=4, logprobs=0),
    SamplingParams(temperature=1.1, min_p=0.1),
    SamplingParams(temperature=1.3, repetition_penalty=1.7, frequency_penalty=0.4, presence_penalty=-0.3),
    SamplingParams(temperature=1.5, logit_bias={3: 4.0, 8: -100.0}, allowed_token_ids=list(range(30))),
    greedy(frequency_penalty=1.0, min_tokens=60, logprobs=1),
]


def test_mixed_batches_draw_what_each_row_draws_alone(bench):
    """REL-15: every kind of row, shuffled, alone and together; ids, log-probabilities and ranks bit for bit."""
    rng = random.Random(5)
    rows = list(range(27))
    for row in rows:
        output = [rng.randrange(VOCAB) for _ in range(row % 5)]
        bench.add(
            row,
            PARAMS[row % len(PARAMS)],
            prompt=[1, 2, row],
            output=output,
            seed=row * 977,
            stop_ids=(0, 5),
            bad_words=((4,), (1, 2)) if row % 2 else (),
        )
    logits = normal(27, VOCAB, seed=9)

    def entries(sampled):
        found = {}
        if sampled.logprobs is not None:
            for line, which in enumerate(sampled.asking.tolist()):
                width = 1 + int(sampled.num_logprobs[line])
                found[which] = [tensor[line, :width].tolist() for tensor in sampled.logprobs]
        return found

    rng.shuffle(rows)
    together = bench.sample(logits[rows], rows)
    together_entries = entries(together)
    for place, row in enumerate(rows):
        alone = bench.sample(logits[row : row + 1], [row])
        assert alone.ids.tolist() == [together.ids[place].item()]
        assert entries(alone).get(0) == together_entries.get(place)


def test_equal_seeds_draw_equal_tokens_and_others_differ(bench):
    params = SamplingParams(temperature=5.0)
    for row in range(40):
        bench.add(row, params, prompt=[1], seed=7 if row < 20 else row)
    drawn = bench.draw(normal(1, VOCAB).repeat(40, 1), range(40))
    assert len(set(drawn[:20])) == 1
    assert len(set(drawn[20:])) > 5


def test_each_position_of_a_request_has_its_own_random_number(bench):
    params = SamplingParams(temperature=5.0)
    logits = normal(1, VOCAB)
    drawn = {bench.add(0, params, prompt=[1] * n, seed=7).draw(logits)[0] for n in range(1, 40)}
    assert len(drawn) > 8


def test_negative_and_largest_seeds_are_taken(bench):
    for row, seed in enumerate((-1, -(2**63), 2**63 - 1, 2**64 - 1)):
        bench.add(row, SamplingParams(temperature=5.0), prompt=[1], seed=seed)
    drawn = bench.draw(normal(1, VOCAB).repeat(4, 1), range(4))
    assert drawn[0] == drawn[3]  # the same 64 bits


def test_log_probabilities_are_the_models_own_whatever_the_controls(bench):
    """The distribution before temperature, masks and penalties."""
    params = greedy(logit_bias={40: 100.0}, repetition_penalty=2.0, logprobs=2)
    sampled = bench.add(0, params, prompt=[0, 1]).sample(descending(), [0])
    expected = descending().log_softmax(-1)[0]
    assert sampled.logprobs.token_ids.tolist() == [[40, 0, 1]]
    assert sampled.logprobs.logprobs.tolist()[0] == pytest.approx(expected[[40, 0, 1]].tolist())
    assert sampled.logprobs.ranks.tolist() == [[41, 1, 2]]


class BanToken:
    """A processor for rows of temperature 0.25: their token 0 is out."""

    calls = 0

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size

    def is_active(self, params):
        return params.temperature == 0.25

    def apply(self, logits, rows):
        type(self).calls += 1
        assert logits.shape == (len(rows), self.vocab_size)
        self.seen = [(row.token_ids.tolist(), row.num_prompt_tokens) for row in rows]
        return logits.index_fill(1, torch.tensor([0]), -math.inf)


def test_a_registered_processor_sees_only_its_rows(device):
    """S87, SEC-4: operator-registered code changes the logits of the rows it is active for."""
    made = []

    def factory(vocab_size):
        made.append(BanToken(vocab_size))
        return made[-1]

    register_logits_processor("ban-token", factory)
    try:
        bench = Bench(device)
    finally:
        unregister_logits_processor("ban-token")
    quarter = SamplingParams(temperature=0.25, top_k=1)
    bench.add(0, greedy(), prompt=[1]).add(1, quarter, prompt=[5, 6], output=[2]).add(2, greedy(), prompt=[1])
    assert bench.draw(descending().repeat(3, 1), (0, 1, 2)) == [0, 1, 0]
    assert made[0].seen == [([5, 6, 2], 2)]
    bench.sampler.remove([1])
    BanToken.calls = 0
    bench.add(1, greedy(), prompt=[5])
    assert bench.draw(descending().repeat(2, 1), (0, 1)) == [0, 0]
    assert BanToken.calls == 0


def test_a_row_taken_over_keeps_nothing_of_its_former_owner(bench):
    bench.add(0, SamplingParams(temperature=9.0, logit_bias={5: 100.0}, logprobs=4, frequency_penalty=2.0))
    bench.sampler.remove([0])
    sampled = bench.add(0, greedy()).sample(descending(), [0])
    assert sampled.ids.tolist() == [0]
    assert sampled.logprobs is None


def test_the_short_ways_are_open_while_all_rows_want_the_same_and_only_then(bench):
    """The runner skips the sampler for them, so a row that wants more must close them, and open them when it ends."""

    def ways():
        return bench.sampler.takes_largest, bench.sampler.only_draws

    greedy, random_ = SamplingParams(temperature=0.0), SamplingParams(temperature=0.7)
    assert ways() == (True, False)
    bench.add(0, random_).add(3, random_)
    assert ways() == (False, True)
    bench.add(1, greedy)
    assert ways() == (False, False)
    bench.sampler.remove([0, 3])
    assert ways() == (True, False)
    bench.add(0, SamplingParams(temperature=0.0, logprobs=1))
    assert ways() == (False, False)
    bench.sampler.remove([0, 1])
    bench.add(0, SamplingParams(temperature=0.7, frequency_penalty=1.0))
    assert ways() == (False, False)
