"""Tool calls: choosing the function, filling its arguments, answering from its result.

Knows: how a tool of `tool_specs.py` becomes a definition, a call and a reply.
Does not know: the text form of a call, which is the chat template's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tools.tiny_model.corpus import tool_specs
from tools.tiny_model.corpus.source import Source
from tools.tiny_model.corpus.tool_specs import SPECS, Spec
from tools.tiny_model.corpus.types import Answer, Episode, Message, Tool, assistant, user


@dataclass(frozen=True)
class OfferedTool:
    """One variant of a tool as offered in a conversation."""

    spec: Spec
    name: str
    parameters: tuple[str, ...]
    definition: Tool


_ODD_SHARE = 0.3
_VERBS = ("get", "find", "run", "do", "make", "call", "new")


def offer(s: Source, count: int) -> tuple[OfferedTool, ...]:
    """Returns that many different tools, each in one of its variants."""
    return tuple(_variant(s, spec) for spec in s.rng.sample(SPECS, count))


def _variant(s: Source, spec: Spec) -> OfferedTool:
    # Names that nobody could guess teach to read the definition.
    odd = s.split == "train" and s.chance(_ODD_SHARE)
    name = f"{s.pick(_VERBS)}_{s.word()}" if odd and s.chance(0.7) else s.pick(spec.names)
    properties: dict[str, Any] = {}
    described = s.chance(0.6)
    for parameter in spec.parameters:
        choice = s.word() if odd and s.chance(0.7) else s.pick(parameter.names)
        while choice in properties:
            choice = s.word()
        properties[choice] = {"type": parameter.type}
        if described:
            properties[choice]["description"] = s.pick(parameter.descriptions)
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if s.chance(0.8):
        schema["required"] = list(properties)
    function: dict[str, Any] = {"name": name, "description": s.pick(spec.descriptions), "parameters": schema}
    if s.chance(0.1):
        del function["description"]
    return OfferedTool(spec, name, tuple(properties), {"type": "function", "function": function})


def _draw(s: Source, fill: str) -> str | int:
    if fill == "number":
        return s.number(2)
    if fill == "big":
        return int(s.figure(lambda: str(s.rng.randrange(100, 99999))))
    if fill == "clock":
        return s.figure(lambda: f"{s.rng.randrange(24):02d}:{s.rng.randrange(60):02d}")
    if fill == "words":
        return " ".join(s.word() for _ in range(s.rng.randrange(1, 4)))
    closed = {"language": tool_specs.LANGUAGES, "sky": tool_specs.SKIES, "state": tool_specs.STATES}
    if fill in closed:
        # Closed lists cannot be held out; any word may stand in their place.
        return s.pick(closed[fill]) if s.split == "train" and s.chance(0.7) else s.word()
    draw = {"city": s.city, "name": s.name, "word": s.word}
    return draw[fill]() if fill in draw else fill


def _request(s: Source, tool: OfferedTool) -> tuple[list[str | int], Message, Message]:
    values = [_draw(s, p.fill) for p in tool.spec.parameters]
    text = s.rough(s.pick(tool.spec.requests)).format(*values)
    arguments = dict(zip(tool.parameters, values, strict=True))
    call = {"type": "function", "function": {"name": tool.name, "arguments": arguments}}
    return values, user(text), {"role": "assistant", "content": "", "tool_calls": [call]}


def call_tool(s: Source, offered: tuple[OfferedTool, ...]) -> Episode:
    """A request that one of the offered tools answers; judged is the call."""
    tool = s.pick(offered)
    _, request, call = _request(s, tool)
    function = call["tool_calls"][0]["function"]
    return Episode("tool call", (request, call), Answer("tool call", function), tuple(t.definition for t in offered))


def answer_from_result(s: Source, offered: tuple[OfferedTool, ...]) -> Episode:
    """A request, the call, the tool's result; judged is the final reply."""
    tool = s.pick(offered)
    values, request, call = _request(s, tool)
    result = {key: _draw(s, fill) for key, fill in tool.spec.result}
    content = json.dumps(result)
    found = list(result.values())
    reply = tool.spec.reply.format(*values, r=found[0], r2=found[-1])
    if len(found) == 1 and s.chance(0.15):
        content = str(found[0])
    messages = (request, call, {"role": "tool", "content": content}, assistant(reply))
    answer = Answer("exact", reply)
    return Episode("tool result", messages, answer, tuple(t.definition for t in offered))
