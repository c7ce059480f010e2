"""OpenAI's own client against failures: what it raises, what it retries, what it leaves alone."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from quire.base.errors import EngineDeadError, OverloadedError, StepError

HI: list[Any] = [{"role": "user", "content": "Say something."}]


def test_an_error_in_mid_stream_raises(live, engine) -> None:
    """wire 41: the SDK raises APIError from the error event."""
    engine.fail_after = (3, StepError("the step failed"))
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(model="quire-demo", messages=HI, stream=True)
        with pytest.raises(openai.APIError, match="the step failed"):
            list(stream)


def test_a_wrong_key_is_an_authentication_error(make_live, engine) -> None:
    """S85, wire 39."""
    live = make_live(engine, api_key=("right",))
    wrong = openai.OpenAI(base_url=f"{live.url}/v1", api_key="wrong", max_retries=0)
    with wrong as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="right", max_retries=0) as client:
        assert client.chat.completions.create(model="quire-demo", messages=HI).choices


def test_the_sdk_retries_overload_and_not_the_dead(live, engine) -> None:
    """wire 40: retry-after-ms is honoured; x-should-retry: false is too."""
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", max_retries=2) as client:
        engine.fail_after = (0, OverloadedError("full", retry_after=0.01))
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="quire-demo", messages=HI)
        assert len(engine.submitted) == 3
        engine.fail_after = (0, EngineDeadError("gone"))
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="quire-demo", messages=HI)
        assert len(engine.submitted) == 4
