"""Every pair of sampling fields, in every pair of engine modes: nothing fails, and nothing comes out differently.

Peers break where two features meet that nobody tried together (speculative decoding and penalties, say). All
combinations would be millions; covering arrays hold every pair of values in a few rows.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.base.outputs import RequestOutput

Factors = Mapping[str, Sequence[Any]]
Row = dict[str, Any]

SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 6}}, "required": ["name"]}
CHOICES = ["to the left", "to the right"]
NO_CAPITALS = [i for i in range(1024) if not 35 <= i <= 60]
"""All ids of the model but the capital letters, of which no grammar here is in need."""
FIELDS: Factors = {
    "temperature": (0.0, 0.9),
    "top_p": (1.0, 0.7),
    "top_k": (-1, 20),
    "min_p": (0.0, 0.05),
    "presence_penalty": (0.0, 0.7),
    "frequency_penalty": (0.0, -0.5),
    "repetition_penalty": (1.0, 1.3),
    "n": (1, 3),
    "seed": (None, 7),
    "stop": ([], ["e", "th"]),
    "include_stop_str_in_output": (False, True),
    "stop_token_ids": ([], [60, 61]),
    "ignore_eos": (False, True),
    "min_tokens": (0, 3),
    "max_tokens": (6, 40),
    "bad_words": ([], ["zz", "q x"]),
    "allowed_token_ids": (None, NO_CAPITALS),
    "logit_bias": (None, {70: -100.0, 40: 3.0}),
    "logprobs": (None, 0, 5),
    "prompt_logprobs": (None, 2),
    "skip_special_tokens": (True, False),
    "spaces_between_special_tokens": (True, False),
    "skip_reading_prefix_cache": (False, True),
    "structured_outputs": (None, {"json": SCHEMA}, {"regex": "[a-z ]{8,30}"}, {"choice": CHOICES}),
}  # fmt: skip
MODES: Factors = {
    "enable_prefix_caching": (True, False),
    "async_scheduling": (False, True),
    "max_num_batched_tokens": (None, 16),
    "pages": (None, 16),
    "page_size": (16, 8),
    "kv_cache_dtype": ("auto", "int8"),
}
MAX_LENGTH = 256
SHARED = "Once upon a time there was a small house by the sea, and in the house there lived "


def pairs_of(row: Row) -> Iterator[tuple[Any, ...]]:
    """Every pair of settings that a row holds."""
    return itertools.combinations(sorted((name, repr(value)) for name, value in row.items()), 2)


def covering_rows(factors: Factors, seed: int = 0) -> list[Row]:
    """Few rows in which every pair of values of two factors occurs.

    Greedy (as AETG by Cohen et al., 1997): a row begins with a pair that is missing, and each further factor in random
    order takes the value that adds most; the best of some tries is kept.
    """
    draw = random.Random(seed)
    missing = {
        tuple(sorted(((a, repr(x)), (b, repr(y)))))
        for a, b in itertools.combinations(factors, 2)
        for x, y in itertools.product(factors[a], factors[b])
    }
    rows = []
    while missing:
        tries = [_row(factors, draw, draw.choice(sorted(missing)), missing) for _ in range(20)]
        best = max(tries, key=lambda row: len(missing.intersection(pairs_of(row))))
        missing.difference_update(pairs_of(best))
        rows.append(best)
    return rows


def _row(factors: Factors, draw: random.Random, start: tuple[Any, ...], missing: set[tuple[Any, ...]]) -> Row:
    row = {name: next(value for value in factors[name] if repr(value) == shown) for name, shown in start}
    rest = [name for name in factors if name not in row]
    draw.shuffle(rest)
    for name in rest:
        values = draw.sample(list(factors[name]), len(factors[name]))
        row[name] = max(values, key=lambda value: len(missing.intersection(pairs_of(row | {name: value}))))
    return row


ENGINES = covering_rows(MODES)
LONG: Row = {name: values[0] for name, values in FIELDS.items()} | {"ignore_eos": True, "max_tokens": 100}
"""A request that grows page by page until others must give theirs back."""
REQUESTS = [*[LONG] * 4, *covering_rows(FIELDS)]


@pytest.mark.parametrize("factors", [FIELDS, MODES], ids=["fields", "modes"])
def test_the_rows_cover_every_pair_and_are_few(factors: Factors) -> None:
    """SEC-27: what the other test claims to try."""
    rows = covering_rows(factors)
    found = {pair for row in rows for pair in pairs_of(row)}
    wanted = sum(len(factors[a]) * len(factors[b]) for a, b in itertools.combinations(factors, 2))
    assert len(found) == wanted and all(row.keys() == factors.keys() for row in rows)
    assert len(rows) <= 24


def _prompts() -> list[str]:
    return [SHARED + "a cat and a dog. " * (index % 5) + f"Number {index}" for index in range(len(REQUESTS))]


def _params(row: Row) -> SamplingParams:
    structured = row["structured_outputs"]
    shape = None if structured is None else StructuredOutputsParams(**structured)
    return SamplingParams(**(row | {"structured_outputs": shape}))


def _llm(model: str, mode: Row) -> LLM:
    options = {name: value for name, value in mode.items() if value is not None and name != "pages"}
    options |= {"max_model_len": MAX_LENGTH, "max_num_seqs": 16, "debug": True}
    if mode["pages"] is not None:
        with LLM(model, **options) as probe:
            page_bytes = probe.info.resolved["memory"]["page_bytes"]
        tokens = mode["pages"] * 16
        options["kv_cache_memory_bytes"] = tokens // mode["page_size"] * page_bytes
    return LLM(model, **options)


def _plain(kv_cache_dtype: str) -> Row:
    return {name: values[0] for name, values in MODES.items()} | {"kv_cache_dtype": kv_cache_dtype}


def _outputs(llm: LLM) -> list[RequestOutput]:
    return llm.generate(_prompts(), [_params(row) for row in REQUESTS], use_tqdm=False)


@pytest.fixture(scope="module")
def plain(draft_path: str) -> dict[str, list[RequestOutput]]:
    """What comes out of an engine in its plain mode, by the precision of the cache."""
    found = {}
    for kv_cache_dtype in MODES["kv_cache_dtype"]:
        with _llm(draft_path, _plain(kv_cache_dtype)) as llm:
            found[kv_cache_dtype] = _outputs(llm)
    return found


def _numbers(logprobs: Any) -> Any:
    """Log-probabilities by position and id, comparable up to rounding."""
    return [
        None if entry is None else {i: pytest.approx(one.logprob, abs=1e-3) for i, one in entry.items()}
        for entry in logprobs or ()
    ]


def _values(logprobs: Any) -> Any:
    return [None if entry is None else {i: one.logprob for i, one in entry.items()} for entry in logprobs or ()]


@pytest.mark.parametrize("mode", ENGINES, ids=lambda mode: "-".join(map(str, mode.values())))
def test_every_pair_of_fields_in_every_mode_gives_what_the_plain_mode_gives(
    mode: Row, draft_path: str, plain: dict[str, list[RequestOutput]]
) -> None:
    """SEC-27: no failure, the same tokens, texts, reasons and log-probabilities; pages are checked at every step."""
    with _llm(draft_path, mode) as llm:
        rounds = [_outputs(llm), _outputs(llm)]  # the second one may find its prefixes in the cache
        stats = llm.stats
    for row, expected, found in zip(REQUESTS, plain[mode["kv_cache_dtype"]], rounds[0], strict=True):
        assert [o.token_ids for o in found.outputs] == [o.token_ids for o in expected.outputs], row
        assert [o.text for o in found.outputs] == [o.text for o in expected.outputs], row
        ends = [(o.finish_reason, o.stop_reason) for o in found.outputs]
        assert ends == [(o.finish_reason, o.stop_reason) for o in expected.outputs], row
        assert {reason for reason, _ in ends} <= {"stop", "length"}, row
        assert [_values(o.logprobs) for o in found.outputs] == [_numbers(o.logprobs) for o in expected.outputs], row
        assert _values(found.prompt_logprobs) == _numbers(expected.prompt_logprobs), row
    for row, first, again in zip(REQUESTS, *rounds, strict=True):
        if row["seed"] is not None or row["temperature"] == 0:  # others draw anew
            assert [o.token_ids for o in again.outputs] == [o.token_ids for o in first.outputs], row
    assert mode["pages"] is None or stats.preemptions > 0, "too many pages to run out of them"
    assert not mode["enable_prefix_caching"] or stats.prefix_hits > 0
