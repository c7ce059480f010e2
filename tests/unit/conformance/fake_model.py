"""A model of no weights for the fake server: which tokens answer a request, and in which pieces they may be sent.

Everything is decided by the request: the same request gives the same answer. It knows tokens, stop strings, tool calls
and schemas, and nothing of chunks or HTTP.
"""

import codecs
import json
import zlib
from dataclasses import dataclass, field

CONTEXT = 4096
NATURAL_TOKENS = 40
"""Answers end by themselves here, unless told to go on."""
BYTE_TOKEN = 1000
"""Id of the token of byte 0; the others follow."""
WORDS = [
    *(b"The", b" lamp", b" turns", b" over", b" the", b" sea", b",", b" and", b" every", b" ship", b" that", b" sees"),
    *(b" it", b" knows", b" the", b" way", b" home", b".", b" ", b"\xf0\x9f", b"\x99\x82", b" Nobody", b" sleeps"),
]
ARGUMENTS = {"get_weather": '{"city": "Oslo", "unit": "C"}', "get_time": "{}"}


@dataclass
class Piece:
    """What one event may carry: text for the content, or a fragment of a call's arguments, and the tokens behind it."""

    text: str
    tokens: list[bytes]
    call: int | None = None


@dataclass
class Draft:
    """One choice before it is put into an answer's shape."""

    pieces: list[Piece]
    reason: str
    calls: list[str] = field(default_factory=list)

    @property
    def text(self):
        return "".join(piece.text for piece in self.pieces if piece.call is None)

    @property
    def num_tokens(self):
        return sum(len(piece.tokens) for piece in self.pieces)

    def arguments(self, call):
        return "".join(piece.text for piece in self.pieces if piece.call == call)


def count_prompt(fields):
    """Tokens of a prompt or a conversation: its words."""
    if "messages" not in fields:
        prompt = fields["prompt"]
        return len(prompt) if isinstance(prompt, list) else len(prompt.split())
    return 2 + sum(len(json.dumps(message.get("content")).split()) for message in fields["messages"])


def tokenize(text):
    """Ids of a text of which every byte is a token."""
    return [BYTE_TOKEN + byte for byte in text.encode()]


def draft(fields, index, limit):
    """Answer a request: choice `index`, at most `limit` tokens."""
    called = calls_of(fields)
    if called:
        return _draft_calls(called, limit, is_named=isinstance(fields.get("tool_choice"), dict))
    tokens = _structured(fields) or _tokens(fields, index, limit)
    reason = "length" if len(tokens) > limit else "stop"
    if fields.get("ignore_eos"):
        reason = "length"
    stops = fields.get("stop") or []
    return _pieces(tokens[:limit], [stops] if isinstance(stops, str) else stops, reason)


def calls_of(fields):
    """Names of the functions an answer calls; a model that may choose calls none."""
    choice, tools = fields.get("tool_choice"), fields.get("tools") or []
    if isinstance(choice, dict):
        return [choice["function"]["name"]]
    if choice != "required":
        return []
    names = [tool["function"]["name"] for tool in tools]
    return names if fields.get("parallel_tool_calls", True) else names[:1]


def _draft_calls(names, limit, is_named):
    pieces = []
    for call, name in enumerate(names):
        text = ARGUMENTS[name]
        fragments = [text[i : i + 7] for i in range(0, len(text), 7)]
        pieces += [Piece(fragment, [fragment.encode()], call) for fragment in fragments]
    reason = "length" if len(pieces) > limit else "stop" if is_named else "tool_calls"
    return Draft(pieces[:limit], reason, names)


def _tokens(fields, index, limit):
    biased = [int(key) for key, value in (fields.get("logit_bias") or {}).items() if value == 100]
    if biased:
        return [bytes([token - BYTE_TOKEN]) for token in biased] * limit
    is_drawn = fields.get("temperature", 1) > 0
    key = [fields.get("messages") or fields.get("prompt"), *([fields.get("seed"), index] if is_drawn else [])]
    start = (zlib.crc32(json.dumps(key).encode()) + fields.get("drift", 0)) % len(WORDS)
    # A character of two tokens must not be torn by where an answer begins.
    start += WORDS[start] == b"\x99\x82"
    count = limit if fields.get("ignore_eos") else min(limit + 1, NATURAL_TOKENS)
    return [WORDS[(start + i) % len(WORDS)] for i in range(count)]


def _structured(fields):
    asked = fields.get("response_format") or {"type": "text"}
    if asked["type"] == "text":
        return []
    value = {"answer": 1} if asked["type"] == "json_object" else _value(asked["json_schema"]["schema"])
    text = json.dumps(value)
    return [text[i : i + 5].encode() for i in range(0, len(text), 5)]


def _value(schema):
    """The first value that a schema allows."""
    if schema.get("type") == "object":
        return {name: _value(one) for name, one in schema["properties"].items()}
    return next(one for one in schema["enum"] if one != schema.get("not", {}).get("const"))


def _pieces(tokens, stops, reason):
    """Cut tokens into sendable pieces: whole characters, and nothing that may begin a stop string."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces, held, behind = [], "", []
    for place, token in enumerate(tokens, 1):
        held += decoder.decode(token, final=place == len(tokens))
        behind.append(token)
        found = [held.index(stop) for stop in stops if stop in held]
        if found:
            pieces.append(Piece(held[: min(found)], behind))
            return Draft(pieces, "stop")
        may_stop = any(held.endswith(stop[:size]) for stop in stops for size in range(1, len(stop)))
        if place == len(tokens) or (held and not may_stop and not decoder.getstate()[0]):
            pieces.append(Piece(held, behind))
            held, behind = "", []
    return Draft(pieces, reason)
