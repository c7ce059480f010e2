"""What users see of a request, put together from per-step tokens."""

import copy
import dataclasses
import pickle
import tracemalloc
from dataclasses import replace

import pytest

from quire.base.outputs import CompletionOutput, FinishReason, TokenLogprobs
from quire.engine import collector as module


def test_deltas_merge_while_nobody_takes_them_and_are_handed_over_once(collect, say):
    """REL-9: a slow reader gets everything, in one piece."""
    request = collect(delta=True)
    for piece in ("one ", "two ", "three"):
        request.push(say(request, piece))
    first = request.take().outputs[0]
    assert first.text == "one two three"
    request.push(say(request, " four", finish=FinishReason.LENGTH))
    second = request.take()
    assert (second.outputs[0].text, second.outputs[0].finish_reason, second.finished) == (" four", "length", True)
    assert first.text == "one two three"


def test_a_token_whose_text_is_held_back_comes_with_its_text(collect, say):
    """Wire 26: also when the reader lags and several steps are one delta."""
    request = collect(delta=True, stop=["named Grefka"], logprobs=0)
    request.push(say(request, "a lighthouse "))
    request.push(say(request, "named "))
    request.push(say(request, "Gr"))
    first = request.take().outputs[0]
    assert first.text == "a lighthouse "
    assert "".join(entry[0].decoded_token for entry in _entries(first)) == "a lighthouse "
    request.push(say(request, "eat"))
    second = request.take().outputs[0]
    assert second.text == "named Great"
    assert "".join(entry[0].decoded_token for entry in _entries(second)) == "named Great"
    request.push(say(request, " named"))
    request.push(say(request, "", finish=FinishReason.LENGTH))
    last = request.take().outputs[0]
    assert last.text == " named" and len(last.token_ids) == len(last.logprobs) > 0


def test_without_text_every_token_comes_at_once(collect, say):
    request = collect(delta=True, detokenize=False, logprobs=0)
    request.push(say(request, "one"))
    assert request.take().outputs[0].token_ids


def test_without_log_probabilities_no_token_waits(collect, say):
    request = collect(delta=True, stop=["one two"])
    request.push(say(request, "one "))
    output = request.take().outputs[0]
    assert output.text == "" and output.token_ids


def _entries(output):
    assert len(output.logprobs) == len(output.token_ids)
    return [list(entry.values()) for entry in output.logprobs]


def test_a_merged_delta_tells_of_its_steps(collect, say):
    """What a text is read as must not depend on how fast it is taken."""
    request = collect(delta=True, stop=["two, never said"], logprobs=0)
    sizes = []
    for piece in ("one ", "and ", "two", " three"):
        request.push(say(request, piece))
    merged = request.take().outputs[0]
    assert merged.text == "one and two three"
    assert sum(characters for characters, _ in merged.pieces) == len(merged.text)
    assert sum(tokens for _, tokens in merged.pieces) == len(merged.token_ids)
    alone = collect(delta=True, stop=["two, never said"], logprobs=0)
    for piece in ("one ", "and ", "two", " three"):
        for token_id in say(alone, piece).token_ids:
            alone.push(say(alone, [token_id]))
            sizes += alone.take().outputs[0].pieces
    assert [size for size in sizes if size[0]] == merged.pieces


def test_a_whole_output_stays_as_it_was_when_more_comes(collect, say):
    """S48: an output someone keeps does not change under them."""
    request = collect(logprobs=1)
    request.push(say(request, "one "))
    first = request.take().outputs[0]
    before = list(first.token_ids), list(first.logprobs), first.text
    request.push(say(request, "two"))
    assert (first.token_ids, first.logprobs, first.text) == before
    whole = request.take().outputs[0]
    assert whole.text == "one two"
    assert len(whole.token_ids) == len(whole.logprobs) > len(first.token_ids)
    assert whole.cumulative_logprob == pytest.approx(-len(whole.token_ids))


def test_what_a_whole_output_costs_does_not_grow_with_the_text_before_it(collect, say):
    """S48: text and lists are put together when somebody reads them, not for every step."""
    request = collect(max_tokens=20, logprobs=0)
    sizes = []
    for _ in range(2):
        for _ in range(2000):
            request.push(say(request, [300]))
        tracemalloc.start()
        output = request.take()
        sizes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(output.outputs[0].token_ids) == len(output.outputs[0].logprobs)
    assert max(sizes) < 8000  # bytes; a list of 2,000 tokens alone has twice as many


def test_outputs_read_late_or_out_of_order_hold_what_there_was_when_they_were_taken(collect, say):
    request = collect()
    taken = []
    for piece in ("one ", "two ", "three"):
        request.push(say(request, piece))
        taken.append(request.take().outputs[0])
    assert [taken[i].text for i in (2, 0, 1)] == ["one two three", "one ", "one two "]
    sizes = [len(output.token_ids) for output in taken]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3


