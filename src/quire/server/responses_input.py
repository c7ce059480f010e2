"""The items of a response's input and output as messages of a chat, which is what templates know.

An assistant's turn comes as several items (reasoning, text, calls) and is one message where chat has it as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from quire.base.errors import InvalidRequestError
from quire.protocol.chat import MAX_PARTS, ChatMessage, ContentPart
from quire.protocol.decode import converted
from quire.protocol.responses import (
    CallItem,
    CallOutputItem,
    MessageItem,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    ReasoningItem,
    RefusalPart,
    TextPart,
)

_TEXT_PARTS = ("input_text", "output_text", "text")
_ITEMS = ("message", "function_call", "function_call_output", "reasoning")
_NO_ITEMS = {"item_reference": "send the item itself, or previous_response_id"}


class Conversation:
    """Messages in the making: what earlier turns left, then item after item."""

    def __init__(self, history: Iterable[ChatMessage] = ()) -> None:
        self.messages = list(history)
        self._call_ids = {call["id"] for message in self.messages for call in message.tool_calls or ()}

    def add_text(self, role: str, content: str | list[ContentPart]) -> None:
        """A message of anybody's; an assistant's joins its reasoning."""
        last = self._assistant if role == "assistant" else None
        if last is not None and last.content is None and not last.tool_calls:
            last.content = content
        else:
            self.messages.append(ChatMessage(role, content))

    def add_reasoning(self, text: str) -> None:
        """Reasoning, with which a turn of the assistant begins."""
        if text:
            self.messages.append(ChatMessage("assistant", reasoning_content=text))

    def add_call(self, call_id: str, name: str, arguments: str) -> None:
        """A call; it belongs to the assistant's message before it, if there is one."""
        message = self._assistant
        if message is None:
            message = ChatMessage("assistant")
            self.messages.append(message)
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        message.tool_calls = [*(message.tool_calls or ()), call]
        self._call_ids.add(call_id)

    def add_items(self, items: Sequence[dict[str, Any]]) -> None:
        """Items of a request's input.

        Raises:
            InvalidRequestError: an item or a part of a kind that is not served, or an output of no call.
        """
        for index, item in enumerate(items):
            self._add_item(item, f"input[{index}]")

    def add_output(self, items: Iterable[OutputItem]) -> None:
        """Items that the model made."""
        for item in items:
            match item:
                case OutputMessage():
                    self.add_text("assistant", "".join(part.text for part in item.content))
                case OutputReasoning():
                    self.add_reasoning("".join(part.text for part in item.content))
                case OutputCall():
                    self.add_call(item.call_id, item.name, item.arguments)

    @property
    def _assistant(self) -> ChatMessage | None:
        """The last message, if it is the assistant's."""
        last = self.messages[-1] if self.messages else None
        return last if last is not None and last.role == "assistant" else None

    def _add_item(self, item: dict[str, Any], where: str) -> None:
        kind = item.get("type") or "message"
        if kind == "message":
            message = converted(item, MessageItem, where)
            self.add_text(message.role, _content(message.content, f"{where}.content"))
        elif kind == "function_call":
            call = converted(item, CallItem, where)
            self.add_call(call.call_id, call.name, call.arguments)
        elif kind == "function_call_output":
            self._add_call_output(converted(item, CallOutputItem, where), where)
        elif kind == "reasoning":
            self.add_reasoning(_reasoning_text(converted(item, ReasoningItem, where), where))
        else:
            raise _unsupported(f"{where}.type", kind, _NO_ITEMS.get(str(kind), f"allowed: {', '.join(_ITEMS)}"))

    def _add_call_output(self, output: CallOutputItem, where: str) -> None:
        if output.call_id not in self._call_ids:
            raise InvalidRequestError(
                f"{where}.call_id is {output.call_id[:64]!r}, which no function_call before it has; send the call as "
                "well, or the previous_response_id of the response that made it",
                param=f"{where}.call_id",
            )
        content = _content(output.output, f"{where}.output")
        self.messages.append(ChatMessage("tool", content, name=output.name, tool_call_id=output.call_id))


def _content(content: str | list[dict[str, Any]], where: str) -> str | list[ContentPart]:
    """A content as chat has it, a single text as just that."""
    if isinstance(content, str):
        return content
    if len(content) > MAX_PARTS:
        raise InvalidRequestError(f"{where} has {len(content)} parts; at most {MAX_PARTS} are allowed", param=where)
    texts = [_text(part, f"{where}[{index}]") for index, part in enumerate(content)]
    return texts[0] if len(texts) == 1 else [ContentPart("text", text=text) for text in texts]


def _text(part: dict[str, Any], where: str) -> str:
    kind = part.get("type")
    if kind == "refusal":
        return converted(part, RefusalPart, where).refusal
    if kind not in _TEXT_PARTS:
        raise _unsupported(f"{where}.type", kind, "this model takes text: input_text, output_text")
    return converted(part, TextPart, where).text


def _reasoning_text(item: ReasoningItem, where: str) -> str:
    if item.encrypted_content is not None:
        param = f"{where}.encrypted_content"
        raise InvalidRequestError(
            f"{param} cannot be read here; leave it out, or the whole item", param=param, code="unsupported_value"
        )
    return "".join(part.text for part in item.content or ()) or "\n\n".join(part.text for part in item.summary or ())


def _unsupported(where: str, kind: Any, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{where} {str(kind)[:64]!r} is not supported; {remedy}", param=where, code="unsupported_value"
    )
