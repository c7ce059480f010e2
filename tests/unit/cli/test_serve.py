import asyncio
from types import SimpleNamespace

from quire.base.config import ServerConfig
from quire.cli import serve
from quire.cli.main import main
from quire.engine.async_engine import AsyncEngine
from quire.engine.info import EngineInfo
from quire.server import serve as server

INFO = EngineInfo(
    model_path="",
    tokenizer_path="",
    served_names=("small",),
    max_model_len=512,
    vocab_rows=10,
    max_num_seqs=4,
    ledger=("load weights 1.00 s", "KV pages 4 MiB"),
)


def test_the_start_shows_the_ledger_and_what_to_try():
    """S4, S82: every default is printed, and how to make the first request."""
    text = "\n".join(serve.ready_lines(INFO, "http://127.0.0.1:8000", ServerConfig()))
    assert "load weights 1.00 s" in text
    assert "KV pages 4 MiB" in text
    assert "curl http://127.0.0.1:8000/v1/chat/completions" in text
    assert "Authorization" not in text


def test_a_key_is_asked_for_and_never_shown():
    """SEC-30: the key itself is not printed."""
    text = "\n".join(serve.ready_lines(INFO, "http://127.0.0.1:8000", ServerConfig(api_key=("very-secret",))))
    assert "$QUIRE_API_KEY" in text
    assert "very-secret" not in text


def test_settings_reach_engine_and_server(monkeypatch):
    """S48: the flags of `serve` fill the settings that `LLM` takes."""
    seen = {}

    async def start(config, *, process, **_):
        seen["engine"], seen["process"] = config, process
        return SimpleNamespace(info=INFO)

    def fake_serve(start_engine, config, *, on_ready):
        seen["started"] = asyncio.run(start_engine())
        seen["server"] = config
        on_ready("http://127.0.0.1:1")
        return 5

    class Spawned:
        def discard(self):
            seen["discarded"] = True

    monkeypatch.setattr(AsyncEngine, "start", start)
    monkeypatch.setattr(server, "serve", fake_serve)
    monkeypatch.setattr(serve, "EngineProcess", Spawned)
    assert main(["serve", "some/dir", "--page-size", "32", "--port", "0", "--step-timeout", "7"]) == 5
    assert seen["engine"].model.model == "some/dir"
    assert seen["engine"].cache.page_size == 32
    assert seen["server"].port == 0
    assert seen["started"].step_timeout == 7.0
    assert isinstance(seen["process"], Spawned)
    assert seen["discarded"], "whatever ends the server, no engine stays behind"
