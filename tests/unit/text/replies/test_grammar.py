"""Grammars that force calls: what llguidance accepts of them, and that parsers read what they force."""

from __future__ import annotations

import json

import pytest

from quire.base.errors import InvalidRequestError
from quire.text.replies.grammar import forced_calls_grammar
from quire.text.replies.reasoning import MISTRAL, THINK
from quire.text.replies.registry import CALL_FORMATS, call_format
from quire.text.replies.tool import Tool

FORMATS = tuple(name for name in CALL_FORMATS if name != "none")
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


def grammar(name, tools, *, special=True, parallel=True, **options):
    return forced_calls_grammar(
        call_format(name), tools, parallel=parallel, special_id=SPECIAL.get if special else lambda text: None, **options
    )


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
        forced_calls_grammar(None, tools, parallel=True, special_id=lambda text: None)
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
