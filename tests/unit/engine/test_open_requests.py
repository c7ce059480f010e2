"""Requests the front end waits for: streams end exactly once, and the engine is told what nobody wants."""

import asyncio
from types import SimpleNamespace

import pytest

from quire.base.errors import EngineDeadError, InvalidRequestError, OverloadedError, StepError
from quire.base.outputs import FinishReason
from quire.engine import collector as collector_module
from quire.engine.open_requests import OpenRequests, OutputStream


class Observer:
    def __init__(self):
        self.events = []

    def first_token(self, seconds):
        self.events.append("first")

    def inter_token(self, seconds, num_tokens):
        self.events.append(("inter", num_tokens))

    def finished(self, metrics, *, prompt_tokens, output_tokens, reason, error_kind):
        self.events.append((reason, error_kind, prompt_tokens, output_tokens))


@pytest.fixture
def front():
    """Open requests, the aborts they sent, and an observer that notes what it hears."""
    sent = []
    requests = OpenRequests(sent.append)
    requests.observer = Observer()

    def open_(collector):
        return OutputStream(requests, requests.add(collector))

    return SimpleNamespace(requests=requests, sent=sent, open=open_, events=requests.observer.events)


async def test_a_stream_ends_after_its_last_output(front, collect, say):
    """REL-10: finish, then the end, and nothing is sent to the engine."""
    request = collect(delta=True)
    stream = front.open(request)
    front.requests.take_in([say(request, "hi", finish=FinishReason.LENGTH)])
    assert [output.finished async for output in stream] == [True]
    assert (len(front.requests), front.sent) == (0, [])
    assert front.requests.emptied.is_set()


async def test_leaving_early_aborts_once_and_later_outputs_are_dropped(front, collect, say):
    """REL-1: the engine hears of it, whatever it says afterwards."""
    request = collect()
    stream = front.open(request)
    await stream.aclose()
    await stream.aclose()
    assert [message.request_ids for message in front.sent] == [[request.engine_id]]
    front.requests.take_in([say(request, "late"), say(request, finish=FinishReason.ABORT)])
    assert front.events == [("abort", None, 3, 0)]


async def test_a_new_request_of_an_old_name_does_not_hear_what_the_old_one_says(front, collect, say):
    """SEC-34: reusing an id right after leaving is no way to get someone's text."""
    old = collect("same")
    await front.open(old).aclose()
    new = collect("same", delta=True)
    stream = front.open(new)
    front.requests.take_in([say(old, "old text"), say(old, finish=FinishReason.ABORT)])
    front.requests.take_in([say(new, "new", finish=FinishReason.LENGTH)])
    assert [output.outputs[0].text async for output in stream] == ["new"]


async def test_a_name_in_use_is_refused(front, collect):
    front.open(collect("same"))
    with pytest.raises(InvalidRequestError, match="in use"):
        front.open(collect("same"))


async def test_abort_reaches_the_engine_under_its_own_id(front, collect):
    request = collect("name")
    front.open(request)
    front.requests.abort("name")
    front.requests.abort("unknown")
    assert [message.request_ids for message in front.sent] == [[request.engine_id]]


async def test_the_samples_beside_a_failed_one_are_aborted_and_each_is_observed_once(front, collect, say):
    """REL-1, REL-20: nobody waits for them any more; without an abort they would run to their ends."""
    request = collect(n=3)
    stream = front.open(request)
    front.requests.take_in([say(request, "x", index=1), say(request, index=0, error="StepError")])
    front.requests.take_in([say(request, "y", index=1), say(request, "y", index=2)])
    with pytest.raises(StepError, match="went wrong"):
        await anext(stream)
    assert [message.request_ids for message in front.sent] == [[request.engine_id]]
    ends = [event for event in front.events if event[0] in ("error", "abort", "stop", "length")]
    assert [end[:2] for end in ends] == [("error", "StepError"), ("abort", None), ("abort", None)]


async def test_stop_strings_of_one_step_are_told_to_the_engine_in_one_message(front, collect, say):
    """REL-11: the sample ends in the engine too."""
    requests = [collect(name, stop=["two"]) for name in "ab"]
    for request in requests:
        front.open(request)
    front.requests.take_in([say(request, "one two") for request in requests])
    assert [message.samples for message in front.sent] == [[(request.engine_id, 0) for request in requests]]


async def test_a_reader_that_holds_too_much_is_ended_at_once(front, collect, say, monkeypatch):
    """REL-9: what waited is let go of then, not when the reader comes back."""
    monkeypatch.setattr(collector_module, "MAX_PENDING_BYTES", 1000)
    request = collect(delta=True)
    stream = front.open(request)
    front.requests.take_in([say(request, [300] * 100)])
    front.requests.take_in([say(request, [300] * 100)])
    assert (len(front.requests), len(front.sent)) == (0, 1)
    assert request.take().outputs[0].token_ids == []
    with pytest.raises(OverloadedError, match="too slowly"):
        await anext(stream)
    assert front.events[-1][:2] == ("error", "OverloadedError")


async def test_an_output_that_cannot_be_taken_in_fails_its_request_alone(front, collect, say):
    """REL-20: a sample nobody asked for, or a tokenizer's bug, must not end what others wait for."""
    broken, fine = collect("broken"), collect("fine", delta=True)
    streams = [front.open(broken), front.open(fine)]
    front.requests.take_in([say(broken, "x", index=9), say(fine, "hi", finish=FinishReason.LENGTH)])
    with pytest.raises(StepError):
        await anext(streams[0])
    assert (await anext(streams[1])).outputs[0].text == "hi"


async def test_only_requests_the_engine_owes_something_can_stall(front, collect, say, monkeypatch):
    """REL-4: a finished output that its reader does not fetch is no sign of a stuck engine."""
    now = [100.0]
    monkeypatch.setattr("quire.engine.open_requests.time.monotonic", lambda: now[0])
    assert front.requests.stalled_seconds() == 0.0
    request = collect("done")
    front.open(request)
    now[0] += 7
    assert front.requests.stalled_seconds() == 7
    front.requests.take_in([say(request, finish=FinishReason.LENGTH)])
    now[0] += 1000
    assert front.requests.stalled_seconds() == 0.0
    front.open(collect("new"))
    assert front.requests.stalled_seconds() == 0.0


async def test_failing_everyone_spares_what_has_ended(front, collect, say):
    """REL-2: open requests end with the error; a finished one is still delivered."""
    done, waiting = collect("done"), collect("waiting")
    streams = [front.open(done), front.open(waiting)]
    front.requests.take_in([say(done, "hi", finish=FinishReason.LENGTH)])
    front.requests.fail_all(EngineDeadError("gone"))
    assert (await anext(streams[0])).outputs[0].text == "hi"
    with pytest.raises(EngineDeadError, match="gone"):
        await anext(streams[1])
    assert ("error", "EngineDeadError", 3, 0) in front.events


async def test_cancelling_a_waiting_reader_aborts(front, collect):
    """REL-1: the cancel of a task reaches the engine."""
    task = asyncio.ensure_future(anext(front.open(collect())))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(front.sent) == 1


async def test_times_between_tokens_are_those_of_each_sample(front, collect, say):
    """S53: two samples that take turns are not twice as fast; the request has one first token."""
    request = collect(n=2)
    front.open(request)
    front.requests.take_in([say(request, [300], index=0), say(request, [300], index=1)])
    front.requests.take_in([say(request, [300], index=0), say(request, [300, 301], index=1)])
    assert front.events == ["first", ("inter", 1), ("inter", 2)]
