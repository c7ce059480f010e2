"""Over HTTP everyone gets his own answer while others go away in the middle of theirs."""

import asyncio
import json
import random

import httpx

COMPLETIONS = "/v1/completions"
NUM_REQUESTS = 32


def _body(number, **more):
    draw = random.Random(number)
    prompt = [draw.randrange(3, 1000) for _ in range(draw.randrange(8, 60))]
    return {"prompt": prompt, "temperature": 1.0, "seed": number, "max_tokens": 24, "ignore_eos": True} | more


async def _whole(client, number):
    name = f"nonce-{number}"
    response = await client.post(COMPLETIONS, json=_body(number), headers={"x-request-id": name})
    assert response.status_code == 200 and response.headers["x-request-id"] == name
    return response.json()["choices"][0]["text"], response.json()["id"]


async def _streamed(client, number):
    text, ids = "", set()
    async with client.stream("POST", COMPLETIONS, json=_body(number, stream=True)) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                ids.add(event["id"])
                text += "".join(choice["text"] for choice in event["choices"])
    (one,) = ids
    return text, one


async def _leaving(client, draw, quiet):
    """Requests whose client goes away: before the answer begins, or in the middle of a stream."""
    while not quiet.is_set():
        number, streams = draw.randrange(1000, 2000), draw.random() < 0.5
        try:
            async with asyncio.timeout(draw.random() * 0.1):
                await (_streamed if streams else _whole)(client, number)
        except (TimeoutError, ValueError):  # ValueError: the stream had not begun
            continue


def _client(url):
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, limits=limits, timeout=120)


async def test_every_answer_is_the_requests_own_while_clients_leave(live_server, eventually):
    """SEC-34: whole and streamed, under names of the clients' choice; ids are never shared, and nothing is left."""
    draw, quiet = random.Random(3), asyncio.Event()
    async with _client(live_server.url) as client, _client(live_server.url) as others:
        solo = [(await _whole(client, number))[0] for number in range(NUM_REQUESTS)]
        assert len(set(solo)) == NUM_REQUESTS, "answers that are alike show no mix-up"
        leaving = [asyncio.create_task(_leaving(others, draw, quiet)) for _ in range(16)]
        try:
            for _ in range(2):
                kinds = [draw.choice([_whole, _streamed]) for _ in range(NUM_REQUESTS)]
                found = await asyncio.gather(*(kind(client, number) for number, kind in enumerate(kinds)))
                assert [text for text, _ in found] == solo
                assert len({response_id for _, response_id in found}) == NUM_REQUESTS
        finally:
            quiet.set()
            await asyncio.gather(*leaving)
    assert eventually(live_server.is_idle, 10), live_server.metrics()
