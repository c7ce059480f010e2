"""What must be known before the first check: the model's name and length, whether it chats, how to get long answers."""

from __future__ import annotations

from quire.base.errors import ConfigError
from quire.conformance.events import JsonObject
from quire.conformance.target import CHAT, Answer, Facts, Target, lacks_template

_LENGTH_FIELDS = ("max_model_len", "context_length", "max_context_length", "context_window")
_ENDLESS: JsonObject = {"ignore_eos": True}
_LONG_ENOUGH = 48


async def look(target: Target) -> Facts:
    """Find the facts; raises ConfigError when no model is named and the server lists none."""
    listed = await target.ask("GET", "/v1/models")
    models = _models(listed)
    name = target.options.model or next((str(card["id"]) for card in models), None)
    if name is None:
        raise ConfigError(f"{target.base_url}/v1/models names no model ({listed}); name one with --model")
    card = next((card for card in models if card["id"] == name), {})
    context = next((card[key] for key in _LENGTH_FIELDS if isinstance(card.get(key), int)), None)
    target.facts = Facts(model=name, models=models, context=context)
    first = await target.ask("POST", CHAT, target.body({"max_tokens": 1}))
    no_chat = str(first) if lacks_template(first) else ""
    endless = {} if no_chat else await _endless(target)
    return Facts(model=name, models=models, context=context, endless=endless, no_chat=no_chat)


def _models(answer: Answer) -> tuple[JsonObject, ...]:
    if answer.status != 200:
        return ()
    data = answer.json.get("data")
    cards = data if isinstance(data, list) else []
    return tuple(card for card in cards if isinstance(card, dict) and isinstance(card.get("id"), str))


async def _endless(target: Target) -> JsonObject:
    """Fields beyond OpenAI's that keep an answer going, if the server takes them and they work."""
    answer = await target.ask("POST", CHAT, target.body({**_ENDLESS, "max_tokens": _LONG_ENOUGH}))
    if answer.status != 200:
        return {}
    usage = answer.json.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return _ENDLESS if tokens == _LONG_ENOUGH else {}
