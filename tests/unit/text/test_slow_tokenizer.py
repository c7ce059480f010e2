"""Checkpoints without tokenizer.json."""

from __future__ import annotations

import builtins
import io
import json

import pytest

from quire.base.errors import ConfigError
from quire.text.detokenizer import Detokenizer
from quire.text.tokenizer import Tokenizer

CORPUS = ("the quick brown fox jumps over the lazy dog", "hello world, hello stop", "Grüße aus Köln", "a b c d e f g")


@pytest.fixture(scope="module")
def gpt2_files(tmp_path_factory, checkpoints):
    """vocab.json and merges.txt of a byte-level BPE, as older checkpoints ship them."""
    folder = tmp_path_factory.mktemp("gpt2")
    model = json.loads((checkpoints["byte_level"] / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|end|>")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"} | tokens))
    return folder


@pytest.fixture(scope="module")
def sentencepiece_files(tmp_path_factory):
    """A tokenizer.model trained here, with byte fallback."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("spm")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CORPUS] * 20), model_writer=model, vocab_size=360, model_type="bpe",
        byte_fallback=True, minloglevel=3,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return folder


@pytest.mark.parametrize("files", ["gpt2_files", "sentencepiece_files"])
def test_other_tokenizer_files_load_through_transformers(files, request):
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(files)
    ours, reference = Tokenizer.load(folder), AutoTokenizer.from_pretrained(str(folder))
    for text in ("hello world", "Grüße 👋 the fox", " leading"):
        ids = ours.encode(text)
        assert ids == reference.encode(text)
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)
        stream = Detokenizer(ours, [])
        assert "".join([stream.push([i]) for i in ids]) + stream.flush() == ours.decode(ids)
    assert ours.eos_token == reference.eos_token


def test_a_tokenizer_written_in_python_works_behind_the_same_interface(tmp_path):
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    ids = ours.encode("héllo 👋")
    assert ids[-1] == ours.eos_token_id
    assert ours.decode(ids) == "héllo 👋"
    stream = Detokenizer(ours, [])
    deltas = [stream.push([i]) for i in ids]
    assert "".join(deltas) + stream.flush() == "héllo 👋"
    assert not any("\ufffd" in delta for delta in deltas)
    assert ours.vocabulary_spelling(10**6) is None


def test_without_transformers_the_error_names_the_extra(gpt2_files, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install quire\[hf\]"):
        Tokenizer.load(gpt2_files)


def test_a_directory_without_any_tokenizer_is_a_config_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no tokenizer in"):
        Tokenizer.load(tmp_path)
