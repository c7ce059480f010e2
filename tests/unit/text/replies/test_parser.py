"""What holds for every format: cuts change nothing, nothing leaks, nothing is lost, work and memory stay in bounds."""

from __future__ import annotations

import json
import random
import sys
import time

import pytest

from quire.text.replies.events import ArgumentsText, CallBegun, CallEnded, ContentText, ReasoningText, ReplyParts
from quire.text.replies.parser import ReplyParser
from quire.text.replies.reading import MAX_CALLS
from quire.text.replies.registry import call_format, reasoning_format
from quire.text.replies.source import MAX_HELD

FORMATS = (
    "hermes",
    "llama3_json",
    "mistral",
    "mistral_v11",
    "pythonic",
    "deepseek_v3",
    "deepseek_v31",
    "qwen3_coder",
)
ANYWHERE = tuple(name for name in FORMATS if name not in ("llama3_json", "pythonic"))
"""Formats whose marks count in the midst of content too."""
NOISE = [
    "<",
    ">",
    "[",
    "]",
    "{",
    "}",
    '"',
    "'",
    "\\",
    "\n",
    " ",
    "<think>",
    "</think>",
    "<tool_call>",
    ",",
    ":",
    "é",
    "x",
    "null",
    "[TOOL_CALLS]",
    "<｜tool▁call▁begin｜>",
    "```",
    "12",
    "</parameter>",
    "<|python_tag|>",
    "(",
    ")",
    "=",
]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("knows_tools", [True, False])
def test_two_calls_are_read_in_every_format(name, knows_tools, samples, tools, parse):
    """D7: calls, names and arguments, the same in every format."""
    reply = parse(name, samples[name], tools=tools if knows_tools else None)
    assert [(call.name, json.loads(call.arguments), call.is_complete) for call in reply.calls] == [
        ("weather", {"city": "Köln", "days": 2}, True),
        ("now", {}, True),
    ]
    assert (reply.content, reply.reasoning) == ("", "")


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_without_arguments_has_an_empty_object(name, samples, parse):
    """wire.md 32."""
    assert parse(name, samples[name]).calls[1].arguments == "{}"


@pytest.mark.parametrize("name", ANYWHERE)
def test_text_before_and_after_calls_is_content_without_the_whitespace_at_the_markup(name, samples, parse):
    reply = parse(name, f"Let me look.\n\n{samples[name]}\n\nDone.\n")
    assert reply.content == "Let me look.\n\nDone.\n"
    assert len(reply.calls) == 2


@pytest.mark.parametrize("name", FORMATS)
def test_reasoning_comes_before_calls_and_markup_within_it_is_no_call(name, samples, parse):
    reply = parse(name, f"<think>\nShould I? {samples[name]}\n</think>\n\n{samples[name]}", reasoning="think")
    assert reply.reasoning == f"Should I? {samples[name]}"
    assert [call.name for call in reply.calls] == ["weather", "now"]
    assert reply.content == ""


def _well_formed(events):
    """Whether calls begin once, in order, and only open calls get arguments; no event is empty."""
    begun, is_open = 0, False
    for event in events:
        match event:
            case CallBegun(index, name):
                assert (index, is_open) == (begun, False) and name
                begun, is_open = begun + 1, True
            case ArgumentsText(index, text):
                assert (index, is_open) == (begun - 1, True) and text
            case CallEnded(index, _):
                assert (index, is_open) == (begun - 1, True)
                is_open = False
            case ContentText(text) | ReasoningText(text):
                assert text and not is_open
    assert not is_open


