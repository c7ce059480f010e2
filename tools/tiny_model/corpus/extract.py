"""Extraction of named fields from a sentence into JSON.

Knows: the fields, their sentences and the requests. Does not know: how a reply is judged.
"""

from __future__ import annotations

import json

from tools.tiny_model.corpus.source import Source
from tools.tiny_model.corpus.types import Answer, Episode, assistant, user
from tools.tiny_model.words import listed

# Sentences by the set of fields that they state.
_SENTENCES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("name", "age", "city"),
        (
            "{name} is {age} years old and lives in {city}.",
            "{name}, {age}, lives in {city}.",
            "My name is {name}, I am {age} years old and I live in {city}.",
            "{name} ({age}) from {city}",
            "{name} from {city} is {age} years old.",
            "In {city} lives {name}, who is {age}.",
            "I am {name}, {age}, from {city}.",
            "This is {name} from {city}, {age} years old.",
            "{name} lives in {city} and is {age} years old.",
        ),
    ),
    (
        ("name", "age"),
        (
            "{name} is {age} years old.",
            "My name is {name} and I am {age}.",
            "{name} just turned {age}.",
            "{name}, {age} years old",
            "I am {name}, {age} years old.",
        ),
    ),
    (
        ("name", "city"),
        (
            "{name} lives in {city}.",
            "My name is {name} and I come from {city}.",
            "{name} is from {city}.",
            "{name} moved to {city} last year.",
            "I am {name} from {city}.",
        ),
    ),
    (
        ("name", "company", "city"),
        (
            "{name} works at {company} in {city}.",
            "{name} is employed by {company}, {city}.",
            "In {city}, {name} works for {company}.",
        ),
    ),
    (("name", "friend"), ("{name} has a friend called {friend}.", "{name} and a friend, {friend}, are here.")),
    (
        ("item", "price"),
        (
            "The {item} costs {price} dollars.",
            "A {item} for {price} dollars.",
            "I bought a {item} for {price} dollars.",
            "They sell a {item} at {price} dollars.",
        ),
    ),
    (
        ("item", "quantity", "city"),
        ("Send {quantity} pieces of {item} to {city}.", "{quantity} x {item}, ship to {city}"),
    ),
    (("name", "job", "age"), ("{name}, a {job}, is {age} years old.", "{name} is {age} and works as a {job}.")),
)
_REQUESTS = (
    "Extract {f} as JSON: {t}",
    "Extract {f} from this text as JSON: {t}",
    "{t}\nExtract {f} as JSON.",
    "Give me {f} as JSON: {t}",
    "Return {f} as JSON. Text: {t}",
    "Write {f} as JSON: {t}",
    "Convert to JSON with {f}: {t}",
    "JSON with {f}: {t}",
    "Turn this into JSON with {f}: {t}",
    "Please extract {f} as a JSON object: {t}",
    "Get {f} in JSON format from: {t}",
    "{t} Give {f} as JSON.",
)
_BARE_REQUESTS = ("Extract as JSON: {t}", "Convert to JSON: {t}", "{t}\nWrite this as JSON.")
_JOBS = listed("teacher doctor cook pilot nurse baker farmer driver singer painter writer lawyer")
_INTEGERS = ("age", "price", "quantity")


def _field_list(fields: list[str], s: Source) -> str:
    if len(fields) == 1:
        text = fields[0]
    elif s.chance(0.3):
        text = ", ".join(fields)
    else:
        text = ", ".join(fields[:-1]) + " and " + fields[-1]
    return s.pick(("the ", "the ", "")) + text


def extract(s: Source) -> Episode:
    """A sentence and the fields wanted of it; the reply is the JSON object alone."""
    while True:
        stated, sentences = s.rng.choices(_SENTENCES, weights=(45, 10, 10, 10, 6, 10, 6, 8))[0]
        # Jobs are a closed list, so they cannot be held out.
        if s.split == "train" or "job" not in stated:
            break
    draw = {
        "name": s.name,
        "friend": s.name,
        "city": s.city,
        "company": s.city,
        "item": s.word,
        "job": lambda: s.pick(_JOBS),
    }
    values: dict[str, str | int] = {f: s.number(3) if f in _INTEGERS else draw[f]() for f in stated}
    wanted = list(stated)
    if s.chance(0.25):
        s.rng.shuffle(wanted)
    if s.chance(0.2):
        wanted = wanted[: s.rng.randrange(1, len(wanted) + 1)]
    sentence = s.pick(sentences).format(**values)
    request = s.rough(s.pick(_REQUESTS)).format(f=_field_list(wanted, s), t=sentence)
    if s.chance(0.12):
        wanted = list(stated)
        request = s.pick(_BARE_REQUESTS).format(t=sentence)
    found = {f: values[f] for f in wanted}
    return Episode("json", (user(request), assistant(json.dumps(found))), Answer("json", found))
