"""`Tokenizer` against transformers, and what transformers does not do."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.base.errors import ConfigError, InvalidRequestError
from quire.text.tokenizer import Tokenizer

TEXTS = [
    "",
    " ",
    "hello world",
    "  two  leading and trailing  ",
    "The quick brown fox doesn't jump , does it ?",
    "Grüße 你好 안녕 👋🏽🙂 \U0001f9d1‍🚀 \x00\x7f é é",
    "tabs\tand\r\nline\n\n\nbreaks",
    "an <tool> and two words and <|end|> </s> inside",
    "x" * 300,
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("adds", [True, False])
def test_encode_and_decode_equal_the_reference(kind, text, adds, tokenizer_of, reference_of):
    """S28: encode and decode agree with transformers' fast tokenizer."""
    ours, reference = tokenizer_of(kind), reference_of(kind)
    ids = ours.encode(text, add_special_tokens=adds)
    assert ids == reference.encode(text, add_special_tokens=adds)
    for skips in (True, False):
        assert ours.decode(ids, skip_special_tokens=skips) == reference.decode(ids, skip_special_tokens=skips)


def test_random_ids_decode_as_the_reference_decodes_them(kind, tokenizer_of, reference_of):
    """S28: so do lists no text would encode to, ill-formed UTF-8 included."""
    ours, reference = tokenizer_of(kind), reference_of(kind)

    @given(st.lists(st.integers(0, ours.vocab_size - 1), max_size=12), st.booleans())
    def check(ids, skips):
        assert ours.decode(ids, skip_special_tokens=skips) == reference.decode(ids, skip_special_tokens=skips)

    check()


def test_special_tokens_and_sizes_equal_the_reference(kind, tokenizer_of, reference_of):
    ours, reference = tokenizer_of(kind), reference_of(kind)
    assert ours.vocab_size == len(reference)
    assert (ours.bos_token, ours.eos_token) == (reference.bos_token, reference.eos_token)
    assert (ours.bos_token_id, ours.eos_token_id) == (reference.bos_token_id, reference.eos_token_id)
    assert ours.special_tokens == reference.special_tokens_map
    assert {i for i in range(ours.vocab_size) if ours.is_special(i)} >= set(reference.all_special_ids)


def test_a_text_that_starts_with_bos_gets_no_second_one(tokenizer_of):
    """S47: a rendered template with its own BOS stays as it is."""
    tokenizer = tokenizer_of("llama_like")
    ids = tokenizer.encode("<s>hello")
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids == tokenizer.encode("<s>hello", add_special_tokens=False)
    assert tokenizer.encode("hello")[0] == tokenizer.bos_token_id
    assert tokenizer.encode("<s><s>hello")[:3] == [1, 1, tokenizer.encode("<s><s>hello")[2]]


def test_token_bytes_join_to_the_utf8_of_the_text(tokenizer_of):
    """The bytes of logprob entries give the text exactly (wire 27)."""
    text = "Grüße 👋🏽 你好, <tool>!"
    for kind in ("byte_level", "llama_like", "gemma_like", "demo"):
        tokenizer = tokenizer_of(kind)
        ids = tokenizer.encode(text, add_special_tokens=False)
        joined = b"".join(map(tokenizer.token_bytes, ids))
        assert joined.removeprefix(b" " if kind == "llama_like" else b"") == text.encode(), kind


def test_part_of_a_character_has_its_raw_byte_and_a_readable_text(tokenizer_of):
    """Wire 27: raw bytes, best-effort string."""
    tokenizer = tokenizer_of("llama_like")
    token_id = next(i for i in range(300) if tokenizer.vocabulary_spelling(i) == "<0xF0>")
    assert tokenizer.token_bytes(token_id) == b"\xf0"
    assert tokenizer.token_text(token_id) == "\ufffd"


def test_ids_beyond_the_vocabulary_decode_to_nothing(kind, tokenizer_of):
    tokenizer = tokenizer_of(kind)
    for token_id in (tokenizer.vocab_size, tokenizer.vocab_size + 1000, 2**31, 2**40, -1):
        assert tokenizer.decode([token_id]) == ""
        assert tokenizer.token_bytes(token_id) == b""
        assert not tokenizer.is_special(token_id)


