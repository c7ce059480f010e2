"""Beam search against exhaustive search, over a language model that is a table."""

import itertools
import math
from types import SimpleNamespace

import pytest

from quire import BeamSearchParams
from quire.base.errors import ContextLengthError
from quire.base.outputs import Logprob
from quire.engine.beam import beam_search, score, tempered

EOS, VOCABULARY = 0, 4


def _next(tokens):
    """Log-probabilities of the next token: any fixed, uneven function of the sequence will do."""
    weights = [1 + (7 * sum(tokens) + 3 * len(tokens) + 5 * token) % 11 for token in range(VOCABULARY)]
    return {token: math.log(weight / sum(weights)) for token, weight in enumerate(weights)}


class TableLLM:
    """Answers what `beam_search` asks of an LLM: one greedy token, with the log-probabilities asked for."""

    info = SimpleNamespace(max_model_len=16, vocab_rows=VOCABULARY, eos_token_ids=(EOS,))
    tokenizer = SimpleNamespace(decode=lambda tokens, **options: " ".join(map(str, tokens)))

    def generate(self, prompts, params, *, use_tqdm):
        assert params.max_tokens == 1
        outputs = []
        for prompt in prompts:
            likely = sorted(_next(prompt).items(), key=lambda item: -item[1])
            kept = likely if params.logprobs == -1 else likely[: params.logprobs]
            entry = {token: Logprob(value) for token, value in kept}
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(logprobs=[entry])]))
        return outputs


def _length(tokens):
    """What the length penalty counts: the prompt too, an end of sequence not."""
    return len(tokens) - (tokens[-1] == EOS)


def _best(prompt, max_tokens, *, length_penalty=1.0, ignore_eos=False, temperature=1.0):
    """Every sequence there is, ended by the first end of sequence or at `max_tokens`, best first."""
    found = {}
    for tokens in itertools.product(range(VOCABULARY), repeat=max_tokens):
        if not ignore_eos and EOS in tokens:
            tokens = tokens[: tokens.index(EOS) + 1]
        total = 0.0
        for position, token in enumerate(tokens):
            total += tempered(_next([*prompt, *tokens[:position]]), temperature)[token]
        found[*prompt, *tokens] = total
    return sorted(found.items(), key=lambda item: -score(item[1], _length(item[0]), length_penalty))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_beam_as_wide_as_the_space_finds_what_exhaustive_search_finds(length_penalty, ignore_eos):
    """S80: scores, ends of sequence and the length penalty."""
    params = BeamSearchParams(beam_width=64, max_tokens=3, length_penalty=length_penalty, ignore_eos=ignore_eos)
    found = beam_search(TableLLM(), [1, 2], params).sequences
    expected = _best([1, 2], 3, length_penalty=length_penalty, ignore_eos=ignore_eos)[:64]
    scores = [score(one.cum_logprob, _length(one.tokens), length_penalty) for one in found]
    assert scores == pytest.approx([score(value, _length(tokens), length_penalty) for tokens, value in expected])
    assert found[0].tokens == list(expected[0][0])
    for one in found:
        assert one.finish_reason == ("stop" if one.tokens[-1] == EOS and not ignore_eos else "length")
        assert one.text == " ".join(map(str, one.tokens))


def test_a_sequence_holds_its_prompt_and_special_tokens_as_vllms_does():
    """S48: `tokens` and `text` are prompt and continuation; `logprobs` has an entry per token of the continuation."""
    decoded = []
    llm = TableLLM()
    llm.tokenizer = SimpleNamespace(decode=lambda tokens, **options: decoded.append((tokens, options)) or "text")
    best = beam_search(llm, [1, 2], BeamSearchParams(beam_width=2, max_tokens=3, ignore_eos=True)).sequences[0]
    assert best.tokens[:2] == [1, 2] and len(best.tokens) == 5 and best.text == "text"
    assert decoded[0] == (best.tokens, {"skip_special_tokens": False})
    taken = [entry[token].logprob for token, entry in zip(best.tokens[2:], best.logprobs, strict=True)]
    assert sum(taken) == pytest.approx(best.cum_logprob)
    assert [len(entry) for entry in best.logprobs] == [4, 4, 4]


def test_a_temperature_rescales_before_it_ranks():
    """S80: no beam parameter is parsed and ignored."""
    params = BeamSearchParams(beam_width=64, max_tokens=2, temperature=0.5, ignore_eos=True)
    found = beam_search(TableLLM(), [3], params).sequences
    expected = _best([3], 2, ignore_eos=True, temperature=0.5)
    assert found[0].cum_logprob == pytest.approx(expected[0][1])
    assert sum(math.exp(value) for value in tempered(_next([3]), 0.5).values()) == pytest.approx(1.0)


def test_a_prompt_without_room_for_the_beams_is_refused():
    """S75: exact counts."""
    with pytest.raises(ContextLengthError, match=r"10 tokens and 7 more.*16 tokens"):
        beam_search(TableLLM(), [1] * 10, BeamSearchParams(beam_width=2, max_tokens=7))