def _mutate(text, chance):
    """A reply of a model that errs: characters and marks lost, doubled, put in, or the end cut off."""
    for _ in range(chance.randint(0, 3)):
        place = chance.randint(0, len(text))
        length = chance.choice((0, 0, 1, 5))
        text = text[:place] + chance.choice(("", *NOISE)) + text[place + length :]
    return text[: chance.randint(0, len(text))] if chance.random() < 0.4 else text


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("reasoning", ["none", "think"])
def test_cuts_change_nothing_whatever_the_model_writes(name, reasoning, samples, tools, events_of, joined, cut):
    """D7, REL-14, wire.md 30-32: fragments join to the result of the whole, field by field."""
    for seed in range(150):
        chance = random.Random(f"{name} {reasoning} {seed}")
        lead = chance.choice(("", "", "Hello. ", "<think>a</think>\n", "[", "\n"))
        text = _mutate(lead + samples[name] + chance.choice(("", "\nBye.", "\n" + samples[name])), chance)
        options = {"reasoning": reasoning, "tools": chance.choice((None, tools))}
        options["starts_in_reasoning"] = chance.random() < 0.2
        whole = events_of(name, [text], **options)
        _well_formed(whole)
        for pieces in (list(text), cut(text, seed), cut(text, seed + 0.5)):
            events = events_of(name, pieces, **options)
            _well_formed(events)
            assert joined(events) == joined(whole), text
        for call in ReplyParts().add(whole).calls:
            assert not call.is_complete or isinstance(json.loads(call.arguments, strict=False), object)


@pytest.mark.parametrize("name", FORMATS)
def test_a_reply_cut_anywhere_keeps_what_was_there(name, samples, tools, events_of):
    """Every prefix: complete calls are those of the whole, an open one has the beginning of the whole's arguments."""
    whole = ReplyParts().add(events_of(name, [samples[name]], tools=tools))
    for end in range(len(samples[name])):
        reply = ReplyParts().add(events_of(name, [samples[name][:end]], tools=tools))
        for call, expected in zip(reply.calls, whole.calls, strict=False):
            assert call.name == expected.name
            if call.is_complete:
                assert call.arguments == expected.arguments
            elif name != "qwen3_coder":
                assert expected.arguments.startswith(call.arguments)
        # What was not announced is there as content.
        assert samples[name][:end].endswith(reply.content)
        assert reply.calls or reply.content == samples[name][:end]


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_that_may_be_markup_is_shown_before_it_is_certain(name, samples):
    """wire.md 35: what was shown so far is never part of the calls."""
    parser = ReplyParser(call_format(name), None)
    shown = "".join(e.text for c in samples[name] for e in parser.push(c) if isinstance(e, ContentText))
    assert shown == ""


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "text", ["", " ", "plain text\n", "a < b [c] {d} <t", "\n\n  indented", "x" * 1000, "\n" * 600]
)
def test_text_without_markup_comes_out_unchanged(name, text, parse):
    assert parse(name, text).content == text
    assert parse(name, text, reasoning="think").content == text


def test_without_formats_text_passes_at_once():
    parser = ReplyParser(None, None)
    assert parser.push("<tool_call> \n") == [ContentText("<tool_call> \n")]
    assert parser.finish() == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_tool_that_does_not_exist_is_content(name, samples, tools, parse):
    reply = parse(name, samples[name], tools=tools[1:])
    assert "weather" in reply.content
    assert [call.name for call in reply.calls] in ([], ["now"])


def test_content_streams_before_a_call_and_arguments_stream_before_its_end():
    parser = ReplyParser(call_format("hermes"), None)
    assert parser.push("I will look") == [ContentText("I will look")]
    assert parser.push("\n<tool_call>\n") == []
    assert parser.push('{"name": "f", "arguments": {"a') == [CallBegun(0, "f"), ArgumentsText(0, '{"a')]
    assert parser.push('": 1}') == [ArgumentsText(0, '": 1}')]
    assert parser.push("}\n</tool_call>") == [CallEnded(0, is_complete=True)]
    assert parser.push("\n") == parser.finish() == []


