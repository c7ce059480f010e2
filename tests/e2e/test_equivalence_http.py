"""The HTTP leg of the equivalence matrix: what a server sends is what `quire.LLM` gives for the same token ids."""

import asyncio

import httpx
import openai
import pytest

import quire

pytestmark = pytest.mark.slow
NUM_PROMPTS = 16
FIELDS = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 0.9, "top_p": 0.95, "seed": 1234},
    "penalised": {"temperature": 0.7, "seed": 7, "frequency_penalty": 0.5, "repetition_penalty": 1.2, "top_k": 40},
}


@pytest.fixture(scope="module")
def prompts(live_server):
    texts = [
        f"Number {i}: count from {i % 9} to {i % 9 + 6}, then tell a story. " * (1 + i % 5) for i in range(NUM_PROMPTS)
    ]
    with httpx.Client(base_url=live_server.url) as client:
        return [client.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in texts]


@pytest.fixture(scope="module")
def expected(prompts):
    """Text, ids and finish reason of every prompt alone, per set of sampling fields, from the Python API."""
    with quire.LLM() as llm:
        return {
            name: [
                [
                    (sample.text, list(sample.token_ids), sample.finish_reason)
                    for sample in llm.generate({"prompt_token_ids": ids}, _params(fields), use_tqdm=False)[0].outputs
                ]
                for ids in prompts
            ]
            for name, fields in FIELDS.items()
        }


def _params(fields):
    return quire.SamplingParams(max_tokens=40, **fields)


async def _complete(client, ids, fields, *, stream=False):
    """Text, ids and finish reason over HTTP."""
    body = {
        "model": "quire-demo",
        "prompt": ids,
        "max_tokens": 40,
        "stream": stream,
        "return_token_ids": True,
        **fields,
    }
    extra = {name: body.pop(name) for name in ("return_token_ids", "repetition_penalty", "top_k") if name in body}
    reply = await client.completions.create(**body, extra_body=extra)
    choices = [chunk.choices[0] async for chunk in reply] if stream else reply.choices
    ids_of = [i for choice in choices for i in getattr(choice, "token_ids", None) or ()]
    return "".join(choice.text for choice in choices), ids_of, choices[-1].finish_reason


def _client(server):
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=300)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", FIELDS)
async def test_concurrent_completions_equal_the_python_api_alone(live_server, prompts, expected, name, stream):
    """S6, S50, S80: text, token ids and finish reason, whatever else is in the batch."""
    async with _client(live_server) as client:
        answers = await asyncio.gather(*(_complete(client, ids, FIELDS[name], stream=stream) for ids in prompts))
    assert answers == [samples[0] for samples in expected[name]]


async def test_one_request_of_many_prompts_equals_the_python_api_alone(live_server, prompts, expected):
    """S50: prompts in one batch request, choice by choice."""
    async with _client(live_server) as client:
        reply = await client.completions.create(
            model="quire-demo", prompt=prompts, max_tokens=40, temperature=0, extra_body={"return_token_ids": True}
        )
    found = [(choice.text, choice.token_ids, choice.finish_reason) for choice in reply.choices]
    assert found == [samples[0] for samples in expected["greedy"]]


async def test_forked_samples_equal_the_python_apis(live_server, prompts):
    """S6, S80: n samples share the prompt's pages and still are the samples the Python API draws."""
    params = quire.SamplingParams(n=3, temperature=1.0, seed=99, max_tokens=24)
    with quire.LLM() as llm:
        outputs = llm.generate({"prompt_token_ids": prompts[3]}, params, use_tqdm=False)[0].outputs
    async with _client(live_server) as client:
        calls = [
            client.completions.create(
                model="quire-demo", prompt=prompts[3], n=3, temperature=1.0, seed=99, max_tokens=24
            )
            for _ in range(3)
        ]
        for reply in await asyncio.gather(*calls):
            assert [choice.text for choice in reply.choices] == [sample.text for sample in outputs]
