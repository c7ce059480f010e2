"""Tasks on words: spelling, sorting by the alphabet, repeating, length, first and last letters.

Knows: their phrasings and right answers. Does not know: how a reply is judged.
"""

from __future__ import annotations

from tools.tiny_model.corpus.source import Source
from tools.tiny_model.corpus.types import Answer, Episode, assistant, user

_SPELL = (
    "Spell {x}.",
    "Spell the word {x}.",
    "How do you spell {x}?",
    "Please spell {x}.",
    'Spell "{x}".',
    "Can you spell {x}?",
    "Can you spell the word {x}?",
    "Spell {x} for me.",
    'Spell the word "{x}".',
    "Spell out {x}.",
    "Spell {x} letter by letter.",
    "How is {x} spelled?",
    "Spell: {x}",
    "What are the letters of {x}?",
)
_SORT = (
    "Sort these words: {x}",
    "Sort these words alphabetically: {x}",
    "Sort the words {x}.",
    "Put these words in alphabetical order: {x}",
    "Please sort alphabetically: {x}",
    "Sort by the alphabet: {x}",
    "Sort {x} alphabetically.",
    "Can you sort these words? {x}",
    "Order these words from a to z: {x}",
    "Sort this list of words: {x}",
)
_ECHO = (
    "Repeat after me: {x}",
    "Say {x}",
    'Say "{x}".',
    "Please repeat: {x}",
    'Repeat "{x}".',
    "Repeat: {x}",
    "Say exactly this: {x}",
    "Echo {x}",
    "Please say: {x}",
)
_LENGTH = (
    "How many letters are in {x}?",
    "How many letters does {x} have?",
    "Count the letters in {x}.",
    "How long is the word {x}?",
    'How many letters are there in "{x}"?',
)
_EDGE = (
    "What is the {e} letter of {x}?",
    "Tell me the {e} letter of {x}.",
    "What's the {e} letter in {x}?",
    'What is the {e} letter of the word "{x}"?',
)


def spell(s: Source) -> Episode:
    """Spelling a word or a name."""
    word = s.word() if s.chance(0.75) else s.name()
    text = s.rough(s.pick(_SPELL)).format(x=word)
    reply = "-".join(word)
    return Episode("spell", (user(text), assistant(reply)), Answer("exact", reply))


def sort_words(s: Source) -> Episode:
    """Sorting three to five words with different first letters."""
    words: list[str] = []
    for _ in range(s.rng.randrange(3, 6)):
        word = s.word(7)
        while any(word[0] == other[0] for other in words):
            word = s.word(7)
        words.append(word)
    text = s.rough(s.pick(_SORT)).format(x=s.pick((", ", ", ", " ")).join(words))
    reply = "Sorted: " + ", ".join(sorted(words))
    return Episode("sort words", (user(text), assistant(reply)), Answer("exact", reply))


def echo(s: Source) -> Episode:
    """Repeating one to four words, or digits in training."""
    if s.split == "train" and s.chance(0.15):
        parts = [str(s.number(0, 9999)) for _ in range(s.rng.randrange(1, 4))]
    else:
        parts = [s.pick((s.word, s.word, s.name))() for _ in range(s.rng.randrange(1, 5))]
    reply = " ".join(parts)
    text = s.rough(s.pick(_ECHO)).format(x=reply)
    return Episode("repeat", (user(text), assistant(reply)), Answer("exact", reply))


def length(s: Source) -> Episode:
    """How many letters a word has."""
    word = s.word()
    text = s.rough(s.pick(_LENGTH)).format(x=word)
    reply = f"{'-'.join(word)} has {len(word)} letters."
    return Episode("letters", (user(text), assistant(reply)), Answer("exact", reply))


def edge(s: Source) -> Episode:
    """The first or the last letter of a word."""
    word, last = s.word(), s.chance(0.5)
    which = "last" if last else "first"
    text = s.rough(s.pick(_EDGE)).format(x=word, e=which)
    reply = f"{'-'.join(word)}: the {which} letter is {word[-1 if last else 0]}."
    return Episode("letters", (user(text), assistant(reply)), Answer("exact", reply))