HOSTILE = [
    "<",
    "[",
    "{",
    "\n",
    "a \n",
    "\\",
    '"',
    "<tool_call>",
    "<tool_call>{",
    '<tool_call>{"a":',
    "[TOOL_CALLS]",
    "[TOOL_CALLS][",
    '{"a": [',
    '{"name": "f", "parameters": ',
    "[f(",
    "[f(a=[",
    "<function=f>",
    "<function=f><parameter=a>\n",
    "</parameter",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{",
    "<think>",
    "</think>",
    "1",
    "1,",
    "a=1,",
    "g(),",
    ',"a":1',
    "{}",
    ";",
]
OPENINGS = [
    "",
    '<tool_call>{"name": "f", "arguments": {"a": "',
    '<tool_call>{"arguments": {"a": "',
    "[f(a='",
    "[f(",
    '<tool_call>{"name": "f", "arguments": {}',
    "[f(a=",
    "[f(a=" + "[" * 30 + "1,",
    "<function=f><parameter=a>",
    '{"name": "f", "parameters": {"a": [',
    '[TOOL_CALLS]f[ARGS]{"a": "',
]


def _work(parser, pieces):
    """Lines of Python that parsing runs: what time is proportional to, without a clock."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for piece in pieces:
            parser.push(piece)
        parser.finish()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_output_costs_a_bounded_amount_of_work_per_character(name):
    """SEC-20: no text makes the parser look back again and again."""
    most = {1: 300, 400: 100}
    for opening in OPENINGS:
        for unit in HOSTILE:
            text = (opening + unit * 400)[:400]
            for size, limit in most.items():
                pieces = [text[i : i + size] for i in range(0, len(text), size)]
                parser = ReplyParser(call_format(name), reasoning_format("think"))
                assert _work(parser, pieces) < limit * len(text), (opening, unit, size)


@pytest.mark.parametrize("name", FORMATS)
def test_work_grows_with_the_length_and_not_faster(name):
    """SEC-20: eight times the text takes at most eight times the work, and a little."""
    for unit in HOSTILE:
        short, long = (
            _work(ReplyParser(call_format(name), None), (unit * (length // len(unit)))[:length].partition("~"))
            for length in (400, 3200)
        )
        assert long < 8.8 * short + 2000, unit


@pytest.mark.parametrize("name", FORMATS)
def test_a_megabyte_of_noise_is_read_in_seconds(name):
    """SEC-20: whatever the model writes; processor time, for the machine may be busy."""
    chance = random.Random(7)
    text = "".join(chance.choices(NOISE + HOSTILE, k=2**20 // 4))
    parser = ReplyParser(call_format(name), reasoning_format("think"))
    began, num_shown = time.process_time(), 0
    for place in range(0, len(text), 64):
        num_shown += len(parser.push(text[place : place + 64]))
    num_shown += len(parser.finish())
    assert len(text) > 2**20 and num_shown > 0
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "text", ['<tool_call>{"arguments": {"a": "', '<tool_call>{"', "<tool_call>", '<tool_call>{"a": [']
)
def test_held_back_text_is_bounded(text):
    """A call whose name does not come is given up: it is content, all of it."""
    parser = ReplyParser(call_format("hermes"), None)
    filler = "1," if text.endswith("[") else "\n" if text.endswith(">") else "x"
    whole = text + filler * (MAX_HELD + 1000)
    pushed = shown = 0
    for place in range(0, len(whole), 997):
        piece = whole[place : place + 997]
        pushed += len(piece)
        shown += sum(len(event.text) for event in parser.push(piece))
        assert pushed - shown <= MAX_HELD + 997
    assert shown + sum(len(event.text) for event in parser.finish()) == len(whole)


def test_nesting_is_bounded():
    reply = ReplyParts().add(ReplyParser(call_format("llama3_json"), None).push('{"a": ' + "[" * 5000))
    assert reply.content.startswith('{"a": [[[')
    parser = ReplyParser(call_format("pythonic"), None)
    reply = ReplyParts().add([*parser.push("[f(a=" + "[" * 5000), *parser.finish()])
    assert [(call.name, call.is_complete) for call in reply.calls] == [("f", False)]


def test_the_number_of_calls_is_bounded(events_of, joined):
    text = "[" + "g(), " * (MAX_CALLS + 3) + "]"
    reply = ReplyParts().add(events_of("pythonic", [text]))
    assert len(reply.calls) == MAX_CALLS
    assert reply.content.strip(", ") == "g(), g(), g(), ]"
