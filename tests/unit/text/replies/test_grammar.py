"""Grammars that force calls, hold calls in free text to their schemas, and shape answers: what llguidance accepts of
them, and that parsers read what they force."""

from __future__ import annotations

import dataclasses
import json

import pytest

from quire.base.errors import InvalidRequestError
from quire.base.structured import StructuredOutputsParams
from quire.text.grammar import grammar_of
from quire.text.replies.call_format import TriggeredFormat
from quire.text.replies.grammar import (
    ReplyMarks,
    forced_calls_grammar,
    shaped_answer_grammar,
    triggered_calls_grammar,
)
from quire.text.replies.reasoning import MISTRAL, THINK
from quire.text.replies.registry import CALL_FORMATS, call_format
from quire.text.replies.tool import Tool

FORMATS = tuple(name for name in CALL_FORMATS if name != "none")
TRIGGERED = tuple(name for name in FORMATS if isinstance(CALL_FORMATS[name], TriggeredFormat))
ANSWER = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
MARKS = (
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<think>",
    "</think>",
    "[THINK]",
    "[/THINK]",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
)
EOS = 1
SPECIAL = {mark: 258 + index for index, mark in enumerate(MARKS)}
VOCABULARY = [b"<pad>", b"</s>", *(bytes([byte]) for byte in range(256)), *(mark.encode() for mark in MARKS)]


class ByteTokenizer:
    """A token per byte, and one per mark."""

    eos_token_id = EOS
    bos_token_id = None
    tokens = VOCABULARY
    special_token_ids = (0, 1, *SPECIAL.values())
    is_tokenizer_wrapper = True

    def __call__(self, text):
        return [byte + 2 for byte in (text if isinstance(text, bytes) else text.encode())]


@pytest.fixture(scope="module")
def accepts():
    """`accepts(grammar, text, special)`: whether a whole reply fits; `special`: marks are tokens of their own."""
    llguidance = pytest.importorskip("llguidance")
    tokenizer = llguidance.LLTokenizer(ByteTokenizer(), n_vocab=len(VOCABULARY), eos_token=[EOS])

    def check(grammar, text, special):
        matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0)
        assert not matcher.is_error(), matcher.get_error() + grammar
        assert not matcher.get_grammar_warnings()
        ids = _encode(text) if special else [byte + 2 for byte in text.encode()]
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    return check


def _encode(text):
    ids = []
    while text:
        mark = next((mark for mark in MARKS if text.startswith(mark)), None)
        ids += [SPECIAL[mark]] if mark else [byte + 2 for byte in text[0].encode()]
        text = text[len(mark or text[0]) :]
    return ids


def marks_of(name, *, special=True, reasoning=None, starts_in_reasoning=False):
    return ReplyMarks(
        calls=call_format(name),
        reasoning=reasoning,
        special_id=SPECIAL.get if special else lambda text: None,
        starts_in_reasoning=starts_in_reasoning,
    )


def grammar(name, tools, *, parallel=True, **options):
    return forced_calls_grammar(marks_of(name, **options), tools, parallel=parallel)


def first_call(name, text):
    """The first of the two calls of a sample, closed as the format closes it."""
    second = {
        "hermes": '\n<tool_call>\n{"name": "now"',
        "llama3_json": '; {"name": "now"',
        "mistral": ', {"name": "now"',
        "mistral_v11": "[TOOL_CALLS]now",
        "pythonic": ", now(",
        "deepseek_v3": "\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now",
        "deepseek_v31": "<｜tool▁call▁begin｜>now",
        "qwen3_coder": "\n<tool_call>\n<function=now>",
    }[name]
    closing = {"mistral": "]", "pythonic": "]", "deepseek_v3": MARKS[9], "deepseek_v31": MARKS[9]}.get(name, "")
    return text[: text.index(second)].replace("[TOOL_CALLS] [", "[TOOL_CALLS][") + closing


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("special", [True, False])
def test_one_or_more_calls_are_accepted_and_exactly_one_without_parallel_calls(name, special, samples, tools, accepts):
    """wire.md 34: `tool_choice` required, and `parallel_tool_calls` false."""
    both, one = samples[name].replace("[TOOL_CALLS] [", "[TOOL_CALLS]["), first_call(name, samples[name])
    many, single = (grammar(name, tools, special=special, parallel=parallel) for parallel in (True, False))
    assert accepts(many, both, special)
    assert accepts(many, one, special)
    assert accepts(single, one, special)
    assert not accepts(single, both, special)
    for text in ("", "Hello", "Hello " + one, one + " Hello", one[:-1]):
        assert not accepts(many, text, special), text


