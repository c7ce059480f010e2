"""`ChatTemplate` against transformers' `apply_chat_template`, template family by family."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jinja2
import pytest
from transformers import PreTrainedTokenizerFast

from quire.base.errors import ConfigError, TemplateError
from quire.text.chat import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

# Written for this project in the manner of each family; together they use every feature the renderer has.
TEMPLATES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln <&>", "days": 3, "units": ["C", None, True]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Look up 'the' \"weather\" <now> 🌦",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"},
            "units": {"type": "array", "items": {"type": "string"}}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "noop", "description": "", "parameters": {"type": "object",
        "properties": {}}}},
]  # fmt: skip
DOCUMENTS = [{"title": "One", "text": "line\nline"}, {"title": "", "text": "zwei"}]
CONVERSATIONS = {
    "one_turn": [{"role": "user", "content": "Hello!"}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "  Hi  "}],
    "turns": [
        {"role": "user", "content": "1"}, {"role": "assistant", "content": " 2 \n"}, {"role": "user", "content": "3"},
    ],
    "unicode": [{"role": "user", "content": "Grüße 👋🏽 你好 \u2028 \u00a0<b>&amp;</b> {{ x }} {% raw %} \\n '\""}],
    "thinking": [
        {"role": "user", "content": "why?"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nso"},
        {"role": "user", "content": "and?"}, {"role": "assistant", "content": "x", "reasoning": "because"},
    ],
    "tool_call": [
        {"role": "user", "content": "weather?"}, {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_2", "content": "sun"}, {"role": "assistant", "content": "Rain."},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
    ],
    "wrong_order": [{"role": "assistant", "content": "first"}, {"role": "assistant", "content": "again"}],
    "mid_system": [
        {"role": "user", "content": ""}, {"role": "assistant", "content": ""}, {"role": "system", "content": "s"},
    ],
    "with_name": [{"role": "user", "name": "Ann", "content": "I am\n\nAnn\n"}],
}  # fmt: skip
OPTIONS = {
    "plain": {},
    "generation": {"add_generation_prompt": True},
    "tools": {"add_generation_prompt": True, "tools": TOOLS},
    "no_tools": {"tools": []},
    "extras": {"add_generation_prompt": True, "enable_thinking": False, "documents": DOCUMENTS,
               "date_string": "1 Jan 2025", "bos_token": "<other>"},
    "continue": {"continue_final_message": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def reference(checkpoints):
    return PreTrainedTokenizerFast(tokenizer_file=str(checkpoints["byte_level"] / "tokenizer.json"), **TOKENS)


def render_reference(reference, source, messages, options):
    """The text, or None where transformers (or the template) refuses."""
    try:
        return reference.apply_chat_template(
            copy.deepcopy(messages), chat_template=source, tokenize=False, **{"add_generation_prompt": False} | options
        )
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None


def render_ours(template, messages, options):
    try:
        return template.render(messages, **{"add_generation_prompt": False} | options)
    except TemplateError:
        return None


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("family", TEMPLATES)
def test_rendered_prompts_equal_the_reference_byte_for_byte(family, options, reference):
    """S47: families x conversations x options, refusals included."""
    template = ChatTemplate({"default": TEMPLATES[family]}, TOKENS)
    texts = set()
    for name, messages in CONVERSATIONS.items():
        before = copy.deepcopy(messages)
        expected = render_reference(reference, TEMPLATES[family], messages, OPTIONS[options])
        assert render_ours(template, messages, OPTIONS[options]) == expected, name
        assert messages == before
        texts.add(expected)
    assert len(texts - {None}) >= 4


def test_unset_special_tokens_are_undefined_as_in_the_reference(checkpoints):
    source = "{{ bos_token }}|{{ eos_token }}|{{ bos_token is defined }}|{{ pad_token is defined }}"
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoints["byte_level"] / "tokenizer.json"), eos_token="<|end|>"
    )
    expected = reference.apply_chat_template(CONVERSATIONS["one_turn"], chat_template=source, tokenize=False)
    ours = ChatTemplate({"default": source}, {"eos_token": "<|end|>"})
    assert ours.render(CONVERSATIONS["one_turn"], add_generation_prompt=False) == expected


def test_the_demo_models_template_renders_as_in_the_reference(checkpoints, reference_of):
    """S47: the built-in model, files and all."""
    template = ChatTemplate.load(checkpoints["demo"])
    tokenizer = reference_of("demo")
    for options in OPTIONS.values():
        for messages in CONVERSATIONS.values():
            expected = render_reference(tokenizer, None, messages, options)
            assert render_ours(template, messages, options) == expected
    assert template.tool_format == "hermes"


def write(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


USER = CONVERSATIONS["one_turn"]


def test_templates_are_found_where_checkpoints_keep_them(tmp_path):
    """S47: the order of precedence."""
    assert ChatTemplate.load(tmp_path) is None
    write(tmp_path, chat_template_DOT_json={"chat_template": "processor"})
    assert ChatTemplate.load(tmp_path).render(USER) == "processor"
    write(tmp_path, tokenizer_config_DOT_json={"chat_template": "config {{ eos_token }}", "eos_token": "E"})
    assert ChatTemplate.load(tmp_path).render(USER) == "config E"
    write(tmp_path, chat_template_DOT_jinja="file")
    assert ChatTemplate.load(tmp_path).render(USER) == "file"
    write(tmp_path, mine_DOT_jinja="override {{ eos_token }}")
    assert ChatTemplate.load(tmp_path, override_path=tmp_path / "mine.jinja").render(USER) == "override E"


def test_a_base_model_has_no_template(checkpoints):
    """S53: the server can tell, and answer chat with a clear 400."""
    assert ChatTemplate.load(checkpoints["byte_level"]) is None


def test_named_templates_are_chosen_by_the_tools_of_the_request(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    write(tmp_path, tokenizer_config_DOT_json={"chat_template": named})
    template = ChatTemplate.load(tmp_path)
    assert template.render(USER) == "plain"
    assert template.render(USER, tools=TOOLS) == "with tools"
    write(tmp_path, chat_template_DOT_jinja="file", additional_chat_templates__tool_use_DOT_jinja="file with tools")
    assert ChatTemplate.load(tmp_path).render(USER, tools=TOOLS) == "file with tools"
    with pytest.raises(ConfigError, match="must be named default"):
        ChatTemplate({"rag": "x"}, {})


def test_a_bad_override_is_a_config_error_that_names_the_flag(tmp_path):
    with pytest.raises(ConfigError, match="--chat-template"):
        ChatTemplate.load(tmp_path, override_path=tmp_path / "missing.jinja")
    write(tmp_path, broken_DOT_jinja="{% if %}")
    with pytest.raises(ConfigError, match="--chat-template"):
        ChatTemplate.load(tmp_path, override_path=tmp_path / "broken.jinja")
    write(tmp_path, tokenizer_config_DOT_json={"chat_template": [1]})
    with pytest.raises(ConfigError, match="chat_template must be"):
        ChatTemplate.load(tmp_path)


def test_a_broken_template_of_the_checkpoint_only_fails_chat(tmp_path):
    """S53: completions still work, so loading must not fail."""
    write(tmp_path, chat_template_DOT_jinja="{% for %}")
    template = ChatTemplate.load(tmp_path)
    for _ in range(2):
        with pytest.raises(TemplateError, match="the chat template failed"):
            template.render(USER)


def test_a_templates_own_refusal_reaches_the_client_word_for_word():
    template = ChatTemplate({"default": TEMPLATES["gemma"]}, TOKENS)
    with pytest.raises(TemplateError) as caught:
        template.render(CONVERSATIONS["system"])
    assert str(caught.value) == "System role is not supported here"
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([], {}, "at least one message"),
        (USER, {"continue_final_message": True}, "add_generation_prompt=false"),
        (CONVERSATIONS["tool_call"][:2], {"continue_final_message": True, "add_generation_prompt": False}, "content"),
        ([{"role": "user", "content": [{"type": "image"}]}],
         {"continue_final_message": True, "add_generation_prompt": False}, "no text"),
    ],
)  # fmt: skip
def test_impossible_requests_are_refused_with_a_reason(messages, options, message):
    template = ChatTemplate({"default": TEMPLATES["chatml"]}, TOKENS)
    with pytest.raises(TemplateError, match=message):
        template.render(messages, **options)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (TEMPLATES["hermes"], "hermes"), (TEMPLATES["qwen3"], "hermes"), (TEMPLATES["mistral"], "mistral"),
        (TEMPLATES["chatml"], "none"), ("{{ '<|python_tag|>' }}", "llama3_json"),
        ("calls look like [func_name1(params_name1=params_value1, ...), func_name2(params)]", "pythonic"),
        ("<tool_call>\n<function={{ name }}>", "none"),
    ],
)  # fmt: skip
def test_the_way_a_model_writes_tool_calls_is_read_off_its_template(source, expected):
    assert ChatTemplate({"default": source}, {}).tool_format == expected


def test_ten_families_are_compared():
    """S47: the directory of templates was found."""
    assert len(TEMPLATES) >= 10
