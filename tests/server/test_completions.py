"""Plain completions: prompts of every form, echo, log-probabilities, streams over several prompts."""

from __future__ import annotations

import json
from typing import Any

import pytest

PATH = "/v1/completions"


async def ask(http: Any, **fields: Any) -> Any:
    return await http.post(PATH, json={"prompt": "hi", **fields})


async def test_a_prompt_is_continued_in_openais_shape(http, engine) -> None:
    """S50, wire 45, 52: sixteen tokens by default, text_completion objects."""
    body = (await ask(http)).json()
    assert body["object"] == "text_completion" and body["id"].startswith("cmpl-")
    (choice,) = body["choices"]
    assert choice["text"] == engine.reply.encode()[:16].decode("utf-8", "ignore").rstrip("�") or choice["text"]
    assert choice["finish_reason"] == "length" and choice["logprobs"] is None
    assert body["usage"]["completion_tokens"] == 16
    assert engine.submitted[0].params.max_tokens == 16


async def test_prompts_come_as_text_texts_ids_or_lists_of_ids(http, engine) -> None:
    """S50, wire 52."""
    for prompt in ("ab", ["ab", "c"], [97, 98], [[97, 98], [99]], ["ab", [99]]):
        response = await ask(http, prompt=prompt, add_special_tokens=False)
        assert response.status_code == 200, response.text
    prompts = [call.prompt for call in engine.submitted]
    ab, c = [97, 98], [99]
    assert prompts == [ab, ab, c, ab, ab, c, ab, c]


async def test_special_tokens_are_added_to_texts_and_not_to_ids(http, engine) -> None:
    await ask(http, prompt="a")
    await ask(http, prompt=[97])
    assert [call.prompt for call in engine.submitted] == [[256, 97], [97]]


async def test_choices_are_numbered_prompt_by_prompt(http, engine) -> None:
    """wire 52: index = prompt index * n + sample."""
    body = (await ask(http, prompt=["a", "b"], n=2, echo=True, max_tokens=1)).json()
    assert [(c["index"], c["text"]) for c in body["choices"]] == [(0, "aH"), (1, "aH"), (2, "bH"), (3, "bH")]
    assert body["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 4,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


async def test_a_stream_over_prompts_adds_up_to_the_whole(http, engine, parse_sse) -> None:
    """Golden property for completions: text, log-probabilities, reasons and usage are the same streamed."""
    for fields in (
        {}, {"n": 2}, {"prompt": ["a", "ö", "c"], "n": 2}, {"echo": True, "logprobs": 2},
        {"stop": ["wör"], "logprobs": 0},
        {"echo": True, "prompt": [104, 105], "return_token_ids": True}, {"echo": True, "logprobs": 1, "max_tokens": 0},
        {"prompt": ["aé", [104, 105]], "echo": True, "logprobs": 5, "max_tokens": 30},
    ):  # fmt: skip
        whole = (await ask(http, **fields)).json()
        response = await ask(http, **fields, stream=True, stream_options={"include_usage": True})
        *events, done = parse_sse(response.text)
        chunks = [json.loads(event) for event in events]
        assert done == "[DONE]" and chunks[-1]["usage"] == whole["usage"] and chunks[-1]["choices"] == []
        assert all(chunk["object"] == "text_completion" and chunk["usage"] is None for chunk in chunks[:-1])
        for choice in whole["choices"]:
            parts = [p for chunk in chunks for p in chunk["choices"] if p["index"] == choice["index"]]
            assert "".join(part["text"] for part in parts) == choice["text"]
            assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]
            assert parts[-1]["stop_reason"] == choice["stop_reason"]
            for name, values in (choice["logprobs"] or {}).items():
                assert [item for part in parts if part["logprobs"] for item in part["logprobs"][name]] == values


async def test_logprobs_are_parallel_lists_with_offsets_into_the_text(http, engine) -> None:
    """wire 28: with echo the first prompt token has none; offsets count characters, not bytes."""
    engine.reply = "ö!"
    (choice,) = (await ask(http, prompt="né", echo=True, logprobs=1)).json()["choices"]
    lp = choice["logprobs"]
    assert choice["text"] == "néö!"
    assert lp["tokens"][:2] == ["<s>", "n"] and lp["tokens"][-1] == "</s>"
    assert lp["token_logprobs"][0] is None and lp["top_logprobs"][0] is None
    assert lp["text_offset"] == [0, 0, 1, 1, 2, 2, 3, 4]
    assert len({len(lp[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}) == 1
    assert all(isinstance(top, dict) and min(top.values()) >= -9999.0 for top in lp["top_logprobs"][1:])


async def test_scoring_a_prompt_generates_nothing_to_see(http, engine) -> None:
    """echo with max_tokens 0: the prompt's log-probabilities alone, as evaluation harnesses ask."""
    body = (await ask(http, echo=True, logprobs=1, max_tokens=0)).json()
    assert body["choices"][0]["text"] == "hi" and body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["logprobs"]["tokens"] == ["<s>", "h", "i"]
    assert body["usage"]["completion_tokens"] == 0 and body["usage"]["total_tokens"] == 3


async def test_echo_of_ids_is_their_text(http) -> None:
    body = (await ask(http, prompt=[256, 104, 105], echo=True, max_tokens=1)).json()
    assert body["choices"][0]["text"] == "hiH"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, None),
        ({"prompt": [97, "a"]}, "prompt"),
        ({"prompt": [97, [98]]}, "prompt"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": [260]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**70]}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"prompt_embeds": "x"}, "prompt_embeds"),
        ({"min_tokens": 17}, "min_tokens"),
    ],
)
async def test_what_cannot_be_honoured_is_a_400_that_names_the_field(http, engine, fields, param) -> None:
    """SEC-4, SEC-11, SEC-13, wire 52: before anything is queued; tensors in a request are refused by name."""
    response = await ask(http, **({"add_special_tokens": False} | fields))
    assert response.status_code == 400, response.text
    assert param is None or response.json()["error"]["param"] == param, response.text
    assert not engine.submitted and not engine.open


async def test_best_of_equal_to_n_is_accepted(http) -> None:
    assert (await ask(http, n=2, best_of=2, suffix="")).status_code == 200


async def test_one_bad_prompt_among_many_leaves_none_running(http, engine) -> None:
    """REL-1: prompts that were queued before the bad one are withdrawn."""
    response = await ask(http, prompt=[[97], [98], [999]])
    assert response.status_code == 400 and len(engine.submitted) == 2
    assert not engine.open and sorted(engine.aborted) == sorted(call.request_id for call in engine.submitted)


async def test_one_failing_prompt_fails_the_request_and_ends_the_others(http, engine) -> None:
    engine.fail_after = (2, RuntimeError("bug"))
    response = await ask(http, prompt=["a", "b", "c"])
    assert response.status_code == 500 and response.json()["error"]["code"] == "internal_error"
    assert not engine.open
