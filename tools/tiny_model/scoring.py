"""Judges replies.

Knows: what every kind of answer demands. Does not know: how prompts and replies are made.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from tools.tiny_model.corpus.types import Answer
from tools.tiny_model.generate import Reply

STORY_WORDS = 40
STORY_SENTENCES = 5
# A run of four words may come back this often in a story; more is a loop.
STORY_REPEATS = 2

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


def is_right(answer: Answer, reply: Reply) -> bool:
    """Returns whether a reply is what the answer demands; an unfinished reply never is."""
    if not reply.ended:
        return False
    text = reply.text.strip()
    match answer.kind:
        case "exact":
            return text == answer.value
        case "one of":
            return text in answer.value
        case "contains":
            return all(part in text for part in answer.value)
        case "number":
            return last_number(text) == answer.value
        case "json":
            return same_json(text, answer.value)
        case "tool call":
            calls = tool_calls(text)
            return len(calls) == 1 and calls[0] == answer.value
        case "story":
            return story_fault(text, answer.value) is None
        case _:
            raise ValueError(f"unknown kind of answer: {answer.kind}")


def last_number(text: str) -> int | None:
    """Returns the last integer of a text."""
    found = re.findall(r"-?\d+", text)
    return int(found[-1]) if found else None


def _parsed(text: str) -> Any:
    """Returns the JSON value of a text, or None where it is no JSON, which is a wrong reply."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def same_json(text: str, value: Any) -> bool:
    """Returns whether the text is the JSON of the value; 1 and "1" differ, key order does not matter."""
    return bool(_parsed(text) == value)


def tool_calls(text: str) -> list[Any]:
    """Returns the calls of a reply, none if there is any other text beside them."""
    if _CALL.sub("", text).strip():
        return []
    return [_parsed(body) for body in _CALL.findall(text)]


def most_repeats(text: str, length: int = 4) -> int:
    """Returns how often the most frequent run of that many words occurs."""
    words = re.findall(r"\w+", text.lower())
    runs = Counter(tuple(words[i : i + length]) for i in range(len(words) - length + 1))
    return max(runs.values(), default=0)


def story_fault(text: str, hero: str) -> str | None:
    """Returns what is wrong with a story, or None."""
    if len(text.split()) < STORY_WORDS:
        return "too short"
    if len(re.findall(r"[.!?]", text)) < STORY_SENTENCES:
        return "too few sentences"
    if text.count(hero) < 2:
        return "not about its hero"
    if most_repeats(text) > STORY_REPEATS:
        return "repeats itself"
    return None
