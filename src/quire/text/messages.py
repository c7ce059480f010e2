"""OpenAI messages in the shape a chat template expects, and notes on what had to be changed for that.

Knows the wire's message fields; validating them is the server's business, rendering is `text/chat.py`'s.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from quire.base.errors import InvalidRequestError
from quire.text.chat import ChatTemplate
from quire.text.template_traits import TemplateTraits

ContentFormat = Literal["auto", "string", "openai"]
"""How a template gets content, in vLLM's words: as it reads it, always a string, always a list of parts."""

_SHAPES: dict[str, Literal["text", "parts"]] = {"string": "text", "openai": "parts"}
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def to_template_messages(
    messages: Sequence[Mapping[str, Any]],
    template: ChatTemplate,
    *,
    tools: Sequence[Any] | None = None,
    content_format: ContentFormat = "auto",
) -> tuple[list[dict[str, Any]], list[str]]:
    """Copies of `messages` as `template` expects them, and one note per kind of substitution.

    Text parts are joined by newlines for templates that take strings only; JSON text of past tool calls' arguments
    becomes an object; `developer` becomes `system` where the template does not know it; absent content becomes empty
    text, or no field at all beside tool calls.

    Raises:
        InvalidRequestError: for content the model cannot read (an image, say), naming its place, or an unknown
            `content_format`.
        TemplateError: when the template cannot be parsed.
    """
    traits = template.traits(tools)
    if content_format != "auto":
        traits = dataclasses.replace(traits, content=_shape_named(content_format))
    notes: dict[str, None] = {}
    shaped = [_shape(message, f"messages[{i}]", traits, notes) for i, message in enumerate(messages)]
    return shaped, list(notes)


def _shape_named(content_format: str) -> Literal["text", "parts"]:
    if content_format not in _SHAPES:
        raise InvalidRequestError(
            f"chat_template_content_format is {content_format!r}; allowed: auto, {', '.join(_SHAPES)}",
            param="chat_template_content_format",
        )
    return _SHAPES[content_format]


def _shape(message: Mapping[str, Any], place: str, traits: TemplateTraits, notes: dict[str, None]) -> dict[str, Any]:
    result = {key: value for key, value in message.items() if value is not None}
    if result.get("role") == "developer" and not traits.knows_developer:
        result["role"] = "system"
        notes["role developer was written as system: the chat template does not know developer"] = None
    calls = result.get("tool_calls")
    if calls:
        places = [f"{place}.tool_calls[{index}]" for index in range(len(calls))]
        result["tool_calls"] = [_shape_call(*pair, traits, notes) for pair in zip(calls, places, strict=True)]
    elif "tool_calls" in result:
        del result["tool_calls"]
    if "content" in result:
        result["content"] = _shape_content(result["content"], f"{place}.content", traits)
    elif not calls:
        result["content"] = ""
    return result


def _shape_content(content: Any, place: str, traits: TemplateTraits) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if traits.content == "parts" else content
    if not isinstance(content, list | tuple):
        found = type(content).__name__
        raise InvalidRequestError(f"{place} must be a string or a list of parts, found {found}", param=place)
    texts = [_part_text(part, f"{place}[{index}]") for index, part in enumerate(content)]
    if traits.content == "text":
        return "\n".join(texts)
    return [{"type": "text", "text": text} for text in texts]


def _part_text(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind not in _TEXT_PARTS:
        raise InvalidRequestError(
            f"{place} is of type {kind!r}; this model reads text only (allowed: {', '.join(_TEXT_PARTS)})", param=place
        )
    text = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        raise InvalidRequestError(f"{place}.text must be a string", param=f"{place}.text")
    return text


def _shape_call(call: Any, place: str, traits: TemplateTraits, notes: dict[str, None]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise InvalidRequestError(f"{place}.function must be an object with name and arguments", param=place)
    arguments = function.get("arguments")
    if traits.arguments == "object":
        arguments = _arguments_object(arguments, place, notes)
    elif not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _arguments_object(arguments: Any, place: str, notes: dict[str, None]) -> Any:
    if arguments is None or arguments == "":
        return {}
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    # A call cut short by a length limit comes back in the history; refusing it would end the conversation.
    notes[f"{place}.function.arguments is not a JSON object and was passed to the chat template as text"] = None
    return arguments
