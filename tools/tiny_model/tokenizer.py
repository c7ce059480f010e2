"""Trains the byte-level BPE tokenizer and writes its files.

Knows: the vocabulary's size, special tokens and pre-tokenisation. Does not know: the network.
Digits stand alone, so that sums are learned digit by digit. Only the corpus' everyday words take
the space before them: all others are the same tokens after a space and after a quote, which makes
them much easier to copy.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tools.tiny_model.corpus.mixture import Mixture, make_conversation
from tools.tiny_model.corpus.types import Message, Tool
from tools.tiny_model.render import END, START, chat_template, render, split_by_loss

VOCABULARY = 1024
CONTEXT = 4096
END_OF_TEXT = "<|endoftext|>"
SPECIAL = (END_OF_TEXT, START, END)
# Not special: a decoder must keep them, since clients parse them.
MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

_PATTERN = r"\p{N}| (?:COMMON)(?!\p{L})|\p{Ll}+|\p{Lu}+(?!\p{Ll})|\p{Lu}\p{Ll}*|\p{L}|[\r\n]+| ?[^\s\p{L}\p{N}]+|\s"
_SAMPLE = 12000
_COMMON_WORDS = 250
_WORD = re.compile(r" ([a-z]+)(?![A-Za-z])")


def _texts(seed: int, mixture: Mixture, markers: Sequence[str]) -> Iterator[str]:
    for index in range(_SAMPLE):
        conversation = make_conversation(random.Random(f"{seed}/tokenizer/{index}"), mixture)
        text = render(conversation.messages, conversation.tools, False)
        for marker in markers:
            text = text.replace(marker, "\n")
        yield text


def _pattern(texts: Sequence[str]) -> str:
    """Returns how text is cut up before merging, with the texts' commonest words."""
    counts = Counter(word for text in texts for word in _WORD.findall(text))
    common = sorted(counts, key=lambda word: (-counts[word], word))[:_COMMON_WORDS]
    return _PATTERN.replace("COMMON", "|".join(common))


def train_tokenizer(seed: int, mixture: Mixture) -> Tokenizer:
    """Returns a tokenizer trained on conversations of the training split."""
    texts = list(_texts(seed, mixture, SPECIAL + MARKERS))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_pattern(texts)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKERS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(list(MARKERS))
    return tokenizer


def write_tokenizer_files(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(tokenizer.token_to_id(text)): {
            "content": text,
            "lstrip": False,
            "normalized": text in MARKERS,
            "rstrip": False,
            "single_word": False,
            "special": text in SPECIAL,
        }
        for text in SPECIAL + MARKERS
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added,
        "additional_special_tokens": [START, END],
        "bos_token": None,
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": chat_template(),
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


class Encoder:
    """Turns conversations into token ids and loss masks."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end_id: int = tokenizer.token_to_id(END)
        self.pad_id: int = tokenizer.token_to_id(END_OF_TEXT)

    def training_ids(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[int], list[bool]]:
        """Returns the ids of a whole conversation and which of them are learned."""
        ids: list[int] = []
        learned: list[bool] = []
        for text, learn in split_by_loss(render(messages, tools, False)):
            piece = self.tokenizer.encode(text, add_special_tokens=False).ids
            ids.extend(piece)
            learned.extend([learn] * len(piece))
        return ids, learned

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        """Returns the ids of a prompt that ends where the reply begins."""
        return self.tokenizer.encode(render(messages, tools, True), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of a reply without its special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)
