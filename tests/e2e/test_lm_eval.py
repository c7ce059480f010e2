"""lm-eval's local-completions backend over a real socket: its scores are those of our own log-probabilities."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quire import LLM, SamplingParams

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval: pip install 'quire[clients]'"
    ),
]
CLIENTS = Path(__file__).parent / "clients"
SECONDS = 180


@pytest.fixture(scope="module")
def llm(demo_path):
    with LLM(demo_path, max_model_len=1024) as llm:
        yield llm


@pytest.fixture(scope="module")
def measured(live_server, demo_path, tmp_path_factory):
    """What lm-eval's process printed: results by task, and every sample with what was asked and answered."""
    home = tmp_path_factory.mktemp("hf")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(home), "DO_NOT_TRACK": "1"}
    command = [sys.executable, str(CLIENTS / "lm_eval_client.py"), live_server.url, demo_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def read_data(name):
    lines = (CLIENTS / "lm_eval_tasks" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def scored(llm, before, ids):
    """The log-probability of `ids` after the ids `before`, and whether each of them is the likeliest."""
    asked = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    (output,) = llm.generate([before + ids], asked, use_tqdm=False)
    entries = [here[token] for here, token in zip(output.prompt_logprobs[len(before) :], ids, strict=True)]
    return sum(entry.logprob for entry in entries), all(entry.rank == 1 for entry in entries)


def loglikelihood(llm, context, continuation):
    """The same of a text's continuation; its tokens are those that the whole text has beyond the context's."""
    before = llm.tokenizer.encode(context, add_special_tokens=False)
    whole = llm.tokenizer.encode(context + continuation, add_special_tokens=False)
    return scored(llm, before, whole[len(before) :])


def test_the_likelihood_of_every_choice_is_our_own(measured, llm):
    """S50, S51: echoed log-probabilities, in batches of prompts of several lengths."""
    samples, data = measured["samples"]["quire_choice"], read_data("choice")
    right = right_by_length = greedy = 0
    for sample, line in zip(samples, data, strict=True):
        own = [loglikelihood(llm, *arguments) for arguments in sample["arguments"]]
        for (score, is_greedy), (their_score, theirs_greedy) in zip(own, sample["answers"], strict=True):
            assert their_score == pytest.approx(score, abs=1e-3)
            assert theirs_greedy == is_greedy
            greedy += is_greedy
        right += _best([score for score, _ in own]) == line["answer"]
        lengths = [len(choice) for choice in line["choices"]]
        right_by_length += (
            _best([score / length for (score, _), length in zip(own, lengths, strict=True)]) == line["answer"]
        )
    results = measured["results"]["quire_choice"]
    assert results["acc,none"] == pytest.approx(right / len(data))
    assert results["acc_norm,none"] == pytest.approx(right_by_length / len(data))
    assert greedy, "one of the choices is what the model itself would say"


def _best(scores):
    return max(range(len(scores)), key=scores.__getitem__)


def test_what_is_generated_until_a_stop_is_our_own_greedy_text(measured, llm):
    samples, data = measured["samples"]["quire_words"], read_data("words")
    right = 0
    for sample, line in zip(samples, data, strict=True):
        asked = SamplingParams(temperature=0.0, max_tokens=24, stop=[".", "\n"])
        ids = llm.tokenizer.encode(line["prompt"], add_special_tokens=False)
        (output,) = llm.generate([ids], asked, use_tqdm=False)
        assert sample["answers"] == [output.outputs[0].text]
        right += output.outputs[0].text.lower() == line["answer"].lower()
    assert right, "one of the answers is what the model says"
    assert measured["results"]["quire_words"]["exact_match,none"] == pytest.approx(right / len(data))


def test_the_perplexity_of_texts_is_our_own(measured, llm):
    """Every token counts, the first one after the token that ends a text."""
    (start,) = llm.tokenizer.encode("<|im_end|>", add_special_tokens=False)
    samples, data = measured["samples"]["quire_text"], read_data("text")
    total = 0.0
    for sample, line in zip(samples, data, strict=True):
        score, _ = scored(llm, [start], llm.tokenizer.encode(line["text"], add_special_tokens=False))
        assert sample["answers"] == [pytest.approx(score, abs=1e-3)]
        total += score
    words = sum(len(line["text"].split()) for line in data)
    expected = math.exp(-total / words)
    assert measured["results"]["quire_text"]["word_perplexity,none"] == pytest.approx(expected, rel=1e-3)