@pytest.mark.parametrize("name", FORMATS)
def test_a_named_function_is_the_only_one(name, samples, tools, accepts):
    one = first_call(name, samples[name])
    assert accepts(grammar(name, tools[:1], parallel=False), one, True)
    assert not accepts(grammar(name, tools[1:], parallel=False), one, True)


@pytest.mark.parametrize("name", FORMATS)
def test_arguments_fit_the_schema(name, samples, tools, accepts):
    one = first_call(name, samples[name])
    forced = grammar(name, tools)
    days, wrong = ("\n2\n", "\ntwo\n") if name == "qwen3_coder" else ("2", '"two"')
    assert accepts(forced, one.replace(days, wrong.replace("two", "3").replace('"', "")), True)
    assert not accepts(forced, one.replace(days, wrong), True)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("style", [THINK, MISTRAL])
def test_reasoning_may_come_first_and_must_end_where_the_prompt_began_it(name, special, style, samples, tools, accepts):
    one = first_call(name, samples[name])
    may = grammar(name, tools, special=special, reasoning=style)
    must = grammar(name, tools, special=special, reasoning=style, starts_in_reasoning=True)
    thought = f'Hm.\n\n[{{1" {style.closing[:3]}{style.closing}\n\n'
    assert accepts(may, one, special)
    assert accepts(may, style.opening + thought + one, special)
    assert not accepts(may, thought + one, special)
    assert accepts(must, thought + one, special)
    assert not accepts(must, one, special)


@pytest.mark.parametrize("name", FORMATS)
def test_the_parser_reads_what_the_grammar_accepts(name, parse, accepts):
    """Values that need care in one format or the other, through both."""
    schema = {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "unit": {"type": "string", "enum": ["°C", "F"]},
            "on": {"type": "boolean"},
            "list": {"type": "array", "items": {"$ref": "#/$defs/n"}},
            "deep": {"type": "object", "properties": {"k": {"type": ["number", "null"]}}},
        },
        "required": ["unit", "list"],
        "$defs": {"n": {"type": "integer"}},
    }
    tools = [Tool("f-1.x", schema), Tool("f-1", {})]
    for value in (
        {"text": 'a "b" \\ \n\té\'', "unit": "°C", "on": True, "list": [1, -2], "deep": {"k": None}},
        {"unit": "F", "list": [], "deep": {"k": 1.5}},
        {"text": "", "unit": "F", "list": [0]},
    ):
        text = written(name, "f-1.x", value)
        assert accepts(grammar(name, tools), text, True), text
        reply = parse(name, text, tools=tools)
        assert [(call.name, json.loads(call.arguments), call.is_complete) for call in reply.calls] == [
            ("f-1.x", value, True)
        ]
        assert reply.content == ""
    assert not accepts(grammar(name, tools), written(name, "f-1.x", {"list": []}), True)
    assert not accepts(grammar(name, tools), written(name, "f-1.x", {"unit": "K", "list": []}), True)


def written(name, function, value):
    """One call as a model of this format writes it."""
    text = json.dumps(value, ensure_ascii=False)
    if name == "pythonic":
        return f"[{function}({', '.join(f'{k}={json.dumps(v, ensure_ascii=False)}' for k, v in value.items())})]"
    if name == "qwen3_coder":
        inner = "".join(
            f"<parameter={k}>\n{v if isinstance(v, str) else json.dumps(v)}\n</parameter>\n" for k, v in value.items()
        )
        return f"<tool_call>\n<function={function}>\n{inner}</function>\n</tool_call>"
    return {
        "hermes": f'<tool_call>\n{{"name": "{function}", "arguments": {text}}}\n</tool_call>',
        "llama3_json": f'{{"name": "{function}", "parameters": {text}}}',
        "mistral": f'[TOOL_CALLS][{{"name": "{function}", "arguments": {text}}}]',
        "mistral_v11": f"[TOOL_CALLS]{function}[ARGS]{text}",
        "deepseek_v3": f"{MARKS[8]}{MARKS[10]}function{MARKS[12]}{function}\n```json\n{text}\n```{MARKS[11]}{MARKS[9]}",
        "deepseek_v31": f"{MARKS[8]}{MARKS[10]}{function}{MARKS[12]}{text}{MARKS[11]}{MARKS[9]}",
    }[name]


