"""The exported metrics and their page agree, and nothing a client sends can make them grow."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from quire.server import metrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
BODY = {"messages": [{"role": "user", "content": "hi"}]}
_NAME = re.compile(r"`((?:quire|vllm):\w+)(?:\{([\w, ]*)\})?`")


async def _exercise(http) -> None:
    """Requests of every kind, so that every labelled family has a sample."""
    await http.post("/v1/chat/completions", json=BODY)
    await http.post("/v1/chat/completions", json=BODY | {"stream": True})
    await http.post("/v1/chat/completions", json=BODY | {"n": 0})


def _exported(text: str) -> dict[str, set[str]]:
    """Families by name, with the labels of their samples; what the client library adds to each is left out."""
    names = re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)
    found: dict[str, set[str]] = {}
    for name in names:
        if name.endswith("_created") or not name.startswith(("quire:", "vllm:")):
            continue
        sample = re.search(rf"^{name}(?:_bucket)?(?:{{(.*)}})? ", text, re.MULTILINE)
        assert sample, name
        labels = set(re.findall(r'(\w+)="', sample.group(1) or "")) - {"le"}
        found[name.removesuffix("_total")] = labels
    return found


async def test_every_exported_metric_is_documented_with_its_labels_and_the_other_way_round(
    engine, make_http, tmp_path
) -> None:
    """S55, S56, S116: docs/metrics.md is complete and says nothing that is not there."""
    http = make_http(engine, files_dir=str(tmp_path))  # batches have metrics where they are served
    await _exercise(http)
    exported = _exported((await http.get("/metrics")).text)
    tables = "\n".join(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|"))
    named = [(name, set(labels.replace(" ", "").split(",")) - {""}) for name, labels in _NAME.findall(tables)]
    documented = dict(reversed(named))  # a name's first place is its own row
    http.app.state.quire.batches.database.close()
    assert exported == documented


async def test_advice_names_only_metrics_that_exist(http) -> None:
    """S116: expressions of the page can be pasted into a dashboard."""
    await _exercise(http)
    text = (await http.get("/metrics")).text
    page = PAGE.read_text(encoding="utf-8")
    for name in set(re.findall(r"(?:quire|vllm):\w+(?=\[)|(?:quire|vllm):\w+_total", page)):
        assert re.search(rf"^{name}(\{{| )", text, re.MULTILINE), name


async def test_clients_cannot_make_the_metrics_grow(http) -> None:
    """S117: unknown paths, models, fields and methods share a bounded number of series."""

    async def provoke(i: int) -> None:
        await http.get(f"/no/such/path/{i}")
        await http.get(f"/v1/models/model-{i}")
        await http.post("/v1/chat/completions", json=BODY | {"model": f"model-{i}"})
        await http.post("/v1/chat/completions", json=BODY | {f"field_{i}": 1})
        await http.post("/v1/chat/completions", json=BODY, headers={"x-request-id": f"id-{i}"})

    async def series() -> int:
        return sum(not line.startswith("#") for line in (await http.get("/metrics")).text.splitlines())

    await provoke(0)
    await series()  # the first scrape is a series of its own
    before = await series()
    for i in range(1, 20):
        await provoke(i)
    assert await series() == before


def test_quantiles_can_be_read_from_every_histogram() -> None:
    """S55: neighbouring bounds are near enough that p50, p90 and p99 mean something, over the whole range."""
    for bounds in (metrics.FIRST_TOKEN_BUCKETS, metrics.INTER_TOKEN_BUCKETS, metrics.REQUEST_BUCKETS):
        assert all(1 < high / low <= 2.5 for low, high in pairwise(bounds))
        assert bounds[-1] / bounds[0] >= 10_000


async def test_prompt_tokens_count_every_request_once_whatever_n_is(http, engine) -> None:
    """S56: prompt tokens are those of the requests, cached or not."""
    await http.post("/v1/chat/completions", json=BODY | {"n": 3})
    text = (await http.get("/metrics")).text
    totals = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert totals["quire:prompt_tokens_total"] == totals["quire:request_prompt_tokens_sum"] != "0.0"
