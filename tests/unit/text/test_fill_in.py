"""Filling in the middle: which family a vocabulary belongs to, and the prompt that family was trained on."""

from __future__ import annotations

import json

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from quire.text.fill_in import FAMILIES, FillIn
from quire.text.tokenizer import Tokenizer

MARKS = {
    "qwen": ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|file_sep|>"),
    "starcoder": ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"),
    "santacoder": ("<fim-prefix>", "<fim-middle>", "<fim-suffix>"),
    "deepseek": ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    "codestral": ("[PREFIX]", "[MIDDLE]", "[SUFFIX]"),
    "code_llama": ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
}


def byte_level(marks, *, is_special):
    """A token per byte, and the marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>"])
    (core.add_special_tokens if is_special else core.add_tokens)([AddedToken(mark, normalized=False) for mark in marks])
    return core


def sentence_piece(marks):
    """A token per byte and per letter, a mark for spaces, and one before every text."""
    vocab = {
        token: i for i, token in enumerate(["<unk>", "<s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abcxyz"])
    }
    core = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    return core


@pytest.fixture
def load(tmp_path):
    """`load(name, adds_bos=..., is_special=...)`: a tokenizer with a family's marks."""

    def make(name, *, adds_bos=True, is_special=True):
        marks = MARKS.get(name, ())
        core = sentence_piece(marks) if name == "code_llama" else byte_level(marks, is_special=is_special)
        if adds_bos:
            special = [("<s>", core.token_to_id("<s>"))]
            core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=special)
        core.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
        return Tokenizer.load(tmp_path)

    return make


def spelled(tokenizer, ids):
    return [tokenizer.vocabulary_spelling(i) for i in ids]


@pytest.mark.parametrize("is_special", [True, False])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen", "<s><|fim_prefix|>def f(<|fim_suffix|>):\n  pass<|fim_middle|>"),
        ("starcoder", "<s><fim_prefix>def f(<fim_suffix>):\n  pass<fim_middle>"),
        ("santacoder", "<s><fim-prefix>def f(<fim-suffix>):\n  pass<fim-middle>"),
        ("deepseek", "<s><｜fim▁begin｜>def f(<｜fim▁hole｜>):\n  pass<｜fim▁end｜>"),
        ("codestral", "<s>[SUFFIX]):\n  pass[PREFIX]def f("),
    ],
)
def test_a_family_is_told_by_its_marks_and_asked_in_its_own_order(load, name, text, is_special):
    """Some vocabularies have the marks as special tokens, some as ordinary added ones."""
    tokenizer = load(name, is_special=is_special)
    ids = FillIn.of(tokenizer).prompt("def f(", "):\n  pass", adds_bos=True)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    marks = {tokenizer.token_id(mark) for mark in MARKS[name]}
    assert len([i for i in ids if i in marks]) == (2 if name == "codestral" else 3)


def test_code_llama_spells_its_suffix_as_in_the_midst_of_a_text(load):
    tokenizer = load("code_llama")
    fill_in = FillIn.of(tokenizer)
    ids = fill_in.prompt("ab", "xy", adds_bos=True)
    assert spelled(tokenizer, ids) == ["<s>", "▁<PRE>", "▁", "a", "b", "▁<SUF>", "x", "y", "▁<MID>"]
    ids = fill_in.prompt("a b", " x", adds_bos=False)
    assert spelled(tokenizer, ids) == ["▁<PRE>", "▁", "a", "▁", "b", "▁<SUF>", "▁", "x", "▁<MID>"]
    assert spelled(tokenizer, fill_in.end_ids) == ["▁<EOT>"]


def test_a_sequence_begins_as_the_tokenizer_begins_every_one(load):
    for adds_bos, asked, begins in ((True, True, True), (True, False, False), (False, True, False)):
        tokenizer = load("qwen", adds_bos=adds_bos)
        ids = FillIn.of(tokenizer).prompt("a", "b", adds_bos=asked)
        assert (ids[0] == tokenizer.bos_token_id) is begins


def test_a_prefix_of_ids_is_taken_as_it_is(load):
    tokenizer = load("qwen")
    ids = FillIn.of(tokenizer).prompt([5, 6], "b", adds_bos=False)
    assert ids[1:3] == [5, 6]


def test_only_ends_that_the_vocabulary_has_end_the_middle(load):
    tokenizer = load("qwen")
    assert spelled(tokenizer, FillIn.of(tokenizer).end_ids) == ["<|fim_pad|>", "<|file_sep|>"]


def test_a_vocabulary_without_all_marks_of_a_family_fills_in_nothing(load, tokenizer_of):
    assert FillIn.of(load("none")) is None
    MARKS["half"] = ("<|fim_prefix|>", "<|fim_suffix|>")
    try:
        assert FillIn.of(load("half")) is None
    finally:
        del MARKS["half"]
    assert FillIn.of(tokenizer_of("demo")) is None
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