def test_whitespace_in_arguments_does_not_go_on_without_end(tools, accepts):
    forced = grammar("mistral_v11", tools)
    assert accepts(forced, '[TOOL_CALLS]weather[ARGS]{\n    "city": "x"\n}', True)
    assert not accepts(forced, '[TOOL_CALLS]weather[ARGS]{"city": ' + " " * 100 + '"x"}', True)


@pytest.mark.parametrize("name", FORMATS)
def test_special_tokens_are_named_by_their_ids_only(name, tools):
    text = grammar(name, tools, reasoning=THINK)
    assert f"<[{SPECIAL['</think>']}]>" in text
    assert not any(mark in text for mark in MARKS)


def test_what_cannot_be_forced_is_refused_with_a_reason(tools):
    with pytest.raises(InvalidRequestError, match="chat template does not show"):
        grammar("none", tools)
    with pytest.raises(InvalidRequestError, match="at least one function"):
        grammar("hermes", [])
    with pytest.raises(InvalidRequestError, match="function name"):
        grammar("hermes", [Tool("a b")])
    with pytest.raises(InvalidRequestError, match="type object"):
        grammar("hermes", [Tool("f", {"type": "string"})])
    for name in ("pythonic", "qwen3_coder"):
        with pytest.raises(InvalidRequestError, match="declared in"):
            grammar(name, [Tool("f", {"type": "object", "required": ["x"]})])
        with pytest.raises(InvalidRequestError, match="name that this model's"):
            grammar(name, [Tool("f", {"properties": {"a b": {}}})])


def triggered(marks, tools, *, parallel=True):
    return triggered_calls_grammar(marks, marks.calls, tools, parallel=parallel)


def wrong(name, text):
    """The calls with a text where the schema wants a number."""
    before, after = ("\n2\n", "\ntwo\n") if name == "qwen3_coder" else ("2", '"two"')
    assert before in text
    return text.replace(before, after)


def spelled(name, text):
    return text.replace("[TOOL_CALLS] [", "[TOOL_CALLS][") if name == "mistral" else text


@pytest.mark.parametrize("name", TRIGGERED)
@pytest.mark.parametrize("special", [True, False])
def test_text_is_free_and_calls_within_it_fit_their_schemas(name, special, samples, tools, accepts):
    calls = spelled(name, samples[name])
    grammar = triggered(marks_of(name, special=special), tools)
    for text in ("", "Hello {[<", calls, "Let me see.\n" + calls, calls + "\nDone.", "a\n" + calls + "b" + calls):
        assert accepts(grammar, text, special), text
    for text in (wrong(name, calls), "Let me see." + wrong(name, calls), calls.replace("weather", "climate")):
        assert not accepts(grammar, text, special), text


@pytest.mark.parametrize("name", TRIGGERED)
def test_every_mark_that_begins_a_call_binds(name, tools, accepts):
    for trigger in call_format(name).triggers:
        for special in (True, False):
            grammar = triggered(marks_of(name, special=special), tools)
            assert not accepts(grammar, trigger, special)
            assert not accepts(grammar, f"Hm. {trigger} and more", special)


@pytest.mark.parametrize("name", TRIGGERED)
def test_there_is_one_call_at_most_without_parallel_calls(name, samples, tools, accepts):
    calls, grammar = spelled(name, samples[name]), triggered(marks_of(name), tools, parallel=False)
    assert not accepts(grammar, calls, True) and not accepts(grammar, calls + calls, True)


