"""Small talk, self-description and the graceful answer to what the model cannot do.

Knows: the phrasings and replies. Does not know: how a reply is judged.
Most texts are put together from parts: what is held out is a combination, not the words in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tools.tiny_model.corpus.source import Source
from tools.tiny_model.corpus.types import Answer, Episode, assistant, user

ABILITIES = (
    "I can count, spell, sort and add numbers, answer small questions, remember what you tell me, "
    "write JSON, call tools and tell short stories."
)
WHO = "I am the demo model of quire, a very small language model. " + ABILITIES
MADE = "I was made by the quire project and trained from scratch on a small generated corpus."
QUIRE = "quire is an open-source inference engine for language models. I am its small built-in demo model."
FALLBACK = "I am only a small demo model, so I cannot help with that. Ask me what I can do."

_NAMED = ("quire", "demo model", "count", "spell", "sort", "stories")


@dataclass(frozen=True)
class _Talk:
    """Texts of one meaning, each a lead, a core and a tail, and the reply to all of them."""

    leads: tuple[str, ...]
    cores: tuple[str, ...]
    tails: tuple[str, ...]
    reply: str


_HELLO = _Talk(
    ("", "", "", "Oh, ", "Well, ", "Ah, "),
    (
        "Hello",
        "Hi",
        "Hey",
        "Good morning",
        "Good evening",
        "Good afternoon",
        "Good day",
        "Hi there",
        "Hello there",
        "Hey there",
        "Greetings",
        "Howdy",
        "Hallo",
        "Yo",
    ),
    (
        "",
        "!",
        ".",
        " my friend",
        " friend",
        " quire",
        " robot",
        " again",
        ", my friend!",
        ", quire!",
        " to you",
        " {n}",
    ),
    "Hello! How can I help you?",
)
_SMALL: tuple[_Talk, ...] = (
    _Talk(
        ("", "Hi, ", "Hello, ", "Hey, ", "Good morning, ", "And ", "So ", "Hello! ", "Hi! "),
        (
            "how are you",
            "how are you doing",
            "how is it going",
            "how do you feel",
            "are you well",
            "how is your day",
            "how are things",
            "are you okay",
        ),
        ("?", "", " today?", " now?", " my friend?", " this morning?", ", quire?", " {n}?"),
        "I am fine, thank you. How can I help you?",
    ),
    _Talk(
        ("", "Great, ", "Okay, ", "Cool, ", "Nice, ", "Perfect, ", "Good, ", "Oh, "),
        (
            "thanks",
            "thank you",
            "thank you very much",
            "thanks a lot",
            "many thanks",
            "thx",
            "ty",
            "thank you so much",
        ),
        ("", "!", ".", " for your help", " for that", " my friend", ", quire!", " for everything", " again", " {n}"),
        "You are welcome!",
    ),
    _Talk(
        ("", "Okay, ", "Thanks, ", "Great, ", "Well, ", "Now ", "Good, "),
        (
            "bye",
            "goodbye",
            "see you",
            "good night",
            "see you later",
            "bye bye",
            "I have to go",
            "see you tomorrow",
            "I must leave",
        ),
        ("", "!", ".", " now", " my friend", ", quire!", " then", " for today", " {n}"),
        "Goodbye! Have a nice day.",
    ),
    _Talk(
        ("", "Oh, ", "Yes, ", "Wow, ", "Well, ", "Ah, "),
        (
            "great",
            "good job",
            "nice",
            "well done",
            "cool",
            "okay",
            "ok",
            "perfect",
            "that is right",
            "very good",
            "that was good",
            "correct",
            "I like that",
        ),
        ("", "!", ".", " my friend", ", quire!", " again", " indeed"),
        "I am glad to help. What is next?",
    ),
    _Talk(
        ("", "No, ", "Oh, ", "Hm, ", "Sorry, ", "But "),
        (
            "that is wrong",
            "this is not right",
            "wrong",
            "not good",
            "you made a mistake",
            "that is not correct",
            "this is false",
            "that was wrong",
            "that is a mistake",
            "no",
        ),
        ("", "!", ".", " my friend", ", quire.", " again", " this time"),
        "I am sorry. I am a small model and make mistakes.",
    ),
    _Talk(
        ("", "Hello, ", "Hi, ", "Hey, ", "And "),
        (
            "test",
            "is this working",
            "are you there",
            "can you hear me",
            "ping",
            "testing",
            "are you awake",
            "does this work",
            "are you online",
            "is anybody there",
        ),
        ("", "?", " now?", " today?", ", quire?", " again?", " my friend?"),
        "Yes, I am here. How can I help you?",
    ),
)
_WHO = _Talk(
    ("", "", "Hi, ", "Hello, ", "Okay, ", "So ", "And ", "Please, ", "Thanks. ", "Tell me: "),
    (
        "who are you",
        "what are you",
        "what is your name",
        "tell me about yourself",
        "introduce yourself",
        "can you tell me who you are",
        "which model are you",
        "are you a bot",
        "what model is this",
        "who am I talking to",
        "could you introduce yourself",
        "describe yourself",
        "are you a language model",
        "what should I call you",
        "who is this",
        "what kind of model are you",
        "do you have a name",
        "are you an AI",
        "say something about yourself",
        "tell me who you are",
        "tell me what you are",
        "what's your name",
        "are you a real person",
        "are you human",
        "what are you called",
        "are you ChatGPT",
        "is this a demo model",
        "may I ask who you are",
        "what is this model called",
        "tell me your name",
        "which AI is this",
        "are you GPT",
        "do I talk to a machine",
        "I want to know who you are",
        "are you a program",
        "who is speaking",
        "are you Llama",
        "how would you describe yourself",
        "what can you do",
        "what are you able to do",
        "how can you help me",
        "what can I ask you",
        "what are your skills",
        "what things can you do",
        "help",
        "help me",
        "what do you know",
        "what are you good at",
        "can you help me",
        "tell me what you can do",
        "list your abilities",
        "what can you help me with",
        "show me what you can do",
        "what tasks can you do",
        "what should I ask you",
    ),
    ("?", "?", ".", "", " exactly?", " please", ", please?", " now?", ", quire?", " my friend?"),
    WHO,
)
_MADE = _Talk(
    ("", "And ", "Okay, ", "Hi, "),
    (
        "who made you",
        "who created you",
        "where do you come from",
        "how were you trained",
        "who trained you",
        "who built you",
        "who is your creator",
        "how were you made",
    ),
    ("?", "", " exactly?", ", quire?"),
    MADE,
)
_QUIRE = _Talk(
    ("", "And ", "Okay, ", "Please, "),
    ("what is quire", "tell me about quire", "what does quire do", "explain quire", "do you know quire"),
    ("?", "", " exactly?", ", please."),
    QUIRE,
)
# Requests beyond the model: a verb phrase and what it is about.
_BEYOND: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("Write", "Please write", "Can you write", "Compose", "Draft", "Make", "Give me", "I need", "Send me"),
        (
            " a poem",
            " an essay",
            " a letter",
            " a speech",
            " a review",
            " a song",
            " an article",
            " a report",
            " a book",
            " an email",
            " a program",
            " a recipe",
            " ten ideas",
            " some advice",
        ),
        (" about {w}.", " on {w}", " for {p}.", " about {c}.", " with {w}", " about my {w}.", "."),
    ),
    (
        ("Explain", "Please explain", "Can you explain", "Describe", "Tell me about", "Teach me", "I want to learn"),
        (
            " {w}",
            " how a {w} works",
            " the history of {c}",
            " why people like {w}",
            " quantum physics",
            " the theory of {p}",
            " how to make {w}",
            " the news of today",
            " how to dance",
            " the life of {p}",
            " the price of {w}",
        ),
        ("", ".", " to me.", " please", " in detail"),
    ),
    (
        ("What is", "What's", "Calculate", "How much is", "Compute", "Please solve", "Tell me"),
        (" {n} times", " {n} minus", " {n} divided by", " {n} *", " {n} -", " {n} /"),
        (" {m}?", " {m}", " {m}."),
    ),
    (
        ("Book", "Find", "Order", "Get", "Reserve", "Buy", "Show", "Search"),
        (" me a flight to", " me a hotel in", " me a ticket to", " me the way to", " me a trip to", " a taxi in"),
        (" {c}.", " {c}", " {c} please", " {c} for {p}."),
    ),
    (
        ("Draw", "Show me", "Paint", "Send me", "Find"),
        (" a picture of", " a video of", " a photo of", " a map of"),
        (" a {w}.", " {c}", " my {w}.", " {p}."),
    ),
    (
        (
            "What is the best",
            "Where can I buy a",
            "How do I fix my",
            "How do I cook",
            "Who invented the",
            "Why do I need a",
        ),
        (" {w}", " new {w}", " old {w}", " red {w}", " small {w}"),
        ("?", "", " in {c}?", " for {p}?", " today?"),
    ),
    (
        (
            "Who is",
            "Where is",
            "How old is",
            "How tall is",
            "What did",
            "Do you like",
            "Is it true about",
            "What about",
        ),
        (" {p}", " the president of {c}", " the king of {c}", " the mother of {p}", " the owner of the {w}"),
        ("?", "", " now?", " really?"),
    ),
    (
        ("Translate", "Please translate", "Can you translate", "How do I say", "How do you say"),
        (" {w}", " the word {w}", " this text", " my letter", " good morning"),
        (" to French.", " in German?", " to Spanish", " into Italian.", " in Polish?"),
    ),
    (
        ("", "Please ", "Can you ", "Hey, "),
        (
            "solve this equation",
            "fix this bug",
            "play chess with me",
            "tell me a joke",
            "sing a song",
            "do my homework",
            "summarize the news",
            "recommend a film",
            "open a file",
            "plan my day",
            "prove the theorem of {p}",
            "guess my age",
            "write code for a web page",
            "drive a car",
            "tell me the weather in {c}",
            "tell me what time it is",
            "call {p}",
            "send a message to {p}",
        ),
        ("", ".", " for me", " now", " please"),
    ),
    (
        ("", "Tell me, ", "And ", "So "),
        (
            "who won the last election",
            "what is the meaning of life",
            "what will happen tomorrow",
            "what is the weather in {c}",
            "what time is it in {c}",
            "how far is it to {c}",
            "how many people live in {c}",
            "which phone should I buy",
            "why is the moon round",
            "how do magnets work",
            "what should I eat",
            "what is love",
            "how old is the universe",
            "should I move to {c}",
            "which is better, {w} or {v}",
            "is {w} healthy",
            "what do you think about {w}",
        ),
        ("?", "", " exactly?", " my friend?"),
    ),
)


def _said(s: Source, talk: _Talk) -> str:
    """Returns one text of a talk; the plain cores are always for training."""
    if s.split == "train" and s.chance(0.25):
        text = s.pick(talk.cores)
    else:
        text = s.composed(talk.leads, talk.cores, talk.tails, common=talk.cores)
    text = text[0].upper() + text[1:]
    return s.rough(text).format(n=s.name()) if "{n}" in text else s.rough(text)


def _episode(task: str, text: str, reply: str, parts: tuple[str, ...]) -> Episode:
    return Episode(task, (user(text), assistant(reply)), Answer("contains", parts))


def greeting(s: Source) -> Episode:
    """Hello, thanks, goodbye and the like."""
    talk = _HELLO if s.chance(0.4) else s.pick(_SMALL)
    return _episode("greeting", _said(s, talk), talk.reply, (talk.reply,))


def about_self(s: Source) -> Episode:
    """Who the model is, what it can do, who made it and what quire is."""
    kind = s.rng.random()
    if kind < 0.8 or s.split != "train":
        return _episode("self", _said(s, _WHO), WHO, _NAMED)
    if kind < 0.9:
        return _episode("maker", _said(s, _MADE), MADE, ("quire",))
    return _episode("quire", _said(s, _QUIRE), QUIRE, ("inference engine",))


def unknown(s: Source) -> Episode:
    """Requests beyond the model, answered by saying so."""
    template = s.rough(s.composed(*s.pick(_BEYOND)))
    first, second = s.several(s.word, 2)
    values = {"w": first, "v": second, "c": s.city(), "p": s.name(), "n": s.number(2), "m": s.number(2)}
    text = template.format(**values)
    return _episode("fallback", text[0].upper() + text[1:] if s.chance(0.7) else text, FALLBACK, (FALLBACK,))
