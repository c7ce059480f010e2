"""What a chat template expects of the messages it is given, read off its syntax tree without running it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jinja2 import nodes

ToolFormat = Literal[
    "hermes", "llama3_json", "mistral", "mistral_v11", "pythonic", "deepseek_v3", "deepseek_v31", "qwen3_coder", "none"
]  # fmt: skip
ReasoningStyle = Literal["think", "mistral", "none"]

_PYTHONIC_SAMPLE = re.compile(r"\[\s*func_name\d?\(|\bfunc_name1?\(params")
"""The example with which Llama's templates ask for calls in Python's syntax."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateTraits:
    """The shapes a template can digest."""

    content: Literal["text", "parts", "either"]
    """Whether message content must be a string, a list of parts, or may be both."""
    arguments: Literal["object", "text"]
    """Whether arguments of past tool calls must be an object or JSON text."""
    knows_developer: bool
    """Whether the `developer` role means something to it."""
    tool_format: ToolFormat
    reasoning_format: ReasoningStyle
    thinking_switch: Literal["enable_thinking", "thinking"] | None = None
    """The argument that turns reasoning on and off, where the template has one."""
    reads_effort: bool = False
    """Whether it says how hard to think, in an argument `reasoning_effort`."""
    reasoning_end: str = ""
    """The mark that ends reasoning, with the white space that the template writes around it; empty where none is."""


def read_traits(source: str, tree: nodes.Template) -> TemplateTraits:
    """Read the traits of one template."""
    read = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "load"}
    return TemplateTraits(
        content=_content_shape(tree),
        arguments=_arguments_shape(tree),
        knows_developer="developer" in source,
        tool_format=tool_format(source),
        reasoning_format=reasoning_format(source),
        thinking_switch=_thinking_switch(read),
        reads_effort="reasoning_effort" in read,
        reasoning_end=_reasoning_end(tree, reasoning_format(source)),
    )


def tool_format(source: str) -> ToolFormat:
    """How the model of a template writes tool calls, told by the marks the template itself writes.

    A template may hold marks of several formats (Qwen3-Coder's has Hermes's `<tool_call>` around its own, Llama 4's
    names the roles of Llama 3). The first that fits counts, in this order: Mistral, DeepSeek, Qwen3-Coder, Hermes,
    pythonic, Llama 3; marks that one family has stand before those that many share. `<tool_call>` with other marks
    inside (GLM's `<arg_key>`, say) is a format that is not known here.
    """
    if "[TOOL_CALLS]" in source:
        return "mistral_v11" if "[ARGS]" in source else "mistral"
    if "<｜tool▁call▁begin｜>" in source:
        return "deepseek_v3" if "```json" in source else "deepseek_v31"
    if "<function=" in source and "<parameter=" in source:
        return "qwen3_coder"
    if "<tool_call>" in source and "<function=" not in source and "<arg_key>" not in source:
        return "hermes"
    if any(mark in source for mark in ("<|python_start|>", "<function_calls>")) or _PYTHONIC_SAMPLE.search(source):
        return "pythonic"
    if "<|python_tag|>" in source or ("ipython" in source and '"parameters"' in source):
        return "llama3_json"
    return "none"


def reasoning_format(source: str) -> ReasoningStyle:
    """How the model of a template marks its reasoning; whether a prompt already opens a block is told by the prompt."""
    if "[THINK]" in source:
        return "mistral"
    return "think" if "<think>" in source or "</think>" in source else "none"


def _thinking_switch(read: set[str]) -> Literal["enable_thinking", "thinking"] | None:
    """Qwen3 and those after it read `enable_thinking`, DeepSeek since V3.1 `thinking`."""
    if "enable_thinking" in read:
        return "enable_thinking"
    return "thinking" if "thinking" in read else None


