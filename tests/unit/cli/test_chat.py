import asyncio
import io
import signal
import sys

import pytest

from quire.base.errors import ConfigError, InvalidRequestError
from quire.cli import chat, complete
from quire.cli.main import Parser
from quire.cli.source import RemoteSource, open_source


class Echo:
    """A source that answers with what it was sent, and can be told to refuse, to fail or to be interrupted."""

    name = "echo"

    def __init__(self):
        self.seen, self.options, self.is_closed = [], [], False

    async def chat(self, messages, options):
        self.seen.append([dict(message) for message in messages])
        self.options.append(options)
        text = messages[-1]["content"]
        if text == "refuse":
            raise InvalidRequestError("too long")
        yield f"you said {text}, "
        if text == "interrupt":
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(30)
        yield "bye"

    async def complete(self, prompt, options):
        self.options.append(options)
        yield prompt.upper()
        yield "!"

    async def close(self):
        self.is_closed = True


@pytest.fixture
def echo(monkeypatch):
    source = Echo()

    async def opened(_):
        return source

    monkeypatch.setattr(chat, "open_source", opened)
    monkeypatch.setattr(complete, "open_source", opened)
    return source


def run(module, monkeypatch, text, *words):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    parser = Parser(prog="quire probe")
    module.configure(parser)
    return module.run(parser.parse_args(words))


def test_a_piped_conversation_prints_only_the_answers(echo, monkeypatch, capsys):
    """S8: the client holds the conversation and sends all of it each turn."""
    assert run(chat, monkeypatch, "one\n\ntwo\n") == 0
    assert capsys.readouterr().out == "you said one, bye\nyou said two, bye\n"
    assert [message["role"] for message in echo.seen[1]] == ["user", "assistant", "user"]
    assert echo.seen[1][1]["content"] == "you said one, bye"
    assert echo.is_closed


def test_commands_change_the_conversation(echo, monkeypatch, capsys):
    lines = "one\n/system be brief\ntwo\n/reset\nthree\n/nonsense\n/exit\nfour\n"
    run(chat, monkeypatch, lines, "--system", "at first")
    assert [[m["content"] for m in messages] for messages in echo.seen] == [
        ["at first", "one"],
        ["be brief", "two"],
        ["be brief", "three"],
    ]
    assert "/reset" in capsys.readouterr().err


def test_ctrl_c_ends_the_answer_and_keeps_the_conversation(echo, monkeypatch, capsys):
    run(chat, monkeypatch, "interrupt\nnext\n")
    printed = capsys.readouterr()
    assert printed.out.endswith("you said next, bye\n")
    assert "(interrupted)" in printed.err
    assert echo.seen[1][1] == {"role": "assistant", "content": "you said interrupt, "}


def test_a_refused_turn_is_taken_back(echo, monkeypatch, capsys):
    run(chat, monkeypatch, "refuse\nnext\n")
    assert "refused: too long" in capsys.readouterr().err
    assert echo.seen[1] == [{"role": "user", "content": "next"}]


def test_sampling_flags_reach_the_request(echo, monkeypatch):
    """S80: temperature, top-k, top-p and lengths are given where text is asked for."""
    flags = ["--temperature", "0.5", "--top-k", "3", "--max-tokens", "9", "--seed", "4", "--stop", "a", "--stop", "b"]
    run(chat, monkeypatch, "hi\n", *flags)
    assert echo.options == [{"temperature": 0.5, "top_k": 3, "max_tokens": 9, "seed": 4, "stop": ["a", "b"]}]


def test_a_bad_sampling_value_is_refused_before_anything_starts(echo, monkeypatch):
    with pytest.raises(InvalidRequestError, match="top_p must be in"):
        run(chat, monkeypatch, "hi\n", "--top-p", "2")
    assert echo.seen == []


@pytest.mark.parametrize("words", [["text"], ["-"], []])
def test_complete_takes_its_prompt_from_the_argument_or_the_pipe(echo, monkeypatch, capsys, words):
    assert run(complete, monkeypatch, "text", *words) == 0
    assert capsys.readouterr().out == "TEXT!\n"
    assert echo.is_closed


def test_complete_can_print_its_prompt(echo, monkeypatch, capsys):
    run(complete, monkeypatch, "", "text", "--echo")
    assert capsys.readouterr().out == "textTEXT!\n"


async def test_a_url_and_engine_settings_are_not_mixed():
    parser = Parser(prog="quire probe")
    chat.configure(parser)
    with pytest.raises(ConfigError, match="--page-size sets up an engine of our own"):
        await open_source(parser.parse_args(["--url", "http://127.0.0.1:9", "--page-size", "8"]))


async def test_a_model_named_beside_a_url_is_the_servers():
    parser = Parser(prog="quire probe")
    chat.configure(parser)
    source = await open_source(parser.parse_args(["--url", "http://127.0.0.1:9", "--model", "m"]))
    assert isinstance(source, RemoteSource)
    assert source.name == "m"
    await source.close()
