"""Small facts: those that the model is taught, and those that the user states just before.

Knows: the facts and their phrasings. Does not know: how a reply is judged.
Taught facts must be in the corpus, so there the phrasing of the question is held out; stated
facts have held-out names and places.
"""

from __future__ import annotations

from itertools import pairwise

from tools.tiny_model.corpus.source import Source
from tools.tiny_model.corpus.types import Answer, Episode, assistant, user
from tools.tiny_model.words import listed

_CAPITALS = """France=Paris Germany=Berlin Italy=Rome Spain=Madrid Austria=Vienna Norway=Oslo
Portugal=Lisbon Greece=Athens Ireland=Dublin Poland=Warsaw Hungary=Budapest Finland=Helsinki
Sweden=Stockholm Denmark=Copenhagen Belgium=Brussels Switzerland=Bern England=London Canada=Ottawa
Japan=Tokyo China=Beijing India=Delhi Egypt=Cairo Kenya=Nairobi Peru=Lima Colombia=Bogota
Chile=Santiago Senegal=Dakar Tunisia=Tunis Russia=Moscow Turkey=Ankara"""
_OPPOSITES = """hot=cold big=small up=down left=right day=night black=white old=young fast=slow
good=bad happy=sad open=closed full=empty high=low hard=soft wet=dry early=late long=short
light=dark rich=poor strong=weak thick=thin loud=quiet near=far clean=dirty yes=no first=last
inside=outside love=hate win=lose true=false"""
_SOUNDS = """dog=woof cat=meow cow=moo sheep=baa duck=quack pig=oink lion=roar horse=neigh bee=buzz
owl=hoot snake=hiss frog=croak rooster=crow mouse=squeak"""
_COLOURS = """grass=green snow=white blood=red coal=black lemon=yellow banana=yellow carrot=orange
milk=white tomato=red leaf=green night=black chocolate=brown strawberry=red sky=blue"""
_LEGS = "dog=4 cat=4 bird=2 ant=6 bee=6 horse=4 snake=0 chicken=2 cow=4 fish=0 human=2"
_DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday Monday")
_MONTHS = listed("January February March April May June July August September October November December January")
_SINGLE: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        (
            "How many days are in a week?",
            "How many days does a week have?",
            "A week has how many days?",
            "Number of days in a week?",
            "Tell me how many days a week has.",
            "How many days make a week?",
        ),
        "A week has 7 days.",
        "7",
    ),
    (
        (
            "How many months are in a year?",
            "How many months does a year have?",
            "Number of months in a year?",
            "A year has how many months?",
            "How many months make a year?",
            "Tell me how many months a year has.",
        ),
        "A year has 12 months.",
        "12",
    ),
    (
        (
            "How many hours are in a day?",
            "How many hours does a day have?",
            "A day has how many hours?",
            "Number of hours in a day?",
            "How many hours make a day?",
            "Tell me how many hours a day has.",
        ),
        "A day has 24 hours.",
        "24",
    ),
    (
        (
            "How many minutes are in an hour?",
            "How many minutes does an hour have?",
            "An hour has how many minutes?",
            "Number of minutes in an hour?",
            "How many minutes make an hour?",
            "Tell me how many minutes an hour has.",
        ),
        "An hour has 60 minutes.",
        "60",
    ),
    (
        (
            "How many letters are in the alphabet?",
            "How many letters does the alphabet have?",
            "The alphabet has how many letters?",
            "How long is the alphabet?",
            "Number of letters in the alphabet?",
            "Tell me how many letters the alphabet has.",
        ),
        "The alphabet has 26 letters.",
        "26",
    ),
)


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(a, b) for a, b in (item.split("=") for item in listed(text))]


