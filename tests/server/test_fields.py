"""docs/fields.md is true: every field of every body is sent, and does what the description says of it.

The document is made from the OpenAPI description, which these tests read as well. Honoured: something changes, and no
warning comes. Without effect: nothing changes. Refused: a 400 that names the field. Not listed: a warning, or a 400.
"""

from __future__ import annotations

import dataclasses
import json
from array import array
from types import SimpleNamespace
from typing import Any

import pytest
from field_samples import BODIES, KEPT, SAMPLES, Sample

from quire.base.config import ServerConfig
from quire.base.outputs import RequestOutput
from quire.base.pooling import PoolingModel
from quire.protocol.effects import EFFECT_KEY, ONLY_KEY
from quire.server.app import create_app
from quire.server.openapi import REFUSED_KEY

CHANGING = {"id", "created", "created_at", "completed_at", "system_fingerprint"}
VECTOR_ROUTES = ("/v1/embeddings", "/pooling", "/classify", "/v1/score", "/v1/rerank")
EMBEDS = PoolingModel(task="embed", kind="mean", size=8, generates=False)
LABELS = PoolingModel(task="classify", kind="cls", size=8, generates=False, labels=tuple("abcdefgh"))
DESCRIPTION = create_app(None, ServerConfig()).openapi()


def operation(route: str) -> dict[str, Any]:
    found: dict[str, Any] = DESCRIPTION["paths"][route]["post"]
    return found


def component(reference: str) -> dict[str, Any]:
    found: dict[str, Any] = DESCRIPTION["components"]["schemas"][reference.rpartition("/")[2]]
    return found