def test_an_unfinished_output_can_be_copied_replaced_pickled_and_changed(collect, say):
    """S48: it is a CompletionOutput like any other."""
    request = collect()
    request.push(say(request, "one "))
    take = lambda: request.take().outputs[0]  # noqa: E731
    expected = dataclasses.asdict(take())
    assert expected["text"] == "one " and expected["logprobs"] is None
    thawed = pickle.loads(pickle.dumps(take()))
    for made in (copy.copy(take()), copy.deepcopy(take()), thawed, replace(take(), index=0)):
        assert isinstance(made, CompletionOutput) and dataclasses.asdict(made) == expected
    assert take() == take() and "text='one '" in repr(take())
    changed = take()
    changed.text = "other"
    changed.token_ids.append(1)
    assert (changed.text, take().text, take().token_ids) == ("other", "one ", expected["token_ids"])
    with pytest.raises(AttributeError, match="no attribute 'texts'"):
        take().texts  # noqa: B018


def test_a_finished_output_is_made_once(collect, say):
    request = collect(n=2)
    request.push(say(request, "one", finish=FinishReason.LENGTH))
    request.push(say(request, "x", index=1))
    first, again = request.take().outputs[0], request.take().outputs[0]
    assert type(first) is CompletionOutput and first is again


def test_a_delta_names_only_the_samples_that_have_news(collect, say):
    request = collect(delta=True, n=3)
    request.push(say(request, "x", index=2))
    assert [sample.index for sample in request.take().outputs] == [2]
    assert request.take().outputs == []


def test_a_stop_string_ends_its_sample_and_asks_for_the_engine_to_be_told(collect, say):
    """REL-11: what comes after it from the engine is not taken in."""
    request = collect(stop=["two"])
    assert not request.push(say(request, "one "))
    assert request.push(say(request, "two three"))
    assert not request.push(say(request, "more", finish=FinishReason.ABORT))
    output = request.take().outputs[0]
    assert (output.text, output.finish_reason, output.stop_reason) == ("one ", "stop", "two")


def test_a_stop_string_completed_by_the_last_token_needs_no_word_to_the_engine(collect, say):
    request = collect(stop=["two"])
    assert not request.push(say(request, "two", finish=FinishReason.LENGTH))
    assert request.take().outputs[0].finish_reason == "stop"


def test_held_back_text_comes_with_the_end(collect, say):
    """REL-11: the beginning of a stop string that never came is text."""
    request = collect(delta=True, stop=["stopping"])
    request.push(say(request, "stop"))
    assert request.take().outputs[0].text == ""
    request.push(say(request, finish=FinishReason.LENGTH))
    assert request.take().outputs[0].text == "stop"


@pytest.mark.parametrize(("shown", "expected"), [(False, "word"), (True, "word<|im_end|>")])
def test_a_stop_token_is_listed_and_shown_only_on_request(collect, say, tokenizer, shown, expected):
    (end,) = tokenizer.encode("<|im_end|>", add_special_tokens=False)
    request = collect(include_stop_str_in_output=shown, skip_special_tokens=False)
    ids = tokenizer.encode("word", add_special_tokens=False)
    request.push(say(request, [*ids, end], finish=FinishReason.STOP))
    output = request.take().outputs[0]
    assert (output.text, output.token_ids) == (expected, [*ids, end])


def test_an_error_ends_the_request_and_leaves_its_other_samples_to_be_aborted(collect, say):
    """REL-20: one failed sample fails the request, and the engine still runs the others."""
    request = collect(n=2)
    request.push(say(request, index=0, error="StepError"))
    assert request.is_finished
    assert not request.is_over
    request.push(say(request, index=1, error="StepError"))
    assert request.is_over


def test_an_error_after_a_stop_string_changes_nothing(collect, say):
    """REL-10: the sample had ended well; the engine only did not know yet."""
    request = collect(stop=["two"])
    request.push(say(request, "one two"))
    request.push(say(request, error="DeadlineExceededError"))
    assert request.error is None
    assert request.take().outputs[0].finish_reason == "stop"


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize("logprobs", [None, 5])
def test_what_waits_is_counted_and_what_was_taken_is_not(collect, say, monkeypatch, delta, logprobs):
    """REL-9: the bound is in bytes, log-probabilities included."""
    per_token = 64 + (160 * 6 if logprobs else 0)
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 10 * per_token)
    request = collect(delta=delta, logprobs=logprobs)
    request.push(say(request, [300] * 10))
    assert not request.is_overfull
    request.push(say(request, [300]))
    assert request.is_overfull
    request.take()
    assert not request.is_overfull
    request.push(say(request, [300] * 11))
    request.discard()
    assert not request.is_overfull


def test_whole_vocabularies_count_in_full(collect, say, monkeypatch):
    """REL-9: logprobs=-1 is no way around the bound."""
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 50_000)
    request = collect(logprobs=-1)
    output = say(request, [300])
    output.logprobs = [TokenLogprobs(list(range(512)), [-1.0] * 512, [1] * 512)]
    request.push(output)
    assert request.is_overfull


def test_prompt_logprobs_are_given_once_to_a_reader_of_deltas(collect, say):
    request = collect(delta=True, prompt_logprobs=0)
    entry = TokenLogprobs([8], [-2.0], [1])
    request.push(say(request, [300], prompt_logprobs=[entry, entry]))
    assert [entry and list(entry) for entry in request.take().prompt_logprobs] == [None, [8], [8]]
    request.push(say(request, [300]))
    assert request.take().prompt_logprobs is None