_RELATIONS: tuple[tuple[list[tuple[str, str]], tuple[str, ...], str], ...] = (
    (
        _pairs(_CAPITALS),
        (
            "What is the capital of {a}?",
            "Which city is the capital of {a}?",
            "Tell me the capital of {a}.",
            "Capital of {a}?",
            "{a}'s capital?",
            "What's the capital city of {a}?",
            "Do you know the capital of {a}?",
            "Name the capital of {a}.",
            "What is {a}'s capital?",
            "Can you tell me the capital of {a}?",
            "Which is the capital of {a}?",
            "Please name the capital city of {a}.",
        ),
        "The capital of {a} is {b}.",
    ),
    (
        _pairs(_OPPOSITES),
        (
            "What is the opposite of {a}?",
            "What's the opposite of {a}?",
            "Opposite of {a}?",
            "Tell me the opposite of {a}.",
            "Give me the opposite of {a}.",
            "Which word is the opposite of {a}?",
            'What is the opposite of "{a}"?',
            "Name the opposite of {a}.",
            "Do you know the opposite of {a}?",
            "The opposite of {a}?",
            "What word means the opposite of {a}?",
            "Please tell me the opposite of {a}.",
        ),
        "The opposite of {a} is {b}.",
    ),
    (
        _pairs(_SOUNDS),
        (
            "What does a {a} say?",
            "What sound does a {a} make?",
            "Which sound does a {a} make?",
            "What noise does a {a} make?",
            "Sound of a {a}?",
            "Tell me the sound of a {a}.",
            "What is the sound of a {a}?",
            "How does a {a} sound?",
            "What does the {a} say?",
            "What sound does the {a} make?",
            "Make the sound of a {a}.",
            "Which noise does the {a} make?",
        ),
        "A {a} says {b}.",
    ),
    (
        _pairs(_COLOURS),
        (
            "What colour is {a}?",
            "What color is {a}?",
            "Which colour does {a} have?",
            "Which color is {a}?",
            "Tell me the color of {a}.",
            "What is the colour of {a}?",
            "The color of {a}?",
            "What is the color of {a}?",
            "Colour of {a}?",
            "Tell me the colour of {a}.",
            "What color does {a} have?",
            "Do you know the color of {a}?",
        ),
        "The colour of {a} is {b}.",
    ),
    (
        _pairs(_LEGS),
        (
            "How many legs does a {a} have?",
            "How many legs has a {a}?",
            "A {a} has how many legs?",
            "Number of legs of a {a}?",
            "Tell me how many legs a {a} has.",
            "How many legs does the {a} have?",
        ),
        "A {a} has {b} legs.",
    ),
    (
        list(pairwise(_DAYS)) + list(pairwise(_MONTHS)),
        (
            "What comes after {a}?",
            "What comes next after {a}?",
            "Which one follows {a}?",
            "What follows {a}?",
            "What is after {a}?",
            "Tell me what comes after {a}.",
            "After {a} comes what?",
            "Which comes after {a}?",
            "What comes right after {a}?",
            "Name what follows {a}.",
            "And what comes after {a}?",
            "What is next after {a}?",
        ),
        "After {a} comes {b}.",
    ),
)
_STATED: tuple[tuple[str, str, str, str], ...] = (
    ("The capital of {a} is {b}.", "What is the capital of {a}?", "place", "place"),
    ("{a} lives in {b}.", "Where does {a} live?", "person", "place"),
    ("The brother of {a} is {b}.", "Who is the brother of {a}?", "person", "person"),
    ("{a} was born in {b}.", "Where was {a} born?", "person", "place"),
    ("The best friend of {a} is {b}.", "Who is the best friend of {a}?", "person", "person"),
    ("The mayor of {a} is {b}.", "Who is the mayor of {a}?", "place", "person"),
    ("{a} works in {b}.", "Where does {a} work?", "person", "place"),
    ("{a} has a {b}.", "What does {a} have?", "person", "thing"),
    ("{a} wants to buy a {b}.", "What does {a} want to buy?", "person", "thing"),
)


_ORDERS = ("{p} {q}", "{q} {p}", "{p}\n{q}", "{p} Question: {q}", "Read this: {p} {q}")


def taught(s: Source) -> Episode:
    """A fact of the corpus, asked for in one of many ways."""
    if s.chance(0.08):
        texts, reply, value = s.pick(_SINGLE)
        return Episode("facts", (user(s.rough(s.phrasing(texts))), assistant(reply)), Answer("contains", (value,)))
    pairs, texts, form = s.rng.choices(_RELATIONS, weights=(30, 27, 14, 14, 10, 19))[0]
    a, b = s.pick(pairs)
    reply = form.format(a=a, b=b)
    return Episode("facts", (user(s.rough(s.phrasing(texts)).format(a=a)), assistant(reply)), Answer("exact", reply))


def stated(s: Source) -> Episode:
    """A question on one of up to three facts that the user states in the same message."""
    draw = {"place": s.city, "person": s.name, "thing": s.word}
    told: list[tuple[str, str, str]] = []
    for _ in range(s.rng.randrange(1, 4)):
        form, question, kind_a, kind_b = s.pick(_STATED)
        a, b = draw[kind_a](), draw[kind_b]()
        told.append((form.format(a=a, b=b), question.format(a=a), form.format(a=a, b=b)))
    _, question, reply = s.pick(told)
    passage = " ".join(t[0] for t in told)
    text = s.pick(_ORDERS).format(p=passage, q=question)
    return Episode("stated facts", (user(text), assistant(reply)), Answer("exact", reply))
