"""Deltas: whole characters, and together the full decode."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.text.detokenizer import Detokenizer

EXACT = ("byte_level", "llama_like", "gemma_like", "unigram", "demo")
TEXTS = st.text(
    alphabet=st.one_of(
        st.sampled_from("abc hello,. \n\t"), st.sampled_from("é你안🙂👋🏽\u200d🧑🚀ß"), st.characters(codec="utf-8")
    ),
    max_size=30,
)


def stream(tokenizer, prompt, ids, **options):
    detokenizer = Detokenizer(tokenizer, prompt, **options)
    return [detokenizer.push([token_id]) for token_id in ids] + [detokenizer.flush()]


def test_deltas_join_to_the_full_decode_of_any_text(kind, tokenizer_of):
    """S28, REL-12: concatenated deltas equal the full decode, and none holds a broken character."""
    tokenizer = tokenizer_of(kind)

    @given(TEXTS)
    def check(text):
        ids = tokenizer.encode(text, add_special_tokens=False)
        deltas = stream(tokenizer, [], ids)
        assert "".join(deltas) == tokenizer.decode(ids)
        if "\ufffd" not in text:
            assert not any("\ufffd" in delta for delta in deltas)

    check()


@pytest.mark.parametrize("name", ["byte_level", "demo"])
@pytest.mark.parametrize("skips", [True, False])
def test_any_ids_at_all_join_to_the_full_decode(name, skips, tokenizer_of):
    """S28: random ids, ill-formed UTF-8, special tokens in between and unknown ids, exactly."""
    tokenizer = tokenizer_of(name)

    @given(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40))
    def check(ids):
        deltas = stream(tokenizer, [], ids, skip_special_tokens=skips)
        assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=skips)

    check()


@pytest.mark.parametrize("name", EXACT)
def test_ids_without_byte_tokens_join_to_the_full_decode(name, tokenizer_of):
    """S28: the leading space of SentencePiece and joined suffixes come out as in one piece."""
    tokenizer = tokenizer_of(name)
    whole = [i for i in range(tokenizer.vocab_size) if "\ufffd" not in tokenizer.token_text(i)]

    @given(st.lists(st.sampled_from(whole), max_size=20), st.booleans())
    def check(ids, skips):
        deltas = stream(tokenizer, [], ids, skip_special_tokens=skips)
        assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=skips)

    check()


@pytest.mark.parametrize("name", EXACT)
def test_output_is_what_the_full_decode_adds_to_the_prompt(name, tokenizer_of):
    """The prompt's end decides about the space before the first word."""
    tokenizer = tokenizer_of(name)

    @given(TEXTS, TEXTS)
    def check(prompt_text, output_text):
        prompt = tokenizer.encode(prompt_text)
        output = tokenizer.encode(output_text, add_special_tokens=False)
        added = tokenizer.decode(prompt + output)[len(tokenizer.decode(prompt)) :]
        assert "".join(stream(tokenizer, prompt, output)) == added

    check()


@pytest.mark.parametrize("name", EXACT)
def test_how_ids_are_cut_into_pushes_does_not_matter(name, tokenizer_of):
    """REL-12: streamed equals unstreamed, whatever a step brings."""
    tokenizer = tokenizer_of(name)

    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30), st.integers(0, 30))
    def check(ids, cut):
        detokenizer = Detokenizer(tokenizer, [5, 6])
        joined = detokenizer.push(ids[:cut]) + detokenizer.push(ids[cut:]) + detokenizer.flush()
        assert joined == "".join(stream(tokenizer, [5, 6], ids))

    check()


@pytest.mark.parametrize("name", ["byte_level", "llama_like", "demo"])
def test_a_character_split_over_tokens_comes_whole_when_it_is_complete(name, tokenizer_of):
    """S28, wire 11: an emoji of several tokens is one delta."""
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode("a🧿b", add_special_tokens=False)
    deltas = stream(tokenizer, [1], ids)
    assert len(ids) > 3
    assert "".join(deltas).lstrip() == "a🧿b"
    assert sum("🧿" in delta for delta in deltas) == 1


@pytest.mark.parametrize("name", ["byte_level", "llama_like"])
def test_an_unfinished_character_is_held_and_flushed_as_replacement(name, tokenizer_of):
    """REL-12: the incomplete tail is kept while streaming and delivered at the end."""
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode("🧿", add_special_tokens=False)[:-1]
    *deltas, rest = stream(tokenizer, [], ids)
    assert "".join(deltas).strip() == ""
    assert set(rest) == {"\ufffd"}
    assert ("".join(deltas) + rest).strip() == tokenizer.decode(ids).strip()


@pytest.mark.parametrize("name", ["byte_level", "llama_like"])
def test_a_character_begun_in_the_prompt_is_completed_by_the_output(name, tokenizer_of):
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode("x🧿y", add_special_tokens=False)
    last_byte = max(i for i in range(len(ids)) if tokenizer.token_bytes(ids[i])[-1] & 0xC0 == 0x80)
    prompt, output = ids[:last_byte], ids[last_byte:]
    assert "".join(stream(tokenizer, prompt, output)) == "🧿y"
    other = tokenizer.encode("z", add_special_tokens=False)[-1:]
    assert "".join(stream(tokenizer, prompt, other)).strip() == "z"
    assert "".join(stream(tokenizer, prompt, [])) == ""


def test_special_tokens_show_only_when_asked(tokenizer_of):
    tokenizer = tokenizer_of("byte_level")
    ids = [*tokenizer.encode("hello", add_special_tokens=False), tokenizer.eos_token_id]
    assert "".join(stream(tokenizer, [], ids)) == "hello"
    assert "".join(stream(tokenizer, [], ids, skip_special_tokens=False)) == "hello<|end|>"


def test_a_window_decoder_joins_special_tokens_when_asked(tokenizer_of):
    tokenizer = tokenizer_of("word_piece")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    options = {"skip_special_tokens": False, "spaces_between_special_tokens": False}
    assert "".join(stream(tokenizer, [], [bos, eos, eos], **options)) == "<s></s></s>"
    assert "".join(stream(tokenizer, [], [bos, eos, eos], skip_special_tokens=False)) == "<s> </s> </s>"


def test_work_per_token_does_not_grow_with_the_output(tokenizer_of):
    """S37: a push decodes a bounded window, never the whole output."""
    tokenizer = tokenizer_of("word_piece")
    longest = 0

    class Counting:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def decode(self, ids, **options):
            nonlocal longest
            longest = max(longest, len(ids))
            return tokenizer.decode(ids, **options)

    detokenizer = Detokenizer(Counting(), list(range(3, 300)))
    for token_id in list(range(3, 290)) * 4:
        detokenizer.push([token_id])
    assert 0 < longest <= 16


@pytest.mark.parametrize(
    "text", ["1'1", "1 ' 1", "do n't", "n", "'", "we 'v", "i 've 'n n' it's 'r 're", "' ' ' a ' n"]
)
def test_a_space_that_what_follows_takes_away_is_not_sent_before(tokenizer_of, text):
    """S28: clean_up_tokenization_spaces rewrites text that is there already; nothing is lost, and nothing stays."""
    tokenizer = tokenizer_of("word_piece")
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(stream(tokenizer, [], ids)) == tokenizer.decode(ids)


def test_an_output_that_joins_the_end_of_the_prompt_is_whole(tokenizer_of):
    tokenizer = tokenizer_of("word_piece")
    prompt, output = (tokenizer.encode(text, add_special_tokens=False) for text in ("a '", "a"))
    assert "".join(stream(tokenizer, prompt, output)) == "a"
