"""Where `quire chat` and `quire complete` get their text: an engine of their own, or a server under `--url`.

Both kinds stream plain text for a conversation or a prompt; what is printed, and how a user interrupts, is the
subcommands' business.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Protocol

from quire.base.errors import InvalidRequestError
from quire.base.sampling import SamplingParams
from quire.bench.client import Endpoint, EndpointError
from quire.cli.flags import add_engine_flags, read_options, refuse_engine_flags

if TYPE_CHECKING:
    from quire.engine.async_engine import AsyncEngine

Message = dict[str, str]

SAMPLING_FLAGS: dict[str, tuple[type, str]] = {
    "temperature": (float, "0 always takes the most likely token."),
    "top_p": (float, "Draw from the smallest set of tokens with this probability."),
    "top_k": (int, "Draw from this many most likely tokens; 0 is no limit."),
    "min_p": (float, "Drop tokens less likely than this share of the most likely one."),
    "repetition_penalty": (float, "Above 1 makes tokens that already appeared less likely."),
    "seed": (int, "Makes the draw repeatable."),
    "max_tokens": (int, "Longest answer, in tokens."),
}


class TextSource(Protocol):
    """Streams a model's text."""

    name: str

    def chat(self, messages: list[Message], options: dict[str, Any]) -> AsyncIterator[str]:
        """The assistant's next message, piece by piece."""

    def complete(self, prompt: str, options: dict[str, Any]) -> AsyncIterator[str]:
        """The continuation of `prompt`, piece by piece."""

    async def close(self) -> None:
        """Let go of the engine or the connections."""


class LocalSource:
    """Text from an engine started for this command, in a process of its own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.name = engine.info.served_names[0]

    async def chat(self, messages: list[Message], options: dict[str, Any]) -> AsyncIterator[str]:
        """The assistant's next message, piece by piece."""
        text, _ = await self._engine.render_chat([dict(message) for message in messages])
        # The template wrote the special tokens already.
        ids = await self._engine.tokenize(text, add_special_tokens=False)
        async for piece in self._generate({"prompt": text, "prompt_token_ids": ids}, options):
            yield piece

    async def complete(self, prompt: str, options: dict[str, Any]) -> AsyncIterator[str]:
        """The continuation of `prompt`, piece by piece."""
        async for piece in self._generate(prompt, options):
            yield piece

    async def _generate(self, prompt: str | dict[str, Any], options: dict[str, Any]) -> AsyncIterator[str]:
        params = self._engine.info.default_params(**({"max_tokens": None} | options))
        async for output in self._engine.generate(prompt, params, request_id=uuid.uuid4().hex, delta=True):
            if output.outputs[0].text:
                yield output.outputs[0].text

    async def close(self) -> None:
        """End the engine."""
        await self._engine.close()


class RemoteSource:
    """Text from a server that speaks OpenAI's API."""

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self._endpoint = endpoint
        self.name = model

    async def chat(self, messages: list[Message], options: dict[str, Any]) -> AsyncIterator[str]:
        """The assistant's next message, piece by piece."""
        async for choice in self._choices("/chat/completions", {"messages": messages, **options}):
            if choice.get("delta", {}).get("content"):
                yield choice["delta"]["content"]

    async def complete(self, prompt: str, options: dict[str, Any]) -> AsyncIterator[str]:
        """The continuation of `prompt`, piece by piece."""
        async for choice in self._choices("/completions", {"prompt": prompt, **options}):
            if choice.get("text"):
                yield choice["text"]

    async def _choices(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Choices of every chunk; a refusal of this one request raises InvalidRequestError, as our own engine would."""
        try:
            async for event in self._endpoint.stream(path, {"model": self.name, **body}):
                for choice in event.get("choices", []):
                    yield choice
        except EndpointError as error:
            if error.status in (400, 422):
                raise InvalidRequestError(str(error)) from error
            raise

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--url`, the sampling flags and the engine's flags."""
    parser.add_argument("--url", metavar="URL", help="Use this OpenAI-style server instead of an engine of our own.")
    group = parser.add_argument_group("Sampling")
    for name, (kind, text) in SAMPLING_FLAGS.items():
        metavar = "N" if kind is int else "X"
        group.add_argument(
            "--" + name.replace("_", "-"), dest=f"sampling_{name}", type=kind, metavar=metavar, help=text
        )
    group.add_argument("--stop", dest="sampling_stop", action="append", metavar="TEXT", help="End before this text.")
    # --seed is the request's here: with one request at a time, the engine's own seed has nothing to add.
    add_engine_flags(parser, skip=("seed",))


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling settings given on the command line, under `SamplingParams` names; raises InvalidRequestError."""
    prefix = "sampling_"
    options = {
        name.removeprefix(prefix): value
        for name, value in vars(args).items()
        if name.startswith(prefix) and value is not None
    }
    SamplingParams(**({"max_tokens": None} | options))
    return options


async def open_source(args: argparse.Namespace) -> TextSource:
    """Start an engine, or connect to `--url`.

    Raises:
        ConfigError: when engine settings are given together with `--url`, which would ignore them.
    """
    if args.url is None:
        from quire.engine.async_engine import AsyncEngine

        return LocalSource(await AsyncEngine.start(read_options(args).engine_config()))
    refuse_engine_flags(args, allowed=("model",))
    endpoint = Endpoint(args.url)
    try:
        return RemoteSource(endpoint, await endpoint.pick_model(getattr(args, "model", None)))
    except BaseException:
        await endpoint.close()
        raise