def _reasoning_end(tree: nodes.Template, style: ReasoningStyle) -> str:
    """The longest spelling among the template's texts; an empty block's, which stands for no reasoning, not counted."""
    if style == "none":
        return ""
    opening, closing = ("[THINK]", "[/THINK]") if style == "mistral" else ("<think>", "</think>")
    spelling = re.compile(rf"\s*{re.escape(closing)}\s*")
    texts = [const.value for const in tree.find_all(nodes.Const) if isinstance(const.value, str)]
    texts += [data.data for data in tree.find_all(nodes.TemplateData)]
    found = [
        match[0] for text in texts for match in spelling.finditer(text) if not text[: match.start()].endswith(opening)
    ]
    return max(found, key=len, default=closing)


def _content_shape(tree: nodes.Template) -> Literal["text", "parts", "either"]:
    names = _names_for(tree, "content")
    if not any(_reads(loop.iter, "content", names) for loop in tree.find_all(nodes.For)):
        return "text"
    asks = any(test.name in ("string", "iterable", "mapping", "sequence") for test in tree.find_all(nodes.Test))
    return "either" if asks else "parts"


def _arguments_shape(tree: nodes.Template) -> Literal["object", "text"]:
    names = _names_for(tree, "arguments")
    filters = [each for each in tree.find_all(nodes.Filter) if each.name in ("tojson", "items")]
    as_object = any(_reads(each.node, "arguments", names) for each in filters)
    as_object = as_object or any(_reads_below(loop.iter, "arguments", names) for loop in tree.find_all(nodes.For))
    as_object = as_object or any(_reads(test.node, "arguments", names) for test in tree.find_all(nodes.Test))
    as_text = any(_reads(operand, "arguments", names) for operand in _joined_operands(tree))
    return "text" if as_text and not as_object else "object"


def _joined_operands(tree: nodes.Template) -> Iterator[nodes.Node]:
    for addition in tree.find_all(nodes.Add):
        yield from (addition.left, addition.right)
    # The sandbox turned `a ~ b` into a filter over a tuple, and output stands in Output nodes.
    for filtered in tree.find_all(nodes.Filter):
        if filtered.name == "_concat" and isinstance(filtered.node, nodes.Tuple):
            yield from filtered.node.items
    for output in tree.find_all(nodes.Output):
        yield from output.nodes


def _names_for(tree: nodes.Template, field: str) -> set[str]:
    """Variables that are set from a message's `field`, directly or through each other."""
    names: set[str] = set()
    pairs = [(a.target.name, a.node) for a in tree.find_all(nodes.Assign) if isinstance(a.target, nodes.Name)]
    for _ in range(3):
        names |= {name for name, value in pairs if _reads_below(value, field, names)}
    return names | _macro_parameters(tree, field, names)


def _macro_parameters(tree: nodes.Template, field: str, names: set[str]) -> set[str]:
    """Parameters of macros that are called with a message's `field`."""
    macros = {macro.name: [argument.name for argument in macro.args] for macro in tree.find_all(nodes.Macro)}
    found: set[str] = set()
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in macros:
            pairs = zip(macros[call.node.name], call.args, strict=False)
            found |= {parameter for parameter, value in pairs if _reads(value, field, names)}
    return found


def _reads(node: nodes.Node | None, field: str, names: set[str]) -> bool:
    """Whether an expression is a message's `field` itself, or a variable that holds it."""
    if isinstance(node, nodes.Getattr):
        return bool(node.attr == field)
    if isinstance(node, nodes.Getitem):
        if isinstance(node.arg, nodes.Slice):
            return _reads(node.node, field, names)
        return isinstance(node.arg, nodes.Const) and node.arg.value == field
    if isinstance(node, nodes.Filter) and node.name.startswith("_"):
        return _reads(node.node, field, names)
    return isinstance(node, nodes.Name) and node.name in names


def _reads_below(node: nodes.Node, field: str, names: set[str]) -> bool:
    if _reads(node, field, names):
        return True
    return any(_reads(child, field, names) for child in node.find_all((nodes.Getattr, nodes.Getitem, nodes.Name)))
