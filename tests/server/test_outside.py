"""Requests name no place that the server would go to, and nothing that it would pass on without knowing it."""

from __future__ import annotations

import ast
import json
import socket
from pathlib import Path
from typing import Any

import pytest

CHAT = "/v1/chat/completions"
SOURCE = Path(__file__).resolve().parents[2] / "src" / "quire"
LINKS = (
    "http://127.0.0.1:9/x.png",
    "file:///etc/passwd",
    "http://169.254.169.254/latest",
    "data:image/png;base64,AAAA",
)
PARTS = {
    "image_url": lambda link: {"type": "image_url", "image_url": {"url": link}},
    "video_url": lambda link: {"type": "video_url", "video_url": {"url": link}},
    "audio_url": lambda link: {"type": "audio_url", "audio_url": {"url": link}},
    "input_audio": lambda link: {"type": "input_audio", "input_audio": {"data": link, "format": "wav"}},
    "file": lambda link: {"type": "file", "file": {"file_data": link}},
}
FRONT = ("server", "protocol", "text", "engine", "base")
"""What a request passes through before it is numbers."""
CLIENTS = {"httpx", "requests", "urllib.request", "urllib3", "aiohttp", "http.client", "ftplib", "smtplib"}
DECODERS = {"PIL", "torchaudio", "torchvision", "cv2", "soundfile", "av"}


@pytest.fixture
def dialled(monkeypatch) -> list[Any]:
    """Every place that somebody tries to connect to, or whose name is looked up."""
    found: list[Any] = []

    def refuse(*arguments: Any, **options: Any) -> Any:
        found.append(arguments)
        raise OSError("a test may not dial")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return found


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("kind", PARTS)
async def test_media_in_a_request_is_refused_and_never_fetched_or_decoded(http, engine, dialled, kind, link) -> None:
    """SEC-9, SEC-10: no host is dialled, no file read, no image opened, whatever the part holds."""
    message = {"role": "user", "content": [{"type": "text", "text": "look"}, PARTS[kind](link)]}
    response = await http.post(CHAT, json={"messages": [message]})
    assert response.status_code == 400 and response.json()["error"]["param"] == "messages[0].content[1].type"
    assert link not in response.text and not dialled and not engine.submitted


async def test_links_in_texts_are_texts(http, engine, dialled) -> None:
    """SEC-9: a prompt is not searched for anything to fetch."""
    text = " ".join(f"![]({link})" for link in LINKS)
    assert (await http.post(CHAT, json={"messages": [{"role": "user", "content": text}]})).status_code == 200
    assert (await http.post("/v1/completions", json={"prompt": text})).status_code == 200
    prompt = engine.tokenizer.decode(engine.submitted[1].prompt)
    assert prompt == text and not dialled


def test_nothing_between_a_request_and_the_engine_can_open_a_connection() -> None:
    """SEC-9, SEC-10: no client of any protocol is imported there, and no decoder of media."""
    found = []
    for folder in FRONT:
        for path in (SOURCE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                found += [f"{path.name}: {n}" for n in names if {n, n.split(".")[0]} & (CLIENTS | DECODERS)]
    assert not found


INTERNAL: dict[str, Any] = {
    "n_discard": -1,
    "row": 0,
    "slot": -(2**31),
    "page_table": [[2**40]],
    "num_computed_tokens": 10**9,
    "kv_transfer_params": {"remote_host": "10.0.0.1", "remote_port": 1},
    "arrival_time": -1,
    "deadline": 0,
    "vllm_xargs": {"a": [1]},
    "extra_args": {"x": 1},
    "grammar": "start:",
    "pooling": {},
    "weight": -1,
    "tenant": "x",
}


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("name", INTERNAL)
async def test_fields_of_the_engines_own_go_no_further_than_the_decoder(http, engine, path, name) -> None:
    """SEC-15: a field that nobody declared is noted, and changes nothing of what the engine gets."""
    body = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {"prompt": "x"}
    plain = await http.post(path, json=body)
    asked = await http.post(path, json=body | {name: INTERNAL[name]})
    refused = await http.post(path, json=body | {name: INTERNAL[name], "strict": True})
    assert (plain.status_code, asked.status_code, refused.status_code) == (200, 200, 400), asked.text
    assert name in json.dumps(asked.json()["warnings"]) and refused.json()["error"]["param"] == name
    first, second = (vars(call) | {"request_id": None} for call in engine.submitted)
    assert first == second and len(engine.submitted) == 2
