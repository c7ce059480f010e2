"""Anthropic's turns of blocks as chat messages: results of tools become messages of their own, calls fields of theirs.

Neighbouring turns of one role are one turn, as Anthropic has it; templates often insist on alternation.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from quire.base.errors import InvalidRequestError
from quire.protocol.anthropic import (
    BLOCKS,
    BlockParam,
    ConversationFields,
    TextParam,
    ThinkingParam,
    ToolResultParam,
    ToolUseParam,
)
from quire.protocol.chat import ChatMessage, ContentPart
from quire.protocol.decode import converted

ERROR_MARK = "Error: "
"""What a failed result begins with: templates have no field that says so."""
_ALLOWED = {
    "user": (TextParam, ToolResultParam),
    "assistant": (TextParam, ThinkingParam, ToolUseParam),
    "system": (TextParam,),
}


def chat_messages(body: ConversationFields) -> list[ChatMessage]:
    """The conversation with its system text.

    Raises:
        InvalidRequestError: blocks that are not served or stand in the wrong turn, results of calls that nobody made.
    """
    messages = []
    if body.system:
        messages.append(ChatMessage("system", _content(_blocks(body.system, "system", "system"))))
    names: dict[str, str] = {}
    turns = enumerate(body.messages)
    for role, group in itertools.groupby(turns, key=lambda turn: turn[1].role):
        blocks = [
            (block, f"messages[{i}].content[{j}]")
            for i, turn in group
            for j, block in enumerate(_blocks(turn.content, role, f"messages[{i}].content"))
        ]
        if role == "assistant":
            messages.append(_assistant([block for block, _ in blocks], names))
        elif role == "user":
            messages += _user(blocks, names)
        else:
            messages.append(ChatMessage(role, _content([block for block, _ in blocks])))
    return messages


def is_prefilled(body: ConversationFields) -> bool:
    """Whether the last turn is the beginning of the answer; raises InvalidRequestError where calls wait for results."""
    last = body.messages[-1]
    if last.role != "assistant":
        return False
    if isinstance(last.content, list) and any(block.get("type") == "tool_use" for block in last.content):
        raise InvalidRequestError(
            "messages: the last turn calls tools; a user turn with their tool_result blocks must follow",
            param="messages",
        )
    return True


def _assistant(blocks: list[BlockParam], names: dict[str, str]) -> ChatMessage:
    """One turn of the model's; its calls' names are noted by their ids."""
    texts = [block for block in blocks if isinstance(block, TextParam)]
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingParam)]
    uses = [block for block in blocks if isinstance(block, ToolUseParam)]
    names.update((use.id, use.name) for use in uses)
    return ChatMessage(
        "assistant",
        _content(texts) if texts or not uses else None,
        tool_calls=[_call(use) for use in uses] or None,
        reasoning_content="\n".join(thoughts) or None,
    )


def _call(use: ToolUseParam) -> dict[str, Any]:
    arguments = json.dumps(use.input, ensure_ascii=False)
    return {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": arguments}}


def _user(blocks: list[tuple[BlockParam, str]], names: dict[str, str]) -> list[ChatMessage]:
    """Results as messages of their own, the texts between them as messages of the user's."""
    messages: list[ChatMessage] = []
    texts: list[BlockParam] = []
    for block, where in blocks:
        if not isinstance(block, ToolResultParam):
            texts.append(block)
            continue
        if texts:
            messages.append(ChatMessage("user", _content(texts)))
            texts = []
        messages.append(_result(block, where, names))
    if texts or not messages:
        messages.append(ChatMessage("user", _content(texts)))
    return messages


def _result(block: ToolResultParam, where: str, names: dict[str, str]) -> ChatMessage:
    name = names.get(block.tool_use_id)
    if name is None:
        raise InvalidRequestError(
            f"{where}: tool_use_id {block.tool_use_id[:64]!r} is of no tool_use block before it", param=where
        )
    content = _content(_blocks(block.content or "", "system", f"{where}.content"))
    if block.is_error:
        text = content if isinstance(content, str) else "\n".join(part.text or "" for part in content)
        content = ERROR_MARK + text
    return ChatMessage("tool", content, name=name, tool_call_id=block.tool_use_id)


def _content(blocks: list[Any]) -> str | list[ContentPart]:
    """Texts as chat has them: one as a string, several as parts."""
    if len(blocks) == 1:
        text: str = blocks[0].text
        return text
    return [ContentPart("text", text=block.text) for block in blocks] or ""


def _blocks(content: str | list[dict[str, Any]], role: str, where: str) -> list[BlockParam]:
    """A turn's blocks, of the types that `role` may have; `system` has texts only, as results have."""
    if isinstance(content, str):
        return [TextParam(content)]
    return [_block(raw, role, f"{where}[{i}]") for i, raw in enumerate(content)]


def _block(raw: dict[str, Any], role: str, where: str) -> BlockParam:
    kind = raw.get("type")
    wire_type = BLOCKS.get(kind) if isinstance(kind, str) else None
    if wire_type not in _ALLOWED[role]:
        allowed = ", ".join(name for name, cls in BLOCKS.items() if cls in _ALLOWED[role])
        raise InvalidRequestError(
            f"{where}: a block of type {str(kind)[:64]!r} is not supported here; allowed: {allowed}",
            param=f"{where}.type",
            code="unsupported_value",
        )
    assert wire_type is not None
    return converted(raw, wire_type, where)