def properties(route: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = request_type(route)["properties"]
    return found


def request_type(route: str) -> dict[str, Any]:
    return component(operation(route)["requestBody"]["content"]["application/json"]["schema"]["$ref"])


def notes_unlisted(route: str) -> bool:
    answer = operation(route)["responses"]["200"]["content"]["application/json"]["schema"]
    return "warnings" in component(answer["$ref"])["properties"]


def effect_of(route: str, name: str) -> str:
    """honoured, none or only."""
    mark = properties(route)[name]
    return "only" if ONLY_KEY in mark else str(mark.get(EFFECT_KEY, "honoured"))


EVERY_FIELD = [(route, name) for route in BODIES for name in properties(route)]


class Server:
    """A server on a scripted engine, and all that can be seen of a request to it."""

    def __init__(self, engine: Any, http: Any) -> None:
        self.engine, self.http = engine, http
        self.calls: list[Any] = []
        for name in ("submit", "render_chat", "tokenize"):
            setattr(engine, name, self._watched(name, getattr(engine, name)))

    def _watched(self, name: str, method: Any) -> Any:
        async def call(*arguments: Any, request_id: str | None = None, **more: Any) -> Any:
            seen = {name: value for name, value in more.items() if name != "size"}  # of the body, a field more or less
            if seen.get("timeout") is not None:
                seen["timeout"] = round(seen["timeout"])  # what is left of it when the engine is asked
            self.calls.append((name, repr(arguments), seen))
            return await method(*arguments, **more, **({"request_id": request_id} if request_id else {}))

        return call

    async def post(self, route: str, body: dict[str, Any]) -> Any:
        return await self.http.post(route, json={name: value for name, value in body.items() if value is not None})

    async def seen(self, route: str, body: dict[str, Any], *, without: str) -> SimpleNamespace:
        """The answer, what the engine was asked, and what was kept, less what always changes and the field's echo."""
        self.calls.clear()
        answer = await self.post(route, body)
        is_stream = answer.headers["content-type"].startswith("text/event-stream")
        content = answer.text.split("\n") if is_stream else [answer.text]
        objects = [json.loads(line.removeprefix("data: ")) for line in content if line.startswith(("{", "data: {"))]
        plain = [_plain(one, without) for one in objects]
        kept = await self._kept(objects) if route == "/v1/responses" else None
        warnings = [note for one in objects for note in one.get("warnings", ())]
        visible = json.dumps([answer.status_code, is_stream, plain, self.calls, kept], default=repr, sort_keys=True)
        return SimpleNamespace(status=answer.status_code, warnings=warnings, visible=visible, text=answer.text)

    async def _kept(self, objects: list[dict[str, Any]]) -> int:
        first = objects[0].get("response", objects[0])
        return int((await self.http.get(f"/v1/responses/{first.get('id')}")).status_code)


def _plain(node: Any, echo: str) -> Any:
    if isinstance(node, list):
        return [_plain(item, echo) for item in node]
    if not isinstance(node, dict):
        return node
    left_out = CHANGING | ({echo} if node.get("object") == "response" and echo != "model" else set())
    return {key: _plain(value, echo) for key, value in node.items() if key not in left_out and not _is_id(key)}


def _is_id(key: str) -> bool:
    return key.endswith("_id") and key != "previous_response_id"


@pytest.fixture
def serve(make_engine, make_http) -> Any:
    """A server for a route: one that reasons, whose reasoning can be turned off for Anthropic's; one that pools."""

    def start(route: str) -> Server:
        engine = make_engine()
        engine.traits.reasoning_format = "think"
        if route.startswith("/v1/messages"):
            engine.traits.thinking_switch = "enable_thinking"
        if route in VECTOR_ROUTES:
            engine.info = dataclasses.replace(engine.info, pooling=LABELS if route == "/classify" else EMBEDS)
            engine.tokenizer.encode_cut = lambda text, *, max_tokens: engine.tokenizer.encode(text)[:max_tokens]
            engine.submit = _pooled
        engine.traits.reads_effort = True
        return Server(engine, make_http(engine, allow_request_chat_template=True))

    return start


async def _pooled(prompt: list[int], params: Any, *, request_id: str, delta: bool, **options: Any) -> Any:
    """What an engine gives for a prompt that is pooled."""
    pooled = array("f", [len(prompt), *range(7)]).tobytes()
    output = RequestOutput(
        request_id=request_id, prompt=None, prompt_token_ids=prompt, outputs=[], finished=True, pooled=pooled
    )

    class Stream:
        def __init__(self) -> None:
            self.left = [output]

        def __aiter__(self) -> Stream:
            return self

        async def __anext__(self) -> RequestOutput:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop()

        async def aclose(self) -> None:
            self.left.clear()

    return Stream()


async def resolved(server: Server, route: str, sample: Sample) -> Sample:
    """The sample with what only the server could give."""
    if sample.value != KEPT:
        return sample
    kept = await server.post(route, BODIES[route])
    return dataclasses.replace(sample, value=kept.json()["id"])


def test_every_field_has_a_sample_and_every_route_that_takes_json_is_here():
    """S51: none is listed that nobody sends."""
    takes_json = {
        route
        for route, methods in DESCRIPTION["paths"].items()
        if "application/json" in methods.get("post", {}).get("requestBody", {}).get("content", {})
    }
    same = {"/score": "/v1/score", "/rerank": "/v1/rerank", "/v2/rerank": "/v1/rerank"}
    same |= {f"{route}/render": route for route in ("/v1/chat/completions", "/v1/completions")}
    assert {same.get(route, route) for route in takes_json} == {*BODIES, "/v1/batches"}
    for alias, route in same.items():
        assert operation(alias)["requestBody"] == operation(route)["requestBody"]
    assert {route: set(properties(route)) for route in BODIES} == {
        route: set(known) for route, known in SAMPLES.items()
    }


@pytest.mark.parametrize(("route", "name"), [one for one in EVERY_FIELD if effect_of(*one) == "honoured"])
async def test_a_field_that_is_honoured_changes_something_and_brings_no_warning(serve, route, name):
    server = serve(route)
    sample = await resolved(server, route, SAMPLES[route][name])
    base = BODIES[route] | sample.along
    before, after = (
        await server.seen(route, base, without=name),
        await server.seen(route, base | {name: sample.value}, without=name),
    )
    assert before.status == 200, before.text
    assert after.status == sample.status, after.text
    assert after.visible != before.visible, "it changes nothing"
    told = [note for note in after.warnings if note not in before.warnings]
    assert [note.partition(":")[0] for note in told] == [name] * sample.is_noted


@pytest.mark.parametrize(("route", "name"), [one for one in EVERY_FIELD if effect_of(*one) == "none"])
async def test_a_field_without_effect_is_taken_and_changes_nothing(serve, route, name):
    server, sample = serve(route), SAMPLES[route][name]
    base = BODIES[route] | sample.along
    before = await server.seen(route, base, without=name)
    after = await server.seen(route, base | {name: sample.value}, without=name)
    assert (after.status, after.warnings) == (200, []), after.text
    assert after.visible == before.visible


@pytest.mark.parametrize(("route", "name"), [one for one in EVERY_FIELD if effect_of(*one) == "only"])
async def test_a_field_of_which_some_values_are_taken_refuses_the_others_by_its_name(serve, route, name):
    server, sample = serve(route), SAMPLES[route][name]
    base = BODIES[route] | sample.along
    taken = await server.seen(route, base | {name: sample.value}, without=name)
    assert (taken.status, taken.warnings) == (200, []), taken.text
    answer = await server.post(route, base | {name: sample.refused})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].partition(".")[0] == name


