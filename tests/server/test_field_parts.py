"""Fields within the parts of a body: those without effect change nothing, those that are refused are a 400."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from field_samples import FUNCTION, OUR_TOOLS, SCHEMA, TALK

from quire.base.config import ServerConfig
from quire.protocol.anthropic import BLOCKS
from quire.protocol.effects import EFFECT_KEY, ONLY_KEY
from quire.protocol.responses import CallItem, CallOutputItem, FlatTool, MessageItem, ReasoningItem, TextPart
from quire.server.app import create_app

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "x"}
SAID = {"role": "assistant", "content": "Hello."}
USE = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "x"}
EPHEMERAL = {"type": "ephemeral"}


def chat(**more: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"model": "quire-demo", "messages": TALK} | more


def responses(*items: dict[str, Any], **more: Any) -> tuple[str, dict[str, Any]]:
    return RESPONSES, {"model": "quire-demo", "input": [*TALK, *items]} | more


def messages(*turns: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    return MESSAGES, {"model": "quire-demo", "max_tokens": 8, "messages": list(turns) or TALK} | more


def asks(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def says(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def schema_format(extra: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "name": "n", "schema": SCHEMA} | extra


PLACES: dict[str, Any] = {
    "StreamOptions": lambda part: chat(stream=True, stream_options=part),
    "JsonSchemaFormat": lambda part: chat(
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA} | part}
    ),
    "ContentPart": lambda part: chat(messages=[{"role": "user", "content": [{"type": "text", "text": "Hi"} | part]}]),
    "ChatMessage": lambda part: chat(messages=[*TALK, SAID | part, *TALK]),
    "TextFormat": lambda part: responses(text={"format": schema_format(part)}),
    "TextOptions": lambda part: responses(text=part),
    "ReasoningOptions": lambda part: responses(reasoning=part),
    "ResponsesStreamOptions": lambda part: responses(stream=True, stream_options=part),
    "FlatTool": lambda part: responses(tools=[{"type": "function", **FUNCTION} | part]),
    "MessageItem": lambda part: responses(SAID | part, *TALK),
    "TextPart": lambda part: responses({"role": "user", "content": [{"type": "input_text", "text": "Hi"} | part]}),
    "CallItem": lambda part: responses(CALL | part, OUTPUT),
    "CallOutputItem": lambda part: responses(CALL, OUTPUT | part),
    "ReasoningItem": lambda part: responses({"type": "reasoning", "summary": []} | part, SAID, *TALK),
    "TextParam": lambda part: messages(asks({"type": "text", "text": "Hi"} | part)),
    "ThinkingParam": lambda part: messages(*TALK, says({"type": "thinking", "thinking": "So."} | part), *TALK),
    "ToolUseParam": lambda part: messages(*TALK, says(USE | part), asks(RESULT)),
    "ToolResultParam": lambda part: messages(*TALK, says(USE), asks(RESULT | part)),
    "ToolParam": lambda part: messages(tools=[OUR_TOOLS[0] | part]),
    "ThinkingConfig": lambda part: messages(thinking={"type": "enabled", "budget_tokens": 8} | part),
    "CacheControl": lambda part: messages(cache_control=EPHEMERAL | part),
    "Metadata": lambda part: messages(metadata=part),
}
"""A body with some fields at one place in it."""

NO_EFFECT: dict[str, Any] = {
    "id": "x", "status": "completed", "phase": "final_answer", "annotations": [], "logprobs": [], "strict": True,
    "description": "A thing.", "verbosity": "low", "prompt_cache_breakpoint": {"mode": "explicit"}, "user_id": "u",
    "cache_control": EPHEMERAL, "signature": "s", "eager_input_streaming": True, "ttl": "5m", "type": "ephemeral",
}  # fmt: skip
ONLY: dict[str, tuple[Any, Any]] = {
    "include_obfuscation": (False, True), "summary": ("auto", "detailed"),
    "generate_summary": ("auto", "concise"), "display": ("summarized", "omitted"),
}  # fmt: skip
TYPES = {"FlatTool": ("function", "web_search"), "ToolParam": ("custom", "web_search_20250305")}
REFUSED: dict[str, Any] = {
    "image_url": {"url": "x"}, "input_audio": {}, "file": {}, "video_url": {}, "audio_url": {}, "audio": {"id": "x"},
    "encrypted_content": "x",
}  # fmt: skip


def marked() -> list[tuple[str, str, str]]:
    """Part, field and mark of every field in a part that bears one."""
    schemas = create_app(None, ServerConfig()).openapi()["components"]["schemas"]
    free = [MessageItem, TextPart, CallItem, CallOutputItem, ReasoningItem, FlatTool, *BLOCKS.values()]
    _, more = msgspec.json.schema_components(free, ref_template="{name}")
    found = []
    for part, schema in (schemas | more).items():
        for name, field in schema.get("properties", {}).items():
            mark = "only" if ONLY_KEY in field else field.get(EFFECT_KEY)
            if mark and not part.endswith("Request"):
                found.append((part, name, mark))
    return found


MARKED = marked()


@pytest.fixture
def server(engine, http):
    engine.traits.reasoning_format, engine.traits.thinking_switch = "think", "enable_thinking"
    return http


async def ask(http, engine, part, fields):
    """The status, and what the engine was asked."""
    route, body = PLACES[part](fields)
    engine.submitted.clear()
    engine.rendered.clear()
    answer = await http.post(route, json=body)
    asked = [(one.prompt, repr(one.params)) for one in engine.submitted]
    rendered = [{name: value for name, value in one.items() if name != "size"} for one in engine.rendered]
    return answer, json.dumps([asked, rendered], default=repr)


def test_every_part_with_marks_has_a_place_in_a_body():
    assert {part for part, _, _ in MARKED} == set(PLACES)


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, name, mark in MARKED if mark == "none"])
async def test_a_field_of_a_part_without_effect_changes_nothing(server, engine, part, name):
    _, before = await ask(server, engine, part, {})
    answer, after = await ask(server, engine, part, {name: NO_EFFECT[name]})
    assert answer.status_code == 200, answer.text
    assert after == before and '"warnings"' not in answer.text


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, name, mark in MARKED if mark == "only"])
async def test_a_field_of_a_part_takes_the_values_it_is_said_to_take(server, engine, part, name):
    taken, refused = TYPES[part] if name == "type" else ONLY[name]
    assert (await ask(server, engine, part, {name: taken}))[0].status_code == 200
    answer, _ = await ask(server, engine, part, {name: refused})
    assert answer.status_code == 400 and name in answer.json()["error"]["message"]


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, name, mark in MARKED if mark == "refused"])
async def test_a_field_of_a_part_that_is_refused_is_a_400(server, engine, part, name):
    answer, _ = await ask(server, engine, part, {name: REFUSED[name]})
    assert answer.status_code == 400 and name in answer.json()["error"]["message"]
    assert (await ask(server, engine, part, {name: None}))[0].status_code == 200
