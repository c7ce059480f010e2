"""What a request may ask: ranges, types and sizes are refused when the parameters are made."""

import math

import pytest

from quire.base.errors import InvalidRequestError
from quire.base.sampling import BeamSearchParams, SamplingParams, as_list_of_params, check_token_ids


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 129),
        ("n", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", -0.01),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0.0),
        ("seed", 2**64),
        ("seed", 1.0),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", ["x" * 1025]),
        ("stop", [3]),
        ("bad_words", ["w"] * 129),
        ("allowed_token_ids", []),
        ("logit_bias", {"word": 1.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", dict.fromkeys(range(1025), 1.0)),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", -2),
        ("prompt_logprobs", True),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, value):
    """SEC-14, S80: finite, in range, of the right type, and the field is named."""
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field


def test_min_tokens_beyond_max_tokens_is_refused():
    with pytest.raises(InvalidRequestError, match="exceeds max_tokens"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_stop_strings_need_text():
    with pytest.raises(InvalidRequestError, match="detokenize"):
        SamplingParams(stop="x", detokenize=False)


def test_a_lone_stop_string_becomes_a_list_and_bias_is_clamped():
    params = SamplingParams(stop="x", logit_bias={"3": 500, 4: -500.0})
    assert params.stop == ["x"]
    assert params.logit_bias == {3: 100.0, 4: -100.0}


@pytest.mark.parametrize("ids", [[10], [-1], [True], [1.0], ["1"], [2**70]])
def test_token_ids_are_checked_against_the_embedding_rows_at_both_ends(ids):
    """SEC-13: one function, both bounds, ints and not bools."""
    with pytest.raises(InvalidRequestError):
        check_token_ids("stop_token_ids", ids, 10)
    check_token_ids("stop_token_ids", [0, 9], 10)


@pytest.mark.parametrize("field", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_every_id_list_of_a_request_is_checked(field):
    """SEC-13: the validator exists and is called for each of them."""
    value = {10: 1.0} if field == "logit_bias" else [10]
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{field: value}).check_ids(10)
    assert caught.value.param == field


def test_more_logprobs_than_the_vocabulary_has_are_refused():
    with pytest.raises(InvalidRequestError, match="exceeds the vocabulary"):
        SamplingParams(logprobs=11).check_ids(10)


def test_one_params_object_serves_all_prompts_and_a_list_must_match():
    one = SamplingParams()
    assert as_list_of_params(one, 2, one) == [one, one]
    assert as_list_of_params(None, 1, one) == [one]
    with pytest.raises(InvalidRequestError, match="2 sampling_params for 3 prompts"):
        as_list_of_params([one, one], 3, one)


@pytest.mark.parametrize(
    "change", [{"beam_width": 0}, {"max_tokens": 0}, {"temperature": math.nan}, {"length_penalty": math.inf}]
)
def test_beam_parameters_out_of_range_are_refused(change):
    with pytest.raises(InvalidRequestError):
        BeamSearchParams(**({"beam_width": 2, "max_tokens": 4} | change))
