"""What a chat request says about tools, and how its replies are therefore read.

Knows OpenAI's fields, the older `functions` among them, and the model's way of writing calls; the parsing itself is
`text/replies`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from quire.base.errors import InvalidRequestError
from quire.protocol.chat import ChatRequest
from quire.protocol.chat import Tool as WireTool
from quire.server.chat_sample import ReplyStyle
from quire.text.replies.call_format import CallFormat, all_marks
from quire.text.replies.parser import ReplyParser
from quire.text.replies.reasoning import ReasoningFormat
from quire.text.replies.registry import call_format, reasoning_format
from quire.text.replies.tool import Tool

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine
    from quire.text.tokenizer import Tokenizer

AUTO = "auto"
MAX_TOOLS_BYTES = 2**20
"""Largest list of tools, as JSON: every one of them is written into the prompt."""
_SHORT_ID_FORMATS = ("mistral", "mistral_v11")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """The tools of a request, and which of them its answer may or must call."""

    choice: Literal["none", "auto", "required", "named"] = "none"
    tools: tuple[Tool, ...] = ()
    """Those that may be called: with `named` that one."""
    shown: list[dict[str, Any]] | None = None
    """What the chat template is told of."""
    strict: frozenset[str] = frozenset()
    """Those whose arguments are to follow their schema whenever they are called."""
    is_parallel: bool = True
    is_legacy: bool = False

    @property
    def is_forced(self) -> bool:
        """Whether the answer has to be a call."""
        return self.choice in ("required", "named")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyFormats:
    """How a model marks calls and reasoning."""

    calls: CallFormat | None = None
    calls_name: str = "none"
    reasoning: ReasoningFormat | None = None
    reasoning_end: str = ""
    """The mark that ends reasoning, with white space as the template writes it."""

    def are_special(self, tokenizer: Tokenizer) -> bool:
        """Whether any mark is a special token, which detokenizing would leave out."""
        return any(tokenizer.special_id(mark) is not None for mark in all_marks(self.calls, self.reasoning))


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatSettings:
    """What the operator said of the model's marks; `auto` reads them off the chat template."""

    tool_call_parser: str = AUTO
    reasoning_parser: str = AUTO

    def __post_init__(self) -> None:
        """Raise ConfigError for names that are none."""
        if self.tool_call_parser != AUTO:
            call_format(self.tool_call_parser)
        if self.reasoning_parser != AUTO:
            reasoning_format(self.reasoning_parser)

    def formats(self, engine: AsyncEngine, use: ToolUse) -> ReplyFormats:
        """The formats for a request to a model for chat."""
        template = engine.chat_template  # None: the request brought one of its own, which says nothing of the model
        traits = template.traits(use.shown) if template is not None else None
        written, thought = (traits.tool_format, traits.reasoning_format) if traits is not None else ("none", "none")
        name = written if self.tool_call_parser == AUTO else self.tool_call_parser
        reasoning = reasoning_format(thought if self.reasoning_parser == AUTO else self.reasoning_parser)
        calls = call_format(name) if use.choice != "none" else None
        end = "" if reasoning is None else reasoning.closing
        if traits is not None and end in traits.reasoning_end:
            end = traits.reasoning_end
        return ReplyFormats(calls=calls, calls_name=name, reasoning=reasoning, reasoning_end=end)


