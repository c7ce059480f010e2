"""Who waits for whom: long texts for each other, short ones and the event loop for nobody."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from quire.base.errors import InvalidRequestError, OverloadedError, TemplateError
from quire.engine import text_pool
from quire.engine.text_front import TextFront
from quire.engine.text_pool import INLINE_CHARACTERS, LONG_CHARACTERS, MAX_CHARACTERS, Lane, TextPool, grouped, lane_for
from quire.text.chat import ChatTemplate


class Tokenizer:
    """A token per character; texts that begin with `wait` wait for the gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.threads: dict[str, str] = {}
        self.special_tokens = {"bos_token": "<s>"}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.threads[text[:8]] = threading.current_thread().name
        if text.startswith("wait"):
            assert self.gate.wait(10)
        return list(range(len(text)))


@pytest.fixture
def tokenizer():
    tokenizer = Tokenizer()
    yield tokenizer
    tokenizer.gate.set()


@pytest.fixture
def front(tokenizer):
    front = TextFront(tokenizer, ChatTemplate({"default": "{{ messages[0].content }}"}, {}))
    yield front
    front.close()


async def test_short_texts_pass_long_ones_and_the_loops_threads_stay_free(front, tokenizer):
    """SEC-22: many long texts wait in a queue of their own."""
    long = "wait" + "x" * LONG_CHARACTERS
    waiting = [asyncio.create_task(front.tokenize([long])) for _ in range(50)]
    await asyncio.sleep(0.05)
    medium = "m" * (INLINE_CHARACTERS + 1)
    assert len((await asyncio.wait_for(front.tokenize([medium]), 5))[0]) == len(medium)
    assert await asyncio.wait_for(asyncio.to_thread(lambda: 7), 5) == 7
    assert (await asyncio.wait_for(front.render([{"role": "user", "content": "hi"}], add_generation_prompt=False), 5))[
        0
    ] == "hi"
    assert not any(task.done() for task in waiting)
    tokenizer.gate.set()
    assert {len(ids) for (ids,) in await asyncio.gather(*waiting)} == {len(long)}
    assert tokenizer.threads["waitxxxx"].startswith("quire-text-long")
    assert tokenizer.threads["mmmmmmmm"].startswith("quire-text-short")


async def test_a_little_text_needs_no_thread(front, tokenizer):
    """SEC-22: handing it over would take longer."""
    await front.tokenize(["a" * INLINE_CHARACTERS])
    assert tokenizer.threads["aaaaaaaa"] == threading.current_thread().name
    await front.tokenize(["b" * INLINE_CHARACTERS, "c"])
    assert tokenizer.threads["bbbbbbbb"].startswith("quire-text-short")


async def test_many_prompts_do_not_become_one_long_text(front, tokenizer):
    """SEC-22: a request of a thousand prompts goes through in pieces, and keeps its order."""
    texts = ["y" * n for n in (3, LONG_CHARACTERS, 1, 2, LONG_CHARACTERS + 1)]
    assert [len(ids) for ids in await front.tokenize(texts)] == [len(text) for text in texts]
    assert [list(map(len, group)) for group in grouped(texts)] == [
        [3],
        [LONG_CHARACTERS],
        [1, 2],
        [LONG_CHARACTERS + 1],
    ]
    assert lane_for(LONG_CHARACTERS) is Lane.SHORT and lane_for(LONG_CHARACTERS + 1) is Lane.LONG


async def test_more_waiting_text_than_allowed_is_overload(front, tokenizer, monkeypatch):
    """SEC-22, REL-8: what waits is bounded in characters; one text alone may always wait."""
    monkeypatch.setattr(text_pool, "MAX_PENDING_CHARACTERS", 2 * LONG_CHARACTERS)
    long = "wait" + "x" * LONG_CHARACTERS
    waiting = asyncio.create_task(front.tokenize([long]))
    await asyncio.sleep(0.05)
    with pytest.raises(OverloadedError) as refused:
        await front.tokenize([long])
    assert refused.value.retry_after > 0
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    tokenizer.gate.set()
    await front.tokenize(["x" * 3 * LONG_CHARACTERS])


async def test_who_goes_away_gives_his_turn_back():
    """REL-1: a text that nobody waits for is not tokenized."""
    pool, gate, ran = TextPool(), threading.Event(), []
    first = [asyncio.create_task(pool.run(Lane.LONG, 1, gate.wait, 10)) for _ in range(8)]
    second = asyncio.create_task(pool.run(Lane.LONG, 1, ran.append, 1))
    await asyncio.sleep(0.05)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.set()
    await asyncio.gather(*first)
    await pool.run(Lane.LONG, 1, lambda: None)
    pool.close()
    assert not ran


async def test_a_text_longer_than_any_model_reads_is_refused(front, tokenizer):
    """SEC-22: before it is tokenized, with OpenAI's code for it."""
    with pytest.raises(InvalidRequestError) as refused:
        await front.tokenize(["x" * (MAX_CHARACTERS + 1)])
    assert refused.value.code == "string_above_max_length" and not tokenizer.threads


async def test_a_long_conversation_and_one_with_its_own_template_keep_no_short_one_waiting(front):
    """SEC-6, SEC-21, SEC-22: each has a sandbox of its own, and the long lane."""
    messages = [{"role": "user", "content": "hi"}]
    slow = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
    hostile = asyncio.create_task(front.render(messages, chat_template=slow))
    held = front._long_template._lock
    with held:
        long = asyncio.create_task(front.render(messages, size=LONG_CHARACTERS + 1))
        await asyncio.sleep(0.05)
        assert (await asyncio.wait_for(front.render(messages), 2))[0] == "hi"
        assert not long.done()
    with pytest.raises(TemplateError, match=r"more work|takes longer"):
        await hostile
    assert (await long)[0] == "hi"
    text, _ = await front.render(messages, chat_template="{{ bos_token }}[{{ messages[0].content }}]")
    assert text == "<s>[hi]"


@pytest.mark.parametrize("name", ["self", "template", "function", "lane", "args"])
async def test_arguments_of_a_template_may_have_any_name(front, name):
    """SEC-21: a request's argument collides with no parameter of ours."""
    text, _ = await front.render([{"role": "user", "content": "x"}], chat_template="rendered", **{name: 7})
    assert text == "rendered"


async def test_without_a_template_there_is_no_chat():
    front = TextFront(SimpleNamespace(), None)
    with pytest.raises(TemplateError, match="--chat-template"):
        await front.render([{"role": "user", "content": "x"}])
