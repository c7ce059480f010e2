"""A server with a folder for files and batches, in process, its engine scripted."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from quire.base.config import ServerConfig
from quire.server.app import create_app

ROUTE = "/v1/completions"


def batch_lines(count, **body):
    return "\n".join(
        json.dumps({"custom_id": f"c{i}", "method": "POST", "url": ROUTE, "body": {"prompt": f"p{i}", **body}})
        for i in range(count)
    )


class Served:
    """An app with a folder for files, its runner started."""

    def __init__(self, engine, folder, **options) -> None:
        self.engine = engine
        self.app = create_app(engine, ServerConfig(files_dir=str(folder), **options))
        self.runner = self.app.state.quire.batches
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://127.0.0.1")

    async def upload(self, content, **fields):
        data = {"purpose": "batch"} | fields
        return await self.http.post("/v1/files", files={"file": ("in.jsonl", content)}, data=data)

    async def create(self, content, **fields):
        file_id = (await self.upload(content)).json()["id"]
        body = {"input_file_id": file_id, "endpoint": ROUTE, "completion_window": "24h"} | fields
        return await self.http.post("/v1/batches", json=body)

    async def until(self, batch_id, *states):
        for _ in range(1000):
            batch = (await self.http.get(f"/v1/batches/{batch_id}")).json()
            if batch["status"] in states:
                return batch
            await asyncio.sleep(0.01)
        raise AssertionError(f"the batch is still {batch['status']}")

    async def results(self, file_id):
        text = (await self.http.get(f"/v1/files/{file_id}/content")).text
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def lines():
    """Make so many lines of an input."""
    return batch_lines


@pytest.fixture
def serve_batches():
    """The class of such servers, for tests that need a special one."""
    return Served


@pytest.fixture
async def served(engine, tmp_path):
    served = Served(engine, tmp_path)
    served.runner.start()
    yield served
    await served.http.aclose()
    await served.runner.stop()