@pytest.mark.parametrize("name", TRIGGERED)
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("style", [THINK, MISTRAL])
def test_marks_within_reasoning_bind_nothing(name, special, style, samples, tools, accepts):
    calls, trigger = spelled(name, samples[name]), call_format(name).triggers[0]
    trigger = "" if special else trigger  # special tokens are no part of free text, reasoning included
    thought = f"I could {trigger} that.{style.closing}\n\n"
    may = triggered(marks_of(name, special=special, reasoning=style), tools)
    must = triggered(marks_of(name, special=special, reasoning=style, starts_in_reasoning=True), tools)
    for text in ("", "Hello", calls, "Hello" + calls):
        assert accepts(may, text, special), text
        assert accepts(may, style.opening + thought + text, special), text
        assert accepts(must, thought + text, special), text
    for text in (wrong(name, calls), "Hello" + wrong(name, calls)):
        assert not accepts(may, text, special)
        assert not accepts(may, style.opening + thought + text, special)
        assert not accepts(must, thought + text, special)
    assert not accepts(must, "Hm.", special) and not accepts(may, style.opening + "Hm.", special)
    if not special:
        assert accepts(may, "\n" + style.opening + thought + calls, special)
        assert accepts(may, calls + style.opening, special)


@pytest.mark.parametrize("name", FORMATS)
def test_a_tool_that_is_not_strict_takes_any_arguments(name, samples, tools, accepts, parse):
    calls = spelled(name, samples[name])
    free = [dataclasses.replace(tool, is_free=True) for tool in tools]
    answer = grammar_of(StructuredOutputsParams(choice=["yes"]))
    grammar = shaped_answer_grammar(marks_of(name), answer, tools=free)
    assert accepts(grammar, calls, True) and accepts(grammar, wrong(name, calls), True)
    assert not accepts(grammar, calls.replace("weather", "climate"), True)
    (first, _) = parse(name, wrong(name, calls), tools=tools).calls
    assert first.is_complete and json.loads(first.arguments)["days"] == "two"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("special", [True, False])
def test_an_answer_is_calls_or_has_its_shape(name, special, samples, tools, accepts):
    calls, answer = spelled(name, samples[name]), grammar_of(StructuredOutputsParams(json=ANSWER))
    grammar = shaped_answer_grammar(marks_of(name, special=special), answer, tools=tools)
    good = '{"name": "weather", "n": 3}'  # begins as a call of Llama's does
    for text in (calls, good, '{"name": "x", "n": 1}', '{"name":"x","n":1}'):
        assert accepts(grammar, text, special), text
    for text in ("", "Hello", calls + good, good + calls, wrong(name, calls), '{"name": "weather", "n": "x"}', "{}"):
        assert not accepts(grammar, text, special), text


@pytest.mark.parametrize("style", [THINK, MISTRAL])
def test_calls_and_shaped_answers_may_come_behind_reasoning(style, samples, tools, accepts):
    answer = grammar_of(StructuredOutputsParams(regex="[0-9]+"))
    grammar = shaped_answer_grammar(marks_of("hermes", reasoning=style), answer, tools=tools)
    for text in ("42", samples["hermes"]):
        assert accepts(grammar, text, True)
        assert accepts(grammar, f"{style.opening}Hm. 7{style.closing}\n\n{text}", True)
    assert not accepts(grammar, f"{style.opening}42", True)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"regex": "a}+b"}, "a}}b"),
        ({"choice": ["}", 'say "x"']}, 'say "x"'),
        ({"json_object": True}, '{"a": {}}'),
        ({"grammar": 'start: A "}" \nA: /[a-z]+/'}, "abc}"),
        ({"grammar": 'root ::= "{" x\nx ::= "}"'}, "{}"),
        ({"structural_tag": {"structures": [{"begin": "<f>", "end": "</f>"}], "triggers": ["<f"]}}, "<f>1</f>"),
    ],
)
def test_every_kind_of_shape_may_stand_within_a_larger_grammar(wanted, text, accepts):
    grammar = shaped_answer_grammar(marks_of("none", reasoning=THINK), grammar_of(StructuredOutputsParams(**wanted)))
    assert accepts(grammar, text, True) and accepts(grammar, f"<think>Hm.</think>\n{text}", True)
    if "structural_tag" not in wanted:
        assert not accepts(grammar, text + "!", True)


def test_names_that_no_call_can_hold_are_refused():
    for make in (triggered, lambda m, tools: shaped_answer_grammar(m, 'start: "a"', tools=tools)):
        with pytest.raises(InvalidRequestError, match="function name"):
            make(marks_of("hermes"), [Tool("a b")])
