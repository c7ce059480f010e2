"""A request for a response in chat's words: what has a counterpart is told in it, the rest is refused by name.

Knows what OpenAI's fields mean and which of them this server cannot honour; the items are `responses_input`'s business.
"""

from __future__ import annotations

from typing import Any

from quire.base.errors import InvalidRequestError
from quire.protocol.chat import ChatMessage, ChatRequest
from quire.protocol.chat import Tool as ChatTool
from quire.protocol.common import JsonSchemaFormat, ResponseFormat, StreamOptions
from quire.protocol.decode import converted
from quire.protocol.responses import INCLUDES_LOGPROBS, FlatTool, ResponsesRequest, TextFormat

_SAME_NAME = (
    "model",
    "stream",
    "logit_bias",
    "priority",
    "cache_salt",
    "strict",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "min_tokens",
    "ignore_eos",
    "chat_template_kwargs",
    "thinking_token_budget",
    "parallel_tool_calls",
)
_FORMATS = ("text", "json_object", "json_schema")
_ENCRYPTED = "reasoning.encrypted_content"
_FIELD_OF = {
    "messages": "input",
    "prompt": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
}


def tools_of(request: ResponsesRequest) -> list[FlatTool]:
    """The functions of a request; raises InvalidRequestError for tools that this server would have to run itself."""
    tools = []
    for index, tool in enumerate(request.tools or ()):
        kind = tool.get("type")
        if kind != "function":
            raise _refused(
                f"tools[{index}].type",
                f"{str(kind)[:64]!r} is not supported: nothing is run on the server's side; allowed: function",
            )
        if "function" in tool:
            raise InvalidRequestError(
                f"tools[{index}].function belongs to chat; here name, description and parameters stand beside the type",
                param=f"tools[{index}].function",
                code="unknown_parameter",
            )
        tools.append(converted(tool, FlatTool, f"tools[{index}]"))
    return tools


def chat_request(
    request: ResponsesRequest, conversation: list[ChatMessage], tools: list[FlatTool]
) -> tuple[ChatRequest, tuple[str, ...]]:
    """The same request to chat, and notes on what had no effect.

    Raises:
        InvalidRequestError: something that cannot be honoured.
    """
    _check(request)
    choice = _tool_choice(request.tool_choice)
    response_format = _format(request)
    if choice not in (None, "none", "auto") and response_format.type != "text":
        raise InvalidRequestError(
            "tool_choice forces a call and text.format asks for another answer; send one", param="tool_choice"
        )
    instructions = [] if request.instructions is None else [ChatMessage("system", request.instructions)]
    wants_logprobs = INCLUDES_LOGPROBS in (request.include or ())
    options = request.stream_options
    chat = ChatRequest(
        messages=instructions + conversation,
        max_completion_tokens=request.max_output_tokens,
        logprobs=wants_logprobs or None,
        top_logprobs=request.top_logprobs if wants_logprobs else None,
        tools=[ChatTool("function", _shown(tool)) for tool in tools] or None,
        tool_choice=choice,
        response_format=response_format,
        reasoning_effort=None if request.reasoning is None else request.reasoning.effort,
        stream_options=None if options is None else StreamOptions(include_obfuscation=options.include_obfuscation),
        **{name: getattr(request, name) for name in _SAME_NAME},
    )
    return chat, _notes(request)


def field_of(param: str | None) -> str | None:
    """The field of a request for a response that stands for one of chat's."""
    return None if param is None else _FIELD_OF.get(param, param)


def _check(request: ResponsesRequest) -> None:
    if request.background:
        raise _refused("background", "true is not supported; responses come while the connection is open")
    if request.truncation not in (None, "disabled"):
        raise _refused("truncation", f"{request.truncation[:64]!r} is not supported; allowed: disabled")
    for entry in request.include or ():
        if entry not in (INCLUDES_LOGPROBS, _ENCRYPTED):
            raise _refused("include", f"{entry[:64]!r} is not supported; allowed: {INCLUDES_LOGPROBS}")
    if request.top_logprobs and INCLUDES_LOGPROBS not in (request.include or ()):
        raise InvalidRequestError(f'top_logprobs needs include: ["{INCLUDES_LOGPROBS}"]', param="top_logprobs")
    limit = request.max_output_tokens
    if limit is not None and limit < 1:
        raise InvalidRequestError(f"max_output_tokens must be at least 1, found {limit}", param="max_output_tokens")
    reasoning = request.reasoning
    if reasoning is None:
        return
    for name in ("summary", "generate_summary"):
        if getattr(reasoning, name) not in (None, "auto"):
            raise _refused(f"reasoning.{name}", "is not supported; reasoning comes whole, in the model's own words")


def _notes(request: ResponsesRequest) -> tuple[str, ...]:
    notes = []
    if _ENCRYPTED in (request.include or ()):
        notes.append(f"include: {_ENCRYPTED} had no effect; reasoning comes in clear text and is taken back so")
    return tuple(notes)


def _tool_choice(choice: Any) -> Any:
    """The choice as chat has it; which function it names is checked there."""
    if not isinstance(choice, dict):
        return choice
    kind = choice.get("type")
    if kind != "function":
        allowed = "none, auto, required, or {type: function, name}"
        raise _refused("tool_choice", f"of type {str(kind)[:64]!r} is not supported; allowed: {allowed}")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _format(request: ResponsesRequest) -> ResponseFormat:
    wanted = request.text.format if request.text is not None else None
    if wanted is None:
        return ResponseFormat("text")
    if wanted.type not in _FORMATS:
        raise _refused("text.format.type", f"{wanted.type[:64]!r} is not supported; allowed: {', '.join(_FORMATS)}")
    if wanted.type != "json_schema":
        if wanted != TextFormat(wanted.type):
            raise InvalidRequestError(
                f"text.format: name and schema do not belong to type {wanted.type!r}", param="text.format"
            )
        return ResponseFormat(wanted.type)
    for name in ("name", "schema"):
        if getattr(wanted, name) is None:
            param = f"text.format.{name}"
            raise InvalidRequestError(f"{param} is required", param=param, code="missing_required_parameter")
    assert wanted.name is not None
    return ResponseFormat("json_schema", json_schema=JsonSchemaFormat(wanted.name, wanted.schema))


def _shown(tool: FlatTool) -> dict[str, Any]:
    """A function as chat has it."""
    known: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    known["strict"] = tool.strict
    return {name: value for name, value in known.items() if value is not None}


def _refused(param: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param} {why}", param=param, code="unsupported_value")
