"""Embeddings, pooling, scores and reranking over HTTP, on the small built-in model in a thread."""

import base64
import math
import struct

import pytest

from quire import AsyncEngine, EngineConfig
from quire.protocol.completions import MAX_PROMPTS

TEXTS = ["the dog ran home", "a cat", "once upon a time there was a very small bird " * 3]


@pytest.fixture
async def engine(draft_path):
    config = EngineConfig.from_options(model=draft_path, max_model_len=256, kv_cache_memory_bytes="2MiB", threads=1)
    engine = await AsyncEngine.start(config, in_process=True)
    yield engine
    await engine.close()


@pytest.fixture
def http(engine, make_http):
    return make_http(engine)


async def _post(http, path="/v1/embeddings", status=200, **body):
    response = await http.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


async def _refused(http, path="/v1/embeddings", **body):
    error = (await _post(http, path, 400, **body))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_every_form_of_input_gives_the_same_embedding(http, engine):
    ids = [engine.tokenizer.encode(text) for text in TEXTS]
    texts, lists = await _post(http, input=TEXTS), await _post(http, input=ids)
    one, one_list = await _post(http, input=TEXTS[0]), await _post(http, input=ids[0])
    assert texts == lists and one == one_list
    assert [entry["index"] for entry in texts["data"]] == [0, 1, 2]
    assert texts["data"][0] == one["data"][0]
    assert len({tuple(entry["embedding"]) for entry in texts["data"]}) == 3
    assert texts["object"] == "list" and {entry["object"] for entry in texts["data"]} == {"embedding"}
    count = sum(map(len, ids))
    assert texts["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert texts["model"] == engine.info.served_names[0]
    vector = one["data"][0]["embedding"]
    assert len(vector) == engine.info.pooling.size and math.isclose(math.hypot(*vector), 1, rel_tol=1e-6)


async def test_base64_holds_the_same_numbers_as_little_endian_float32(http):
    plain = await _post(http, input=TEXTS, encoding_format="float", user="somebody")
    packed = await _post(http, input=TEXTS, encoding_format="base64")
    for one, other in zip(plain["data"], packed["data"], strict=True):
        raw = base64.b64decode(other["embedding"], validate=True)
        assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == one["embedding"]


async def test_dimensions_cut_and_rescale_and_may_not_exceed_the_width(http, engine):
    whole = (await _post(http, input="hello"))["data"][0]["embedding"]
    short = (await _post(http, input="hello", dimensions=8))["data"][0]["embedding"]
    assert short == pytest.approx([number / math.hypot(*whole[:8]) for number in whole[:8]], rel=1e-5)
    error = await _refused(http, input="hello", dimensions=len(whole) + 1)
    assert error["param"] == "dimensions" and str(len(whole)) in error["message"]
    assert (await _refused(http, input="hello", dimensions=0))["param"] == "dimensions"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [""]}, "input"),
        ({"input": ["a", 3]}, "input"),
        ({"input": [10**6]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [[1], []]}, "input"),
        ({"input": ["a"] * (MAX_PROMPTS + 1)}, "input"),
        ({"input": [5] * 257}, "input"),
        ({}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "task": "x"}, "task"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"input": "a", "truncate_prompt_tokens": 257}, "truncate_prompt_tokens"),
    ],
)
async def test_what_cannot_be_embedded_is_refused_by_name(http, body, param):
    assert (await _refused(http, **body))["param"] == param


async def test_a_long_input_is_cut_only_where_that_was_asked_for(http, engine):
    text = "the dog ran home and " * 99
    assert (await _refused(http, input=text))["code"] == "context_length_exceeded"
    for asked, count in ((-1, 256), (9, 9)):
        cut = await _post(http, input=text, truncate_prompt_tokens=asked)
        assert cut["usage"]["prompt_tokens"] == count
    ids = engine.tokenizer.encode(text)
    assert cut["data"] == (await _post(http, input=ids, truncate_prompt_tokens=9))["data"]
    assert cut["data"] == (await _post(http, input=ids[:9]))["data"]


async def test_an_unknown_model_is_a_404_and_completions_still_work(http):
    assert (await _post(http, status=404, input="a", model="nobody"))["error"]["code"] == "model_not_found"
    assert (await _post(http, "/v1/completions", prompt="a", max_tokens=2))["usage"]["completion_tokens"] == 2


async def test_pooling_gives_the_raw_numbers(http):
    raw = await _post(http, "/pooling", input=TEXTS, normalize=False)
    scaled = await _post(http, input=TEXTS)
    for one, other in zip(raw["data"], scaled["data"], strict=True):
        length = math.hypot(*one["data"])
        assert not math.isclose(length, 1, rel_tol=1e-3)
        assert [number / length for number in one["data"]] == pytest.approx(other["embedding"], rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_rerank_puts_the_documents_in_the_order_of_their_cosines(http, path):
    documents = [TEXTS[1], {"text": TEXTS[0]}, TEXTS[2]]
    answer = await _post(http, path, query=TEXTS[0], documents=documents)
    results = answer["results"]
    assert results[0]["index"] == 1 and results[0]["relevance_score"] == pytest.approx(1.0)
    assert results[0]["document"] == {"text": TEXTS[0]}
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True) and sorted(result["index"] for result in results) == [0, 1, 2]
    vectors = [entry["embedding"] for entry in (await _post(http, input=[TEXTS[0], TEXTS[1]]))["data"]]
    cosine = sum(a * b for a, b in zip(*vectors, strict=True))
    assert next(r["relevance_score"] for r in results if r["index"] == 0) == pytest.approx(cosine, abs=1e-6)
    best = await _post(http, path, query=TEXTS[0], documents=documents, top_n=1, return_documents=False)
    assert best["results"] == [{"index": 1, "relevance_score": results[0]["relevance_score"]}]


async def test_scores_come_in_the_order_of_the_pairs(http):
    one = await _post(http, "/score", text_1=TEXTS[0], text_2=TEXTS)
    two = await _post(http, "/v1/score", text_1=[TEXTS[0], TEXTS[1]], text_2=[TEXTS[1], TEXTS[1]])
    assert [entry["index"] for entry in one["data"]] == [0, 1, 2]
    assert one["data"][0]["score"] == pytest.approx(1.0) and two["data"][1]["score"] == pytest.approx(1.0)
    assert one["data"][1]["score"] == two["data"][0]["score"]
    assert (await _refused(http, "/score", text_1=["a", "b"], text_2=["a", "b", "c"]))["param"] == "text_2"


async def test_ways_of_asking_that_make_no_sense_are_refused(http):
    assert (await _refused(http, "/rerank", query="a", documents=[]))["param"] == "documents"
    assert (await _refused(http, "/rerank", query="a", documents=["b"], top_n=0))["param"] == "top_n"
    error = await _refused(http, "/classify", input="a")
    assert error["code"] == "unsupported_task" and "embeddings" in error["message"]
    long = await _refused(http, "/score", text_1="the dog " * 300, text_2="a")
    assert long["code"] == "context_length_exceeded" and "257" not in long["message"]
