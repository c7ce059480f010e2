"""Short stories put together from sentences.

Knows: the story grammar. Does not know: how a story is judged.
"""

from __future__ import annotations

from tools.tiny_model.corpus.source import Source
from tools.tiny_model.corpus.types import Answer, Episode, assistant, user
from tools.tiny_model.words import listed

_HEROES = listed(
    "fox cat dog rabbit mouse bear owl duck horse frog robot dragon girl boy king queen farmer wizard "
    "pirate princess elephant lion turtle penguin squirrel bee ghost knight monkey whale"
)
_ASK = (
    "Tell me a short story about a {h} named {n}.",
    "Tell me a story about a {h} called {n}.",
    "Write a short story about a {h} named {n}.",
    "Tell a story about {n} the {h}.",
    "I want a story about a {h} named {n}.",
    "Can you tell me a story about a {h} named {n}?",
    "A story about {n} the {h}, please.",
    "Please write a story about a {h} called {n}.",
)
_ASK_PLAIN = (
    "Tell me a story.",
    "Tell me a short story.",
    "Can you tell me a story?",
    "Write a story.",
    "A story, please.",
    "Write a short story for me.",
    "Do you know a story?",
    "Once upon a time",
)
_ASK_HERO = (
    "Tell me a story about a {h}.",
    "Write a story about a {h}.",
    "Tell me a short story about a {h}.",
    "Can you tell a story about a {h}?",
    "story about a {h}",
)
_OPEN = (
    "Once upon a time there was a {h} named {n} who lived {place}.",
    "Long ago, a {h} named {n} lived {place}.",
    "There once was a {h} called {n}, whose home was {place}.",
    "A {h} named {n} lived {place}.",
)
_PLACES = (
    "near a quiet lake",
    "in a small village",
    "at the edge of a dark forest",
    "on a high hill",
    "in an old house by the sea",
    "under a big oak",
    "behind the mill",
    "in a warm valley",
    "on a little island",
)
_WISH = (
    "Every day {n} dreamed of {goal}.",
    "More than anything, {n} wished for {goal}.",
    "One morning {n} set out to look for {goal}.",
    "{n} had only one wish: {goal}.",
)
_GOALS = (
    "a golden key",
    "a new friend",
    "the way to the moon",
    "a song that nobody knew",
    "the oldest book in the land",
    "a silver bell",
    "a star that had fallen",
    "a map of the world",
    "a flower that never fades",
)
_TROUBLE = (
    "But then a storm came and the path was gone.",
    "On the way a deep river blocked the road.",
    "Soon it grew dark and cold.",
    "After a while {n} was lost.",
    "Then a loud noise came from the trees.",
    "Suddenly the old bridge broke.",
    "At noon a thick fog covered everything.",
)
_HELP = (
    "A kind {o} heard this and showed {n} another way.",
    "A little {o} came by and offered help.",
    "Luckily a wise {o} was sitting close by and gave good advice.",
    "An old friend, a {o}, brought a lamp.",
    'Then a friendly {o} said: "Follow me, I know what to do."',
)
_DEED = (
    "Together they walked the whole night.",
    "They shared some bread and went on.",
    "Step by step, they came closer.",
    "They laughed about their fear and tried again.",
    "Both of them worked hard until the sun came up.",
)
_FIND = (
    "In the end they found {goal}, just behind the next hill.",
    "At last {n} saw {goal} and jumped for joy.",
    "And there it was: {goal}.",
    "When the sun rose, {n} finally had {goal}.",
)
_CLOSE = (
    "From that day on, the two were best friends.",
    "{n} went home happy and slept very well.",
    "And {n} never forgot who had helped.",
    "That evening everyone came to celebrate.",
    "They lived happily ever after.",
    "And so {n} learned that it is good to ask for help.",
)


def tell(s: Source) -> Episode:
    """A story of seven sentences; the evaluation always names the hero."""
    kind, name, helper = s.pick(_HEROES), s.name(), s.pick(_HEROES)
    while helper == kind:
        helper = s.pick(_HEROES)
    if s.split != "train" or s.chance(0.3):
        kind = s.word()
    named = s.split != "train" or s.chance(0.6)
    asked = named or s.chance(0.6)
    template = s.pick(_ASK if named else _ASK_HERO if asked else _ASK_PLAIN)
    fields = {"h": kind, "n": name, "o": helper, "goal": s.pick(_GOALS), "place": s.pick(_PLACES)}
    parts = (_OPEN, _WISH, _TROUBLE, _HELP, _DEED, _FIND, _CLOSE)
    story = " ".join(s.pick(part) for part in parts).format(**fields)
    return Episode("story", (user(s.rough(template).format(**fields)), assistant(story)), Answer("story", name))
