"""How hard to think: what becomes of an effort under each kind of template, and through each API."""

import pytest

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
TURN = [{"role": "user", "content": "hello"}]


def bodies(effort):
    return [
        (CHAT, {"messages": TURN, "reasoning_effort": effort}),
        (RESPONSES, {"input": "hello", "reasoning": {"effort": effort}}),
        (MESSAGES, {"model": "quire-demo", "max_tokens": 8, "messages": TURN, "output_config": {"effort": effort}}),
    ]


async def warnings_of(http, url, body):
    answer = await http.post(url, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json().get("warnings", [])


async def test_a_template_that_reads_an_effort_gets_it(http, engine):
    engine.traits.reads_effort = True
    for url, body in bodies("high"):
        assert await warnings_of(http, url, body) == []
        assert engine.rendered[-1]["reasoning_effort"] == "high"


@pytest.mark.parametrize(("effort", "is_on", "num_notes"), [("none", False, 0), ("medium", True, 0), ("high", True, 1)])
async def test_a_template_with_a_switch_is_switched_and_a_finer_wish_is_noted(http, engine, effort, is_on, num_notes):
    engine.traits.thinking_switch = "enable_thinking"
    for url, body in bodies(effort):
        notes = await warnings_of(http, url, body)
        assert engine.rendered[-1]["enable_thinking"] is is_on
        assert len(notes) == num_notes and all("turns reasoning on and off" in note for note in notes)


async def test_an_effort_no_template_knows_is_noted_and_refused_when_strict(http, engine):
    """N10."""
    for url, body in bodies("low"):
        (note,) = await warnings_of(http, url, body)
        assert note.startswith("reasoning effort: ")
        answer = await http.post(url, json=body | {"strict": True})
        assert answer.status_code == 400 and "reasoning effort" in answer.json()["error"]["message"]


async def test_no_reasoning_of_a_model_that_does_not_reason_is_what_it_does_anyway(http):
    for url, body in bodies("none"):
        assert await warnings_of(http, url, body) == []


async def test_the_templates_own_argument_beats_the_effort(http, engine):
    engine.traits.thinking_switch = "thinking"
    body = {"messages": TURN, "reasoning_effort": "high", "chat_template_kwargs": {"thinking": False}}
    await warnings_of(http, CHAT, body)
    assert engine.rendered[-1]["thinking"] is False