@pytest.mark.parametrize("route", BODIES)
async def test_a_field_that_is_refused_is_a_400_with_its_name_and_the_remedy(serve, route):
    server = serve(route)
    refused = operation(route).get(REFUSED_KEY, {})
    assert refused or route in ("/tokenize", "/detokenize")
    for name, hint in refused.items():
        answer = await server.post(route, BODIES[route] | {name: "x"})
        error = answer.json()["error"]
        assert answer.status_code == 400 and hint in error["message"] and name in error["message"]
        if "param" in error:  # Anthropic's errors have none
            assert (error["param"], error["code"]) == (name, "unsupported_parameter")


@pytest.mark.parametrize("route", BODIES)
async def test_a_field_that_is_not_listed_is_noted_or_refused(serve, route):
    server = serve(route)
    answer = await server.post(route, BODIES[route] | {"colour": "red"})
    if notes_unlisted(route):
        assert answer.status_code == 200 and answer.json()["warnings"] == ["unknown field: colour; it was not used"]
    else:
        error = answer.json()["error"]
        assert answer.status_code == 400 and "unknown field: colour" in error["message"]
        assert error.get("param", "colour") == "colour"


@pytest.mark.parametrize(
    ("route", "name"), [(route, name) for route in BODIES for name in request_type(route).get("required", ())]
)
async def test_a_field_that_is_required_is_named_when_it_is_missing(serve, route, name):
    answer = await serve(route).post(route, BODIES[route] | {name: None})
    error = answer.json()["error"]
    assert answer.status_code == 400 and f"{name} is required" in error["message"]
    assert error.get("param", name) == name


async def test_a_batch_takes_its_fields_and_no_others(engine, make_http, tmp_path):
    http = make_http(engine, files_dir=str(tmp_path))
    line = {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "x"}}
    form = {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    upload = (await http.post("/v1/files", files={"file": ("in.jsonl", json.dumps(line))}, data=form)).json()
    assert upload["expires_at"] - upload["created_at"] == 3600
    body = {
        "input_file_id": upload["id"],
        "endpoint": "/v1/completions",
        "completion_window": "2h",
        "metadata": {"a": "b"},
        "output_expires_after": {"anchor": "created_at", "seconds": 3600},
    }
    assert set(body) == set(properties("/v1/batches"))
    batch = (await http.post("/v1/batches", json=body)).json()
    shown = {name: value for name, value in body.items() if name != "output_expires_after"}  # its files show it
    assert {name: batch[name] for name in shown} == shown and batch["expires_at"] - batch["created_at"] == 7200
    assert not operation("/v1/batches").get(REFUSED_KEY)
    error = (await http.post("/v1/batches", json=body | {"colour": {}})).json()["error"]
    assert (error["param"], error["code"]) == ("colour", "unknown_parameter")
    schema = operation("/v1/files")["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(schema["properties"]) == {"file", *form}
    other = await http.post("/v1/files", files={"file": ("in.jsonl", "{}")}, data=form | {"colour": "red"})
    assert (other.status_code, other.json()["error"]["param"]) == (400, "colour")
    await http.app.state.quire.batches.stop()
