"""`suffix` on plain completions: the prompt that reaches the engine, what ends it, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

URL = "/v1/completions"
PRE, SUF, MID, PAD = 1, 2, 3, 4


@pytest.fixture
def filling(engine):
    """An engine whose tokenizer has Qwen's marks; control characters stand for them."""
    marks = {"<|fim_prefix|>": PRE, "<|fim_suffix|>": SUF, "<|fim_middle|>": MID, "<|fim_pad|>": PAD}
    engine.tokenizer.token_id = marks.get
    engine.tokenizer.bos_token_id = 256
    return engine


async def ask(http, **body: Any):
    return await http.post(URL, json=body)


async def test_a_suffix_makes_a_prompt_with_the_models_marks(http, filling):
    answer = await ask(http, prompt="a(", suffix=")", stop_token_ids=[9], max_tokens=100)
    assert answer.status_code == 200 and answer.json()["choices"][0]["text"] == filling.reply
    (sent,) = filling.submitted
    assert sent.prompt == [256, PRE, *b"a(", SUF, *b")", MID]
    assert sent.params.stop_token_ids == [9, PAD]
    await ask(http, prompt="a(", suffix=")", add_special_tokens=False, ignore_eos=True, max_tokens=4)
    assert filling.submitted[-1].prompt[0] == PRE and filling.submitted[-1].params.stop_token_ids == []


async def test_every_prompt_is_before_the_same_suffix_as_text_or_as_ids(http, filling):
    await ask(http, prompt=["a", "b"], suffix="c", add_special_tokens=False)
    assert [sent.prompt for sent in filling.submitted] == [[PRE, p, SUF, 99, MID] for p in b"ab"]
    await ask(http, prompt=[97, 98], suffix="c", add_special_tokens=False)
    assert filling.submitted[-1].prompt == [PRE, 97, 98, SUF, 99, MID]


async def test_rendering_shows_the_marks(http, filling):
    (shown,) = (await http.post(f"{URL}/render", json={"prompt": "a", "suffix": "c"})).json()
    assert shown["token_ids"] == [256, PRE, 97, SUF, 99, MID] and shown["prompt"] == "<s>\x01a\x02c\x03"
    assert shown["sampling_params"]["stop_token_ids"] == [PAD]


async def test_an_empty_suffix_asks_for_nothing(http, engine):
    assert (await ask(http, prompt="a", suffix="")).status_code == 200
    assert engine.submitted[-1].prompt == [256, 97]


async def test_a_model_without_marks_refuses_a_suffix_and_says_why(http):
    error = (await ask(http, prompt="a", suffix="b")).json()["error"]
    assert (error["param"], error["code"]) == ("suffix", "unsupported_value")
    assert "fill in the middle" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"suffix": "x" * 2**20}, "suffix"),
        ({"prompt": "x" * 2**20}, "prompt"),
        ({"suffix": "x" * 5000}, "prompt"),
        ({"prompt": [9999]}, "prompt"),
    ],
)
async def test_what_does_not_go_with_a_suffix_is_refused_by_name(http, filling, fields, param):
    answer = await ask(http, **({"prompt": "a", "suffix": "b"} | fields))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
