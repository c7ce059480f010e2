"""Prepared requests and what an engine would say about them, without an engine."""

from pathlib import Path

import pytest

import quire
from quire import SamplingParams
from quire.base.outputs import FinishReason, TokenLogprobs, TokenOutput
from quire.engine.collector import RequestCollector
from quire.engine.info import EngineInfo
from quire.engine.requests import RequestOptions, RequestPreparer
from quire.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """The built-in model's tokenizer."""
    return Tokenizer.load(str(Path(quire.__file__).parent / "assets" / "quire-demo"))


@pytest.fixture
def preparer(tokenizer):
    """Prepares requests for a model of 64 tokens and 512 rows."""
    info = EngineInfo(model_path="", tokenizer_path="", served_names=("m",), max_model_len=64, vocab_rows=512, seed=3)
    return RequestPreparer(info, tokenizer)


@pytest.fixture
def collect(preparer, tokenizer):
    """Make a collector for a request: collect("name", delta=..., **sampling)."""

    def make(name="a", *, delta=False, prompt=(7, 8, 9), **sampling):
        params = SamplingParams(**({"max_tokens": 20} | sampling))
        prepared = preparer.prepare(list(prompt), params, request_id=name, options=RequestOptions())
        return RequestCollector(prepared, tokenizer, delta=delta)

    return make


@pytest.fixture
def say(tokenizer):
    """Make the engine's output for a collector: say(collector, "text" or ids, index=..., finish=..., error=...)."""

    def make(collector, tokens=(), *, index=0, finish=None, error=None, **fields):
        ids = tokenizer.encode(tokens, add_special_tokens=False) if isinstance(tokens, str) else list(tokens)
        if error is not None:
            fields |= {"error": "went wrong", "error_kind": error}
            finish = FinishReason.ERROR
        if collector.prepared.engine.params.logprobs is not None:
            top = collector.prepared.engine.params.logprobs
            fields["logprobs"] = [
                TokenLogprobs([i, *range(top)], [-1.0] * (1 + top), list(range(1, 2 + top))) for i in ids
            ]
        return TokenOutput(request_id=collector.engine_id, index=index, token_ids=ids, finish_reason=finish, **fields)

    return make
