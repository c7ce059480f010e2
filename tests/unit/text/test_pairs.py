"""Pairs of texts: joined as the checkpoint joins them, cut where they are too long."""

import pytest
from tokenizers import Tokenizer as Core
from tokenizers import models, pre_tokenizers, processors

from quire.base.errors import InvalidRequestError
from quire.text.codec import cut_lengths
from quire.text.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    words = ["[CLS]", "[SEP]", "[UNK]", *"abcdefgh"]
    core = Core(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    core.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer.load(tmp_path)


def test_a_pair_has_its_special_tokens_and_says_where_the_second_text_begins(tokenizer):
    assert tokenizer.encode_pair("a b", "c", max_tokens=99) == ([0, 3, 4, 1, 5, 1], 4)


def test_the_longer_text_of_a_pair_is_cut_and_special_tokens_stay(tokenizer):
    assert tokenizer.encode_pair("a b", "c d e f g", max_tokens=7) == ([0, 3, 4, 1, 5, 6, 1], 4)
    assert tokenizer.encode_pair("a b c d e", "f", max_tokens=7) == ([0, 3, 4, 5, 1, 8, 1], 5)
    assert tokenizer.encode_pair("a b c d", "e f g h", max_tokens=8) == ([0, 3, 4, 1, 7, 8, 9, 1], 4)


def test_a_text_is_cut_before_its_last_special_token(tokenizer):
    assert tokenizer.encode_cut("a b c d", max_tokens=4) == [0, 3, 4, 1]
    assert tokenizer.encode_cut("a b c d", max_tokens=6) == tokenizer.encode("a b c d")


def test_lone_surrogates_are_refused_in_either_text(tokenizer):
    for pair in (("a", "\ud800"), ("\ud800", "a")):
        with pytest.raises(InvalidRequestError, match="surrogate"):
            tokenizer.encode_pair(*pair, max_tokens=9)


@pytest.mark.parametrize(
    ("lengths", "room", "expected"),
    [([3, 4], 9, [3, 4]), ([3, 9], 8, [3, 5]), ([9, 3], 8, [5, 3]),
     ([9, 9], 7, [3, 4]), ([9], 4, [4]), ([2, 2], 0, [0, 0])],
)  # fmt: skip
def test_lengths_are_shared_out_within_the_room(lengths, room, expected):
    assert cut_lengths(lengths, room) == expected
