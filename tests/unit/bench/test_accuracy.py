"""What weights in fewer bits cost, measured on the built-in model and on texts made up here."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from quire import LLM, SamplingParams
from quire.base.cpu_kernels import are_usable
from quire.base.errors import ConfigError
from quire.bench.accuracy import AccuracyLoad, Scorer, _Tally, describe, run_accuracy
from quire.bench.documents import Document, random_documents, read_documents, windows
from quire.bench.report import as_json
from quire.models.inspect import inspect_model
from quire.text.tokenizer import Tokenizer

needs_kernels = pytest.mark.skipif(not are_usable(), reason="the CPU kernels were not built")
TEXT = "<|im_start|>user\nSpell river.<|im_end|>\n<|im_start|>assistant\nr-i-v-e-r<|im_end|>"


@pytest.fixture(scope="module")
def info(demo_path):
    return inspect_model(demo_path)


@pytest.fixture(scope="module")
def tokenizer(demo_path):
    return Tokenizer.load(demo_path)


@pytest.fixture(scope="module")
def result(info, tokenizer, demo_path):
    """All formats, and the checkpoint itself as another one, on one known conversation and on noise."""
    documents = [Document(tokenizer.encode(TEXT)), *random_documents(40, context=21, vocab_rows=1024, seed=1)]
    return run_accuracy(info, documents, AccuracyLoad(tokens=500, context=64), others=[info])


@needs_kernels
def test_fewer_bits_differ_more_from_float32_weights(result):
    full, half, dots, int8, int4, other = result.formats
    assert [one.name for one in result.formats] == ["float32", "bfloat16", "bfloat16_dot", "int8", "int4", other.name]
    assert full.divergence == full.logit_error == 0.0
    assert full.agreement == 1.0
    assert half.divergence == 0.0, "the checkpoint holds no more than bfloat16"
    assert 0 < int8.divergence < int4.divergence
    assert dots.divergence < int4.divergence
    assert 0 < int8.logit_error < 0.05 < int4.logit_error < 0.5
    assert int8.agreement >= int4.agreement > 0.5
    assert dataclasses.replace(other, name="", seconds=0) == dataclasses.replace(full, name="", seconds=0)
    assert json.loads(as_json(result))["formats"][3]["divergence"] == int8.divergence
    assert "same token" in describe(result)


@needs_kernels
@pytest.mark.parametrize("weight_format", ["float32", "int8", "int4"])
def test_the_log_probabilities_judged_are_those_the_engine_gives(info, tokenizer, demo_path, weight_format):
    """The engine's, with every shortcut it takes, for the same weights: bit for bit."""
    ids = tokenizer.encode(TEXT)
    rows = torch.cat(list(Scorer(info, weight_format, context=64).log_probs(Document(ids))))
    ours = rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    quantization = "none" if weight_format == "float32" else weight_format
    options = {"dtype": "float32", "quantization": quantization, "kv_cache_memory_bytes": 8 << 20}
    with LLM(demo_path, max_model_len=128, **options) as llm:
        [output] = llm.generate(
            [{"prompt_token_ids": ids}], SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False
        )
    engines = [entry[token].logprob for token, entry in zip(ids[1:], output.prompt_logprobs[1:], strict=True)]
    assert ours == engines


def test_the_measures_are_what_their_names_say():
    exact = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1]]).log()
    found = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.7, 0.1]]).log()
    tally = _Tally()
    tally.add(found, exact, torch.tensor([1, 1]))
    result = tally.result("x", 1.0)
    assert result.perplexity == pytest.approx(1 / math.sqrt(0.5 * 0.7))
    assert result.divergence == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2)) / 2)
    assert result.agreement == 0.5
    centred = exact - exact.mean(1, keepdim=True)
    error = 2 * math.log(2) ** 2 / float(centred.square().sum())
    assert result.logit_error == pytest.approx(math.sqrt(error))


def test_logits_that_differ_by_a_constant_are_the_same():
    exact, tally = torch.randn(3, 5).log_softmax(1), _Tally()
    tally.add(exact + 2.0, exact, torch.tensor([0, 1, 2]))
    assert tally.result("x", 1.0).logit_error < 1e-6


def test_long_texts_are_cut_without_losing_a_prediction():
    documents = [Document(list(range(10))), Document(list(range(100, 103)))]
    cut = windows(documents, context=4, num_tokens=100)
    assert [one.token_ids for one in cut] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9], [100, 101, 102]]
    assert sum(one.num_judged for one in cut) == 9 + 2
    assert [one.token_ids for one in windows(documents, context=4, num_tokens=4)] == [[0, 1, 2, 3], [3, 4]]


def test_of_a_prompt_and_its_completion_only_the_completion_counts():
    document = Document(list(range(10)), 7)
    assert document.num_judged == 3
    cut = windows([document], context=4, num_tokens=100)
    assert [(one.token_ids[-one.num_judged :], one.num_judged) for one in cut] == [([7, 8, 9], 3)]
    assert [one.token_ids[-one.num_judged :] for one in windows([document], context=6, num_tokens=100)] == [[7, 8, 9]]


def test_a_file_holds_one_text_or_one_per_line(tmp_path, tokenizer):
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text(TEXT)
    given, _, reply = TEXT.partition("r-i-v")
    values = [TEXT, {"text": TEXT}, {"prompt": given, "completion": "r-i-v" + reply}]
    lines.write_text("\n".join(map(json.dumps, values)) + "\n\n")
    ids = tokenizer.encode(TEXT)
    assert read_documents(plain, tokenizer) == [Document(ids)]
    first, second, third = read_documents(lines, tokenizer)
    assert first == second == Document(ids)
    assert (third.token_ids, third.num_given) == (ids, len(tokenizer.encode(given)))


@pytest.mark.parametrize("line", ["{", "3", '{"prompt": "x"}', '{"text": 1}'])
def test_a_line_that_is_no_text_is_named(tmp_path, tokenizer, line):
    path = tmp_path / "b.jsonl"
    path.write_text('"fine"\n' + line)
    with pytest.raises(ConfigError, match=r"b\.jsonl, line 2: must be a string"):
        read_documents(path, tokenizer)


def test_a_file_that_cannot_be_read_is_named(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="nowhere"):
        read_documents(tmp_path / "nowhere.txt", tokenizer)


@needs_kernels
def test_texts_that_cannot_be_judged_are_refused(info):
    load = AccuracyLoad(tokens=10, context=8)
    with pytest.raises(ConfigError, match="nothing to predict"):
        run_accuracy(info, [Document([5])], load)
    with pytest.raises(ConfigError, match="token ids that the model does not have"):
        run_accuracy(info, [Document([5, 1024])], load)
    with pytest.raises(ConfigError, match="takes up to 4096 tokens"):
        run_accuracy(info, [Document([5, 6])], dataclasses.replace(load, context=4097))


@pytest.mark.parametrize("bad", [{"tokens": 0}, {"context": 1}])
def test_a_load_that_judges_nothing_is_refused(bad):
    with pytest.raises(ConfigError, match="at least"):
        AccuracyLoad(**bad)
