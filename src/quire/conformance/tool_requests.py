"""Requests that make any model call a tool: choices are forced, and arguments are bounded so that a call ends soon."""

from __future__ import annotations

from typing import Any

from quire.conformance.events import JsonObject
from quire.conformance.target import user

REQUIRED = "required"
NAMED: JsonObject = {"type": "function", "function": {"name": "get_weather"}}
CLOCK: JsonObject = {"type": "function", "function": {"name": "get_time"}}
CALL_TOKENS = 256
WEATHER_SCHEMA: JsonObject = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Rome"]},
        "unit": {"type": "string", "enum": ["C", "F"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
_NO_PARAMETERS: JsonObject = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS: list[JsonObject] = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "The weather in a city.", "parameters": WEATHER_SCHEMA},
    },
    {
        "type": "function",
        "function": {"name": "get_time", "description": "The time of day.", "parameters": _NO_PARAMETERS},
    },
]


def call_fields(choice: Any, **more: Any) -> JsonObject:
    """Fields of a chat request whose answer calls tools as `choice` (a `tool_choice`) says."""
    question = user("What is the weather in Oslo and in Rome, in C?")
    return {"messages": question, "tools": TOOLS, "tool_choice": choice, "max_tokens": CALL_TOKENS, **more}
