"""Every limit is documented, is what the document says, and holds."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from quire.base.config import SchedulerConfig, ServerConfig, parse_bytes
from quire.base.errors import InvalidRequestError
from quire.base.sampling import SamplingParams
from quire.base.structured import StructuredOutputsParams
from quire.protocol.chat import ChatRequest
from quire.protocol.decode import RequestDecoder
from quire.server.repeats import check_repeats
from quire.text.grammar import grammar_of

ROOT = Path(__file__).resolve().parents[2]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
LIMITED = (
    *("base.sampling", "base.structured", "engine.requests", "engine.text_pool", "protocol.chat", "protocol.common"),
    *("protocol.completions", "protocol.decode", "protocol.errors", "server.auth", "server.connections"),
    *("server.limits", "server.prompts", "server.repeats", "server.sampling", "server.tool_use", "text.grammar"),
    *("text.grammar_checker", "text.grammar_matcher", "text.grammar_process", "text.meter"),
)
"""Modules whose every MAX_ is a limit of requests."""


def rows() -> list[tuple[str, str, str]]:
    """Value, kind (`setting` or empty) and name of each row of the table."""
    text = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    return re.findall(r"^\|[^|]*\| *([^|]*?) *\|[^|]*\| (setting )?`([\w.]+)` \|$", text, re.MULTILINE)


def number(text: str) -> int | None:
    return parse_bytes(text) if text else None


def test_the_table_of_limits_says_what_the_code_does() -> None:
    """SEC-11, SEC-23: each row names a setting or a constant of that value."""
    settings = {spec.name: spec.default for cls in (ServerConfig, SchedulerConfig) for spec in dataclasses.fields(cls)}
    found = rows()
    assert len(found) > 50
    for value, is_setting, name in found:
        if is_setting:
            assert settings[name] == number(value), name
        else:
            module, _, constant = name.rpartition(".")
            assert getattr(importlib.import_module(f"quire.{module}"), constant) == number(value), name


def test_no_limit_is_missing_from_the_table() -> None:
    """SEC-11, SEC-23: every constant of the modules that hold limits has a row."""
    listed = {name for _, _, name in rows()}
    missing = []
    for module in LIMITED:
        source = (ROOT / "src" / "quire" / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")
        names = re.findall(r"^(MAX_\w+|\w+_SECONDS|RESERVED) = ", source, re.MULTILINE)
        missing += [f"{module}.{name}" for name in names if f"{module}.{name}" not in listed]
    allowed = {
        "server.auth.FULL_RETRY_SECONDS",
        "engine.text_pool.RETRY_SECONDS",
        "server.limits.DISCARD_SECONDS",
        "server.limits.SILENT_SECONDS",
        "text.grammar_checker.START_SECONDS",
    }
    assert set(missing) <= allowed


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def schema_format(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"messages": MESSAGES * 4097}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 1025}]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 1024}] * 17}, "messages"),
        (CHAT, {"n": 129}, "n"),
        (CHAT, {"stop": ["x"] * 17}, "stop"),
        (CHAT, {"stop": "x" * 1025}, "stop"),
        (CHAT, {"bad_words": ["x"] * 129}, "bad_words"),
        (CHAT, {"bad_words": ["x" * 1025]}, "bad_words"),
        (CHAT, {"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"prompt_logprobs": 21}, "prompt_logprobs"),
        (CHAT, {"tools": [tool(f"f{i}") for i in range(257)]}, "tools"),
        (CHAT, {"tools": [tool("f", description="x" * 2**20)]}, "tools"),
        (CHAT, {"functions": [{"name": "f", "description": "x" * 2**20}]}, "functions"),
        (CHAT, {"chat_template_kwargs": {"x": "x" * 2**16}}, "chat_template_kwargs"),
        (CHAT, {"structured_outputs": {"choice": ["x"] * 1025}}, "structured_outputs.choice"),
        (CHAT, {"response_format": {"type": "structural_tag", "structures": [{}] * 257, "triggers": ["x"]}}, None),
        (COMPLETIONS, {"prompt": ["x"] * 1025}, "prompt"),
        (COMPLETIONS, {"prompt": "x", "logprobs": 6}, "logprobs"),
        (COMPLETIONS, {"prompt": ["x"] * 1000, "n": 17}, "n"),
        (COMPLETIONS, {"prompt": ["x"] * 1000, "allowed_token_ids": [1] * 20_000}, None),
        (COMPLETIONS, {"prompt": "x" * (4096 * 128 + 1)}, "prompt"),
        ("/tokenize", {"prompt": "x" * (8 * 2**20 + 1)}, None),
        ("/tokenize", {"messages": MESSAGES, "tools": [tool("f")] * 257}, "tools"),
        ("/tokenize", {"messages": MESSAGES, "tools": [tool("f", x="x" * 2**20)]}, "tools"),
        ("/v1/messages", {"max_tokens": 1, "messages": MESSAGES, "stop_sequences": ["x"] * 17}, None),
        ("/v1/responses", {"input": "x", "stop": ["x"] * 17}, "stop"),
        ("/v1/responses", {"input": "x", "logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_beyond_a_limit_is_a_400_that_names_the_field(http, engine, path, fields, param) -> None:
    """SEC-11, SEC-23: counts and sizes, on every kind of route, and nothing reaches the engine."""
    body = ({"messages": MESSAGES} if path == CHAT else {}) | fields | {"model": "quire-demo"}
    response = await http.post(path, json=body)
    assert response.status_code == 400, response.text
    assert len(response.content) <= 4096 and not engine.submitted
    if param is not None:
        assert response.json()["error"]["param"].startswith(param)


@pytest.mark.parametrize(
    "given",
    [
        {"json": nested(65)},
        {"json": {"enum": ["x"] * 300_000}},
        {"json": {"properties": {f"p{i}": {} for i in range(200_000)}}},
        {"json": {"description": "x" * 300_000}},
        {"regex": "x" * 16_385},
        {"grammar": "start: " + "x" * 300_000},
        {"choice": ["x"] * 1025},
        {"structural_tag": {"structures": [{"begin": "<a>"}] * 257, "triggers": ["<"]}},
        {"structural_tag": {"structures": [{"begin": "<a>"}], "triggers": ["<"] * 257}},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_constraint_beyond_its_limits_is_refused_before_it_is_compiled(given) -> None:
    """SEC-11, SEC-18: sizes, depth and counts."""
    with pytest.raises(InvalidRequestError):
        grammar_of(StructuredOutputsParams(**given))


def test_lists_are_bounded_while_they_are_decoded() -> None:
    """SEC-11: the decoder stops, so that what is refused was never built."""
    decoder = RequestDecoder(ChatRequest)
    for field, value in (("stop", ["x"] * 17), ("bad_words", ["x"] * 129), ("messages", MESSAGES * 4097)):
        with pytest.raises(InvalidRequestError, match=r"length <= \d+") as refused:
            decoder.decode(json.dumps({"messages": MESSAGES} | {field: value}).encode())
        assert refused.value.param == field


@pytest.mark.parametrize(
    ("fields", "num_prompts", "fits"),
    [
        ({"n": 128}, 128, True),
        ({"n": 128}, 129, False),
        ({"allowed_token_ids": list(range(100_000))}, 1, True),
        ({"allowed_token_ids": list(range(100_000))}, 1000, False),
        ({"structured_outputs": StructuredOutputsParams(json={"description": "x" * 100_000})}, 1000, False),
        ({"bad_words": ["x" * 1000] * 128}, 1000, False),
        ({"stop": ["x"], "logit_bias": {1: 1.0}}, 1024, True),
    ],
)
def test_what_prompts_carry_is_bounded_together(fields, num_prompts, fits) -> None:
    """SEC-11: a thousand prompts with a million ids each would be gigabytes of messages."""
    if fits:
        check_repeats(SamplingParams(**fields), num_prompts)
    else:
        with pytest.raises(InvalidRequestError):
            check_repeats(SamplingParams(**fields), num_prompts)
