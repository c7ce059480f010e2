"""One reply per format as its model writes it, and parsing in pieces."""

from __future__ import annotations

import random

import pytest

from quire.text.replies.events import ArgumentsText, ContentText, ReasoningText, ReplyParts
from quire.text.replies.parser import ReplyParser
from quire.text.replies.registry import call_format, reasoning_format
from quire.text.replies.tool import Tool

DEEPSEEK_V3 = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    '{"city": "Köln", "days": 2}\n```<｜tool▁call▁end｜>\n'
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
SAMPLES = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "llama3_json": '{"name": "weather", "parameters": {"city": "Köln", "days": 2}}; {"name": "now", "parameters": {}}',
    "mistral": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Köln", "days": 2}}, '
    '{"name": "now", "arguments": {}}]',
    "mistral_v11": '[TOOL_CALLS]weather[ARGS]{"city": "Köln", "days": 2}[TOOL_CALLS]now[ARGS]{}',
    "pythonic": '[weather(city="Köln", days=2), now()]',
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
    '{"city": "Köln", "days": 2}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>'
    "<｜tool▁calls▁end｜>",
    "qwen3_coder": "<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n"
    "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
}
"""The same two calls in every format."""

TOOLS = [
    Tool(
        "weather",
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    ),
    Tool("now"),
]


def _events(format_name, pieces, *, reasoning="none", **options):
    parser = ReplyParser(call_format(format_name), reasoning_format(reasoning), **options)
    events = [event for piece in pieces for event in parser.push(piece)]
    return events + parser.finish()


def _joined(events):
    """Events with neighbouring fragments of a kind put together: what must not depend on the cuts."""
    joined = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, ContentText | ReasoningText | ArgumentsText) and type(event) is type(last):
            rest = {"index": event.index} if isinstance(event, ArgumentsText) else {}
            joined[-1] = type(event)(text=last.text + event.text, **rest)
        else:
            joined.append(event)
    return joined


def _cut(text, seed):
    """`text` in random pieces, empty ones among them."""
    chance = random.Random(seed)
    places = sorted(chance.randint(0, len(text)) for _ in range(chance.randint(0, 12)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.fixture(scope="session")
def samples():
    return dict(SAMPLES)


@pytest.fixture(scope="session")
def tools():
    return list(TOOLS)


@pytest.fixture(scope="session")
def events_of():
    """`events_of(format, pieces, reasoning=..., tools=...)`: all events, in order."""
    return _events


@pytest.fixture(scope="session")
def joined():
    return _joined


@pytest.fixture(scope="session")
def cut():
    return _cut


@pytest.fixture(scope="session")
def parse():
    """`parse(format, text, ...)`: what a reply consists of, the same however it is cut."""

    def run(format_name, text, **options):
        whole = _events(format_name, [text], **options)
        assert _joined(_events(format_name, list(text), **options)) == _joined(whole)
        assert _joined(_events(format_name, _cut(text, len(text)), **options)) == _joined(whole)
        return ReplyParts().add(whole)

    return run