def tool_use_of(body: ChatRequest) -> ToolUse:
    """What the request says about tools.

    Raises:
        InvalidRequestError: malformed or repeated functions, a choice that names none of them, or both generations of
            the fields at once.
    """
    if body.tools and body.functions:
        raise InvalidRequestError("send tools or the older functions, not both", param="functions")
    is_legacy = bool(body.functions)
    name = "functions" if is_legacy else "tools"
    wire = list(body.tools or ()) or [WireTool("function", function) for function in body.functions or ()]
    tools = tuple(_tool(tool.function, f"{name}[{i}]") for i, tool in enumerate(wire))
    if len({tool.name for tool in tools}) < len(tools):
        raise InvalidRequestError(f"{name} holds two functions of one name", param=name)
    field_name = "function_call" if body.function_call is not None else "tool_choice"
    choice = body.function_call if body.function_call is not None else body.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequestError(f"{field_name} needs tools to choose from", param=field_name)
        return ToolUse()
    kind, allowed = _choice(choice, tools, field_name)
    shown = shown_tools(wire)
    check_tools_size(shown, name)
    return ToolUse(
        choice=kind,
        tools=allowed,
        shown=None if kind == "none" else shown,
        strict=frozenset(tool.function["name"] for tool in wire if tool.function.get("strict") is True),
        is_parallel=body.parallel_tool_calls is not False and not is_legacy and kind != "named",
        is_legacy=is_legacy,
    )


def check_tools_size(tools: list[dict[str, Any]] | None, name: str) -> None:
    """Refuse tools whose descriptions and schemas are too large together; raises InvalidRequestError."""
    size = len(msgspec.json.encode(tools or []))
    if size > MAX_TOOLS_BYTES:
        raise InvalidRequestError(
            f"{name} has {size} bytes of descriptions and schemas; at most {MAX_TOOLS_BYTES} are allowed", param=name
        )


def shown_tools(tools: Sequence[WireTool]) -> list[dict[str, Any]]:
    """The tools as the template sees them, without `strict`, which is said to the server only."""
    return [
        {"type": tool.type, "function": {key: value for key, value in tool.function.items() if key != "strict"}}
        for tool in tools
    ]


def reply_style(use: ToolUse, formats: ReplyFormats, *, is_open: bool) -> ReplyStyle:
    """How samples of this request are read; `is_open`: they begin within reasoning."""
    if formats.calls is None and formats.reasoning is None:
        return ReplyStyle()
    make = functools.partial(
        ReplyParser,
        formats.calls,
        formats.reasoning,
        starts_in_reasoning=is_open,
        tools=use.tools,
    )
    ends = {"named": "stop"}.get(use.choice, "function_call" if use.is_legacy else "tool_calls")
    return ReplyStyle(
        parser=make,
        finish_with_calls=ends,
        is_legacy=use.is_legacy,
        takes_one_call=not use.is_parallel,
        has_short_ids=formats.calls_name in _SHORT_ID_FORMATS,
        counts_reasoning=formats.reasoning is not None,
    )


def begins_in_reasoning(formats: ReplyFormats, *, prompt: str, prefill: str) -> bool:
    """Whether the reply to a rendered prompt begins within reasoning."""
    return formats.reasoning is not None and formats.reasoning.is_open_after(prompt, prefill=prefill)


def _tool(function: dict[str, Any], where: str) -> Tool:
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise InvalidRequestError(f"{where}.function.name must be a non-empty string", param="tools")
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidRequestError(f"{where}.function.parameters must be an object, a JSON schema", param="tools")
    if not isinstance(function.get("strict"), bool | None):
        raise InvalidRequestError(f"{where}.function.strict must be true or false", param="tools")
    return Tool(name, parameters or {})


def _choice(
    choice: Any, tools: tuple[Tool, ...], field_name: str
) -> tuple[Literal["none", "auto", "required", "named"], tuple[Tool, ...]]:
    """The kind of choice, and the tools it leaves."""
    if choice is None:
        return "auto", tools
    if choice in ("none", "auto", "required") and not (choice == "required" and field_name == "function_call"):
        return choice, tools
    named = choice.get("function", choice) if isinstance(choice, dict) else None
    name = named.get("name") if isinstance(named, dict) else None
    if not isinstance(name, str):
        raise InvalidRequestError(
            f"{field_name} is one of none, auto, required, or names a function",
            param=field_name,
            code="unsupported_value",
        )
    found = tuple(tool for tool in tools if tool.name == name)
    if not found:
        known = ", ".join(tool.name for tool in tools)[:200]
        raise InvalidRequestError(
            f"{field_name} names {name[:64]!r}, which is no function here: {known}", param=field_name
        )
    return "named", found
