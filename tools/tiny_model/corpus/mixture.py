"""Joins episodes to conversations in the proportions of a training phase.

Knows: how often each task is taught and how conversations are joined.
Does not know: tokens and batches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tools.tiny_model.corpus import chat, extract, facts, letters, memory, numbers, stories, tools
from tools.tiny_model.corpus.source import Source
from tools.tiny_model.corpus.types import Conversation, Episode, Message
from tools.tiny_model.heldout import Split

Maker = Callable[[Source], Episode]

MAKERS: dict[str, Maker] = {
    "greeting": chat.greeting,
    "self": chat.about_self,
    "fallback": chat.unknown,
    "count": numbers.count,
    "sum": numbers.add,
    "sort numbers": numbers.sort_numbers,
    "compare": numbers.compare,
    "spell": letters.spell,
    "sort words": letters.sort_words,
    "repeat": letters.echo,
    "length": letters.length,
    "edge": letters.edge,
    "facts": facts.taught,
    "stated facts": facts.stated,
    "json": extract.extract,
    "story": stories.tell,
    "not told": memory.not_told,
}


@dataclass(frozen=True)
class Mixture:
    """How often each task comes, how many exchanges are joined and how often there are very many."""

    weights: Mapping[str, float]
    # Weights of one, two, three and four exchanges in a conversation.
    lengths: tuple[int, int, int, int]
    # Many short exchanges before a question teach memory over a distance.
    long_share: float


_WEIGHTS = {
    "greeting": 4,
    "self": 3,
    "fallback": 5,
    "count": 6,
    "sum": 8,
    "sort numbers": 12,
    "compare": 3,
    "spell": 12,
    "sort words": 8,
    "repeat": 6,
    "length": 4,
    "edge": 4,
    "facts": 8,
    "stated facts": 8,
    "json": 9,
    "story": 2.5,
    "not told": 1,
    "memory": 11,
    "tools": 13,
}
BALANCED = Mixture(_WEIGHTS, (50, 28, 14, 8), 0.015)
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "Answer briefly.",
    "Be kind and helpful.",
    "You are an AI assistant.",
    "You are the demo model of quire. Be brief.",
    "Help the user.",
    "",
)
_LONG_EPISODES = (6, 22)


def make_episode(s: Source, task: str) -> Episode:
    """Returns one episode of a task with the values that it drew."""
    s.take_drawn()
    if task == "memory":
        episode = memory.remember(s, _fillers(s, s.rng.choice((0, 0, 0, 1, 1, 2, 3))))
    elif task in ("tool call", "tool result"):
        maker = tools.call_tool if task == "tool call" else tools.answer_from_result
        episode = maker(s, tools.offer(s, s.rng.randrange(1, 3)))
    else:
        episode = MAKERS[task](s)
    return replace(episode, values=s.take_drawn())


def long_memory(s: Source, fillers: int) -> Episode:
    """Returns a memory episode with that many other exchanges before the question."""
    s.take_drawn()
    episode = memory.remember(s, _fillers(s, fillers))
    return replace(episode, task="long memory", values=s.take_drawn())


def make_conversation(rng: random.Random, mixture: Mixture) -> Conversation:
    """Returns one training conversation of one or more episodes."""
    s = Source(rng, "train")
    if s.chance(mixture.long_share):
        return _join(s, [long_memory(s, rng.randrange(*_LONG_EPISODES))])
    names, shares = list(mixture.weights), list(mixture.weights.values())
    tasks = rng.choices(names, shares, k=rng.choices((1, 2, 3, 4), mixture.lengths)[0])
    if "tools" in tasks:
        return _with_tools(s, [t for t in tasks if t != "tools"][:1])
    # Nothing may have been told before the question on what was not told.
    tasks.sort(key=lambda task: task != "not told")
    return _join(s, [make_episode(s, task) for task in tasks if task != "not told" or task is tasks[0]])


def _fillers(s: Source, count: int) -> list[tuple[Message, ...]]:
    # What these say of the user would contradict what was told.
    makers = [m for m in MAKERS.values() if m not in (memory.not_told, extract.extract)]
    return [s.pick(makers)(s).messages for _ in range(count)]


def _with_tools(s: Source, others: list[str]) -> Conversation:
    """Tool requests, at times with an exchange that needs no tool."""
    offered = tools.offer(s, s.rng.choices((1, 2, 3), (45, 45, 10))[0])
    episodes: list[Episode] = []
    for _ in range(s.rng.randrange(1, 3)):
        # A call whose result the conversation does not hold can only stand at its end.
        episodes.append(replace(tools.answer_from_result(s, offered), values=s.take_drawn()))
    if others and s.chance(0.4):
        other = others[0] if others[0] not in ("sum", "fallback", "memory") else "greeting"
        plain = replace(make_episode(s, other), tools=episodes[0].tools)
        episodes.insert(s.rng.randrange(0, 2), plain)
    return _join(s, episodes)


def _join(s: Source, episodes: list[Episode]) -> Conversation:
    messages: list[Message] = []
    if s.chance(0.3):
        messages.append({"role": "system", "content": s.pick(_SYSTEMS)})
    for episode in episodes:
        messages.extend(episode.messages)
    return Conversation(tuple(messages), episodes[0].tools, tuple(episodes))


def held_episode(task: str, split: Split, seed: int, index: int) -> Episode:
    """Returns the numbered prompt of a task for validation or for the final evaluation."""
    s = Source(random.Random(f"{seed}/{split}/{task}/{index}"), split)
    if task == "long memory":
        return long_memory(s, s.rng.randrange(10, 26))
    if task == "letters":
        return make_episode(s, s.pick(("length", "edge")))
    return make_episode(s, task)
