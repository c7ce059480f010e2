"""From Anthropic's fields to chat's request, which is the form that the core takes.

Knows what the fields mean; how turns become messages is `messages_turns.py`'s business.
"""

from __future__ import annotations

from typing import Any

from quire.base.errors import InvalidRequestError
from quire.protocol.anthropic import ConversationFields, MessagesRequest, ThinkingConfig, ToolChoice, ToolParam
from quire.protocol.chat import ChatRequest, Tool
from quire.protocol.common import JsonSchemaFormat, ResponseFormat
from quire.server.messages_turns import chat_messages, is_prefilled

_SAME_NAME = (
    *("model", "max_tokens", "stream", "temperature", "top_p", "top_k"),
    *("seed", "min_p", "logit_bias", "priority", "cache_salt", "timeout", "strict"),
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_request(body: ConversationFields, *, reasons: bool, switch: str | None) -> ChatRequest:
    """The request in chat's words.

    `reasons`: whether the model's reasoning is known by its marks. `switch`: the argument of its template that turns
    reasoning on and off, None where there is none.

    Raises:
        InvalidRequestError: blocks, tools or settings that are not served, by name.
    """
    continues = is_prefilled(body)
    chat = ChatRequest(
        messages=chat_messages(body),
        tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or ())] or None,
        continue_final_message=True if continues else None,
        chat_template_kwargs=_thinking_kwargs(body, reasons, switch) | (body.chat_template_kwargs or {}) or None,
    )
    if body.tool_choice is not None:
        chat.tool_choice = _tool_choice(body.tool_choice)
        chat.parallel_tool_calls = False if body.tool_choice.disable_parallel_tool_use else None
    if body.output_config is not None:
        chat.reasoning_effort = body.output_config.effort
        if body.output_config.format is not None:
            schema = JsonSchemaFormat(name="output", schema=body.output_config.format.schema)
            chat.response_format = ResponseFormat("json_schema", json_schema=schema)
    if isinstance(body, MessagesRequest):
        for name in _SAME_NAME:
            setattr(chat, name, getattr(body, name))
        chat.stop = body.stop_sequences
        chat.thinking_token_budget = None if body.thinking is None else body.thinking.budget_tokens
    return chat


def _tool(tool: ToolParam, where: str) -> Tool:
    if tool.type not in (None, "custom"):
        raise InvalidRequestError(
            f"{where}: tools of type {tool.type[:64]!r} run on Anthropic's servers and are not supported; send tools "
            "of your own, with input_schema",
            param=f"{where}.type",
            code="unsupported_value",
        )
    if tool.input_schema is None:
        raise InvalidRequestError(f"{where}.input_schema is required", param=f"{where}.input_schema")
    function: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    function["strict"] = tool.strict
    return Tool("function", {name: value for name, value in function.items() if value is not None})


def _tool_choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice.type != "tool":
        if choice.name is not None:
            raise InvalidRequestError('tool_choice.name needs type "tool"', param="tool_choice.name")
        return _CHOICES[choice.type]
    if choice.name is None:
        raise InvalidRequestError('tool_choice.name is required with type "tool"', param="tool_choice.name")
    return {"type": "function", "function": {"name": choice.name}}


def _thinking_kwargs(body: ConversationFields, reasons: bool, switch: str | None) -> dict[str, Any]:
    """The arguments of the template that stand for `thinking`; raises InvalidRequestError for what cannot be had."""
    config = body.thinking
    if config is None:
        return {}
    is_wanted = config.type != "disabled"
    if is_wanted and not reasons:
        raise _refused("thinking", "this model does not reason; leave thinking out")
    if not is_wanted and reasons and switch is None:
        raise _refused("thinking.type", "this model's template cannot turn reasoning off; leave thinking out")
    _check_thinking(config)
    return {} if switch is None else {switch: is_wanted}


def _check_thinking(config: ThinkingConfig) -> None:
    if (config.type == "enabled") != (config.budget_tokens is not None):
        raise InvalidRequestError(
            'thinking.budget_tokens belongs to type "enabled", which needs it', param="thinking.budget_tokens"
        )
    if config.display == "omitted":
        raise _refused("thinking.display", "reasoning is always shown; leave display out")


def _refused(param: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param} is not supported as sent: {what}", param=param, code="unsupported_value")
