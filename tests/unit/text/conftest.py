"""Tokenizers of every common kind, trained here on a few lines of text, in the file layout of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

import quire
from quire.text.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It doesn't stop, does it?",
    "def main():\n    return {'key': [1, 2, 3]}\n\n\tprint(\"hello world\")",
    "Grüße aus Köln! Ça va? Привет, мир. 你好,世界。안녕하세요 👋🏽 🙂",
    "hello hello world, the world of worlds; stop stopping at the stop",
] * 4
NAMES = ("byte_level", "llama_like", "gemma_like", "unigram", "word_piece", "demo")


def _byte_level() -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|begin|>", "<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(CORPUS, trainer)
    core.add_tokens([AddedToken("<tool>", special=False), AddedToken("two words", special=False)])
    core.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", core.token_to_id("<|begin|>"))]
    )
    return core


def _llama_like(*, strips: bool) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence(
        ([normalizers.Prepend("▁")] if strips else []) + [normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strips else []))
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, limit_alphabet=40, show_progress=False, max_token_length=8
    )
    core.train_from_iterator((line.replace(" ", "▁") for line in CORPUS), trainer)
    state = json.loads(core.to_str())
    # Byte tokens belong to the model, not to the added tokens, in real checkpoints of this kind.
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    core = tokenizers.Tokenizer.from_str(json.dumps(state))
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return core


def _unigram() -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return core


def _word_piece() -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "<s>", "</s>"], show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    return core


def write_checkpoint(folder: Path, core: tokenizers.Tokenizer, config: dict[str, object]) -> Path:
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | config))
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory with tokenizer files per kind."""
    sentence_piece = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    kinds = {
        "byte_level": (_byte_level(), {"bos_token": "<|begin|>", "eos_token": "<|end|>"}),
        "llama_like": (_llama_like(strips=True), sentence_piece),
        "gemma_like": (_llama_like(strips=False), sentence_piece | {"additional_special_tokens": ["<start_of_turn>"]}),
        "unigram": (_unigram(), sentence_piece),
        "word_piece": (
            _word_piece(), {"bos_token": "<s>", "eos_token": "</s>", "clean_up_tokenization_spaces": True},
        ),
    }  # fmt: skip
    folders = {
        name: write_checkpoint(tmp_path_factory.mktemp(name), core, config) for name, (core, config) in kinds.items()
    }
    return folders | {"demo": Path(quire.__file__).parent / "assets" / "quire-demo"}


@pytest.fixture(scope="session")
def tokenizer_of(checkpoints: dict[str, Path]) -> Callable[[str], Tokenizer]:
    """Our tokenizer of one kind, loaded once."""
    loaded = {name: Tokenizer.load(folder) for name, folder in checkpoints.items()}
    return loaded.__getitem__


@pytest.fixture(scope="session")
def reference_of(checkpoints: dict[str, Path]) -> Callable[[str], object]:
    """The transformers tokenizer of one kind."""
    from transformers import PreTrainedTokenizerFast

    loaded = {name: PreTrainedTokenizerFast.from_pretrained(str(folder)) for name, folder in checkpoints.items()}
    return loaded.__getitem__


@pytest.fixture(params=NAMES)
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of tokenizer in turn."""
    return request.param
