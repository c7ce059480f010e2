"""Clients that nobody here wrote, over a real socket: LangChain, LiteLLM and the `llm` command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
CLIENTS = Path(__file__).parent / "clients"
SECONDS = 120


def _run(script: str, url: str) -> dict[str, Any]:
    """What a client's script prints last, as JSON; a process of its own keeps its imports and warnings apart."""
    command = [sys.executable, str(CLIENTS / script), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=_offline(), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _offline() -> dict[str, str]:
    """An environment in which the clients ask nobody but the server."""
    return os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGCHAIN_TRACING_V2": "false"}


def test_langchain_invokes_streams_binds_tools_and_structures(live_server):
    """S51: invoke, stream, bind_tools, with_structured_output, embeddings."""
    found = _run("langchain_client.py", live_server.url)
    assert found["invoked"] and found["streamed"] == found["invoked"] and found["usage"] > 0
    name, arguments = found["call"]
    assert name == "weather" and arguments["city"] in ("Rome", "Oslo")
    assert found["streamed_call"] == found["call"] and found["answered"]
    assert found["structured"]["name"] in ("apple", "pear") and 1 <= found["structured"]["grams"] <= 999
    assert found["vector"] > 16


def test_litellm_completes_and_streams(live_server):
    found = _run("litellm_client.py", live_server.url)
    assert found["whole"] and found["streamed"] == found["whole"]
    assert found["usage"] > 0 and found["finish"] in ("stop", "length")


def test_the_llm_command_line_answers(live_server, tmp_path):
    """Simon Willison's `llm`, told of the server in its own configuration file."""
    config = f"- model_id: quire\n  model_name: quire-demo\n  api_base: {live_server.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(config)
    env = _offline() | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "unused"}
    command = [sys.executable, "-m", "llm", "-m", "quire", "Hello!", "-o", "max_tokens", "24"]
    for extra in ([], ["--no-stream"]):
        done = subprocess.run([*command, *extra], capture_output=True, text=True, timeout=SECONDS, env=env, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.strip()