@pytest.mark.parametrize("text", ["\ud800", "ok then \udfff", "\ude00\ud83d"])
def test_lone_surrogates_are_refused_with_their_place(text, kind, tokenizer_of):
    """SEC-26: a clear error of the request, not a TypeError from below."""
    with pytest.raises(InvalidRequestError, match="lone surrogate"):
        tokenizer_of(kind).encode(text)


def test_neighbouring_special_tokens_join_without_the_decoders_space(tokenizer_of):
    tokenizer = tokenizer_of("word_piece")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    word = tokenizer.encode("hello", add_special_tokens=False)
    ids = [bos, eos, *word, eos, bos]
    spaced = tokenizer.decode(ids, skip_special_tokens=False)
    joined = tokenizer.decode(ids, skip_special_tokens=False, spaces_between_special_tokens=False)
    assert spaced.startswith("<s> </s> ")
    assert joined.startswith("<s></s> ")
    assert joined.endswith("</s><s>")


def test_clean_up_of_spaces_is_honoured_where_transformers_honours_it(tokenizer_of, reference_of):
    tokenizer, reference = tokenizer_of("word_piece"), reference_of("word_piece")
    ids = tokenizer.encode("It does , does it ?", add_special_tokens=False)
    assert " ," not in tokenizer.decode(ids)
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_a_missing_or_damaged_tokenizer_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="is not a directory"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="an object is needed"):
        Tokenizer.load(tmp_path)


def test_a_pointer_to_code_beside_the_tokenizer_is_never_followed(tmp_path, checkpoints):
    """SEC-5: `auto_map` has no effect."""
    config = json.loads((checkpoints["byte_level"] / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_bytes((checkpoints["byte_level"] / "tokenizer.json").read_bytes())
    (tmp_path / "tokenization_evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\nclass Evil: ...")
    assert Tokenizer.load(tmp_path).encode("hello")
    assert not (tmp_path / "canary").exists()


def test_loading_and_using_a_tokenizer_imports_neither_torch_nor_transformers(checkpoints):
    code = (
        "import sys\nfrom quire.text.tokenizer import Tokenizer\nfrom quire.text.chat import ChatTemplate\n"
        "import quire.text.detokenizer, quire.text.messages, quire.text.logprobs, quire.text.stops\n"
        f"path = {str(checkpoints['demo'])!r}\nTokenizer.load(path).encode('hi')\n"
        "ChatTemplate.load(path).render([{'role': 'user', 'content': 'hi'}])\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_a_whole_special_token_has_a_special_id(demo_path):
    tokenizer = Tokenizer.load(demo_path)
    assert tokenizer.special_id(tokenizer.eos_token) == tokenizer.eos_token_id
    for text in ("a", "", tokenizer.eos_token + "a", "no such token"):
        assert tokenizer.special_id(text) is None


def test_a_long_text_reads_as_ever_and_stops_no_other_thread(demo_path):
    """SEC-22: other threads of the process run while a long text is encoded or a long list of ids decoded."""
    tokenizer = Tokenizer.load(demo_path)
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefgh ", k=draw.randrange(2, 9))) for _ in range(2000)]
    lines = [" ".join(draw.choices(words, k=40)) + "\n" for _ in range(4000)]
    gaps, done = [], threading.Event()

    def watch():
        last = time.monotonic()
        while not done.is_set():
            time.sleep(0.001)
            now = time.monotonic()
            gaps.append(now - last)
            last = now

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.monotonic()
    ids = tokenizer.encode("".join(lines), add_special_tokens=False)
    seconds = time.monotonic() - began
    text = tokenizer.decode(ids)
    done.set()
    watching.join()
    assert text == "".join(lines)
    assert len(gaps) > 20 and max(gaps) < max(0.5, 0.6 * seconds), (max(gaps), seconds)
    assert ids == tokenizer._codec._core.encode(text, add_special_tokens=False).ids
