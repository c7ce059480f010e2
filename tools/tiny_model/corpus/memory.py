"""Remembering over several turns what the user told earlier.

Knows: what can be told and asked. Does not know: which exchanges lie in between, it is given
them as ready messages.
"""

from __future__ import annotations

from collections.abc import Sequence

from tools.tiny_model.corpus.source import Source
from tools.tiny_model.corpus.types import Answer, Episode, Message, assistant, user
from tools.tiny_model.words import listed

# Kind, ways to tell, ways to ask, the form of the reply to the question.
_THINGS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...] = (
    (
        "name",
        (
            "My name is {v}.",
            "I am {v}.",
            "Hi, I am {v}.",
            "Hello, my name is {v}.",
            "I'm {v}.",
            "You can call me {v}.",
            "Hi, my name is {v}!",
            "They call me {v}.",
            "Hey, I'm {v}!",
        ),
        (
            "What is my name?",
            "Do you remember my name?",
            "What's my name?",
            "Who am I?",
            "Tell me my name.",
            "Do you know my name?",
            "What was my name again?",
            "How am I called?",
        ),
        "Your name is {v}.",
    ),
    (
        "city",
        (
            "I live in {v}.",
            "I am from {v}.",
            "My home town is {v}.",
            "I come from {v}.",
            "My city is {v}.",
            "I'm living in {v}.",
        ),
        (
            "Where do I live?",
            "Which city do I live in?",
            "Where am I from?",
            "What is my home town?",
            "Do you remember where I live?",
            "What is my city?",
        ),
        "You live in {v}.",
    ),
    (
        "name",
        (
            "My best friend is {v}.",
            "My best friend is called {v}.",
            "{v} is my best friend.",
            "I have a best friend named {v}.",
        ),
        ("Who is my best friend?", "What is the name of my best friend?", "What is my best friend called?"),
        "Your best friend is {v}.",
    ),
    (
        "name",
        ("My dog is called {v}.", "I have a dog named {v}.", "My dog's name is {v}.", "I have a dog, {v}."),
        ("What is my dog called?", "What is the name of my dog?", "What is my dog's name?"),
        "Your dog is called {v}.",
    ),
    (
        "name",
        ("My cat is called {v}.", "I have a cat named {v}.", "My cat's name is {v}.", "I have a cat, {v}."),
        ("What is my cat called?", "What is the name of my cat?", "What is my cat's name?"),
        "Your cat is called {v}.",
    ),
    (
        "number",
        ("I am {v} years old.", "My age is {v}.", "I'm {v} years old."),
        ("How old am I?", "What is my age?", "Do you remember how old I am?"),
        "You are {v} years old.",
    ),
    (
        "number",
        ("My lucky number is {v}.", "My favourite number is {v}.", "Remember the number {v}."),
        (
            "What is my number?",
            "Which number did I tell you?",
            "What is my lucky number?",
            "What is my favourite number?",
        ),
        "Your number is {v}.",
    ),
    (
        "word",
        ("My favourite food is {v}.", "I like to eat {v} best.", "My favorite food is {v}."),
        ("What is my favourite food?", "What is my favorite food?", "What do I like to eat best?"),
        "Your favourite food is {v}.",
    ),
    (
        "word",
        ("My favourite colour is {v}.", "My favorite color is {v}.", "The colour I like best is {v}."),
        ("What is my favourite colour?", "What is my favorite color?", "Which colour do I like best?"),
        "Your favourite colour is {v}.",
    ),
    (
        "word",
        ("The secret word is {v}.", "Remember the word {v}.", "The password is {v}.", "The code word is {v}."),
        ("What is the secret word?", "Which word did I tell you?", "What is the password?", "What is the code word?"),
        "The word is {v}.",
    ),
)
_COLOURS = listed("red blue green yellow black white orange purple pink brown grey")
_FOODS = listed("pizza pasta rice soup cake bread salad sushi chocolate noodles cheese apples")
_ACKS = ("Got it, I will remember that.", "Okay, I will remember that.")


def _value(s: Source, kind: str, reply: str) -> str:
    if kind == "number":
        return str(s.number(3))
    if kind == "word" and s.split == "train" and s.chance(0.4) and "favourite" in reply:
        return s.pick(_COLOURS if "colour" in reply else _FOODS)
    value = {"name": s.name, "city": s.city, "word": s.word}[kind]()
    # Hurried people write names in lower case.
    return value.lower() if kind == "name" and s.chance(0.08) else value


def remember(s: Source, fillers: Sequence[tuple[Message, ...]]) -> Episode:
    """One to three things told, other exchanges, then a question on one of the things."""
    things = s.rng.sample(_THINGS, s.rng.choice((1, 1, 1, 2, 2, 3)))
    told = [(t, _value(s, t[0], t[3])) for t in things]
    messages: list[Message] = []
    texts = [s.rough(s.pick(t[1])).format(v=value) for t, value in told]
    if len(told) > 1 and s.chance(0.5):
        messages += [user(" ".join(texts)), assistant(s.pick(_ACKS))]
    else:
        for (thing, value), text in zip(told, texts, strict=True):
            named = thing[3].startswith("Your name")
            reply = f"Nice to meet you, {value}!" if named else s.pick(_ACKS)
            messages += [user(text), assistant(reply)]
    for filler in fillers:
        messages += filler
    thing, value = s.pick(told)
    reply = thing[3].format(v=value)
    messages += [user(s.rough(s.pick(thing[2]))), assistant(reply)]
    return Episode("memory", tuple(messages), Answer("exact", reply))


def not_told(s: Source) -> Episode:
    """A question on something that the user never told."""
    asks = {
        "What is my name?": "name",
        "Do you remember my name?": "name",
        "How old am I?": "age",
        "Where do I live?": "city",
        "What's my name?": "name",
        "Do you know my name?": "name",
    }
    question = s.pick(tuple(asks))
    reply = f"You have not told me your {asks[question]} yet."
    return Episode("not told", (user(s.rough(question)), assistant(reply)), Answer("exact", reply))
