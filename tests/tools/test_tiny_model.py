"""The demo model's recipe: no leaks, determinism, tokens, scores, resuming; and the assets' limits."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from tools.tiny_model.corpus.mixture import BALANCED, held_episode, make_conversation
from tools.tiny_model.corpus.numbers import worked_sum
from tools.tiny_model.corpus.types import Answer, Conversation, Episode, assistant, user
from tools.tiny_model.data import Batch, step_batches
from tools.tiny_model.evaluate import (
    EXACT_TASKS,
    HELD_OUT,
    OTHER_TASKS,
    SEED,
    Question,
    Score,
    evaluate,
    missed_targets,
    overall,
    questions,
    table,
)
from tools.tiny_model.generate import Prompt, Reply, TorchChat
from tools.tiny_model.heldout import TEST_NUMBERS, VALID_NUMBERS, phrasings, split_of_number, split_of_text
from tools.tiny_model.model import DEMO, DRAFT, ModelConfig, TinyLlama
from tools.tiny_model.proof import CorpusTrace, LeakError, leaks, prove, trace_training
from tools.tiny_model.recipe import DEMO_RECIPE, DRAFT_RECIPE, Recipe
from tools.tiny_model.render import render
from tools.tiny_model.scoring import is_right, most_repeats, story_fault, tool_calls
from tools.tiny_model.texts import held_out_lines
from tools.tiny_model.tokenizer import MARKERS, VOCABULARY, Encoder
from tools.tiny_model.train import Trainer

ASSETS = Path(__file__).resolve().parents[2] / "src" / "quire" / "assets"
MICRO = ModelConfig(hidden=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=24)
STORY = (
    "Once upon a time there was a fox named Vexa who lived near a quiet lake. Every day Vexa dreamed of a silver "
    "bell. Soon it grew dark and cold. A little owl came by and offered help. They shared some bread and went on. "
    "And there it was: a silver bell. Vexa went home happy and slept very well."
)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(Tokenizer.from_file(str(ASSETS / "quire-demo" / "tokenizer.json")))


def _micro(name: str, steps: int) -> Recipe:
    return Recipe(name, MICRO, steps, tokens_per_step=300, warm_up=2, checkpoint_every=2)


def _parameters(folder: str) -> dict[str, torch.Tensor]:
    with safe_open(str(ASSETS / folder / "model.safetensors"), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


class TestHeldOut:
    def test_no_value_of_the_evaluation_is_in_a_sample_of_the_corpus(self, encoder: Encoder) -> None:
        trace = trace_training(DEMO_RECIPE, encoder, steps=40)
        asked = [q for task in EXACT_TASKS + OTHER_TASKS for q in questions(task, "test", 30)]

        assert trace.conversations > 500
        assert prove(trace, asked)

    def test_a_planted_word_a_planted_draw_and_a_planted_operand_are_found(self) -> None:
        question = Question("spell", Prompt((user("Spell zibble."),)), Answer("exact", ""), (("word", "zibble"),))
        trace = CorpusTrace()
        episode = Episode("sum", (user(f"{TEST_NUMBERS[0]} + 3"), assistant("A Zibble.")), Answer("exact", ""))
        trace.add(Conversation(episode.messages, (), (replace(episode, values=(("word", "zibble"),)),)))

        assert len(leaks(trace, [question])) == 3
        with pytest.raises(LeakError, match="zibble"):
            prove(trace, [question])

    def test_every_digit_is_left_to_training_in_both_places(self) -> None:
        left = [n for n in range(10, 100) if split_of_number(n) == "train"]

        assert {n // 10 for n in left} == set(range(1, 10))
        assert {n % 10 for n in left} == set(range(10))
        assert not set(TEST_NUMBERS) & set(VALID_NUMBERS)

    def test_phrasings_are_shared_out_without_overlap_or_loss(self) -> None:
        texts = ["Hi", "hi!", "Hello", "Hey", "Good day", "Yo", "Howdy", "Hallo"]
        parts = [phrasings(texts, split) for split in ("train", "valid", "test")]

        assert sorted(text for part in parts for text in part) == sorted(texts)
        assert {"Hi", "hi!"} <= set(parts[0])
        assert all(parts)

    def test_letter_case_does_not_move_a_word_to_another_split(self) -> None:
        assert split_of_text("Mirela") == split_of_text("mirela")

    @pytest.mark.parametrize("task", EXACT_TASKS + OTHER_TASKS)
    def test_every_task_has_a_hundred_different_prompts(self, task: str) -> None:
        found = questions(task, "test", 100)

        assert len({render(q.prompt.messages, q.prompt.tools, True) for q in found}) == 100
        assert task in HELD_OUT


class TestCorpus:
    def test_the_same_seed_makes_the_same_conversation(self) -> None:
        first, again, other = (make_conversation(random.Random(seed), BALANCED) for seed in ("a", "a", "b"))

        assert first == again
        assert first != other

    def test_worked_sums_are_right(self) -> None:
        for a in range(100):
            for b in range(100):
                assert worked_sum(a, b).endswith(f"{a} + {b} = {a + b}")

    @pytest.mark.parametrize("task", EXACT_TASKS + OTHER_TASKS)
    def test_the_corpus_own_replies_are_judged_right(self, task: str) -> None:
        for index in range(10):
            episode = held_episode(task, "test", 0, index)
            text = render(episode.messages[-1:], (), False).split("assistant\n", 1)[1].removesuffix("<|im_end|>\n")
            assert is_right(episode.answer, Reply(text, ended=True))
            assert not is_right(episode.answer, Reply(text, ended=False))


class TestTokens:
    @pytest.mark.parametrize("text", ["Hello, world!", "Zażółć gęślą", "日本語 🙂\n\n\ttab  two", "a" * 99, "x=27+48"])
    def test_text_survives_the_round_trip(self, encoder: Encoder, text: str) -> None:
        assert encoder.decode(encoder.tokenizer.encode(text).ids) == text

    def test_digits_stand_alone_and_names_do_not_take_the_space(self, encoder: Encoder) -> None:
        assert encoder.tokenizer.encode("2748").tokens == ["2", "7", "4", "8"]
        assert encoder.tokenizer.encode(" Mirela").ids[1:] == encoder.tokenizer.encode("Mirela").ids

    def test_training_learns_the_replies_and_nothing_else(self, encoder: Encoder) -> None:
        messages = (user("Hi"), assistant("Hello!"), user("Bye"), assistant("Goodbye!"))
        ids, learned = encoder.training_ids(messages, ())

        assert ids == encoder.tokenizer.encode(render(messages, (), False)).ids
        kept = [i for i, learn in zip(ids, learned, strict=True) if learn]
        assert encoder.tokenizer.decode(kept, skip_special_tokens=False) == "Hello!<|im_end|>Goodbye!<|im_end|>"

    def test_markers_of_tool_calls_are_kept_in_decoded_text(self, encoder: Encoder) -> None:
        for marker in MARKERS:
            ids = encoder.tokenizer.encode(marker).ids
            assert len(ids) == 1
            assert encoder.decode(ids) == marker
        assert encoder.tokenizer.get_vocab_size() == VOCABULARY

    def test_positions_only_ever_grow(self, encoder: Encoder) -> None:
        for batch in step_batches(1, 0, BALANCED, encoder, 3000):
            for row, targets in zip(batch.positions, batch.targets, strict=True):
                real = row[: int((targets >= 0).nonzero().max()) + 1]
                assert bool((real.diff() > 0).all())

    def test_one_batch_holds_the_same_conversations(self, encoder: Encoder) -> None:
        parts = step_batches(1, 0, BALANCED, encoder, 3000)
        (whole,) = step_batches(1, 0, BALANCED, encoder, 3000, one_batch=True)

        def learned(batch: Batch) -> list[tuple[int, ...]]:
            return [tuple(row[row >= 0].tolist()) for row in batch.targets]

        assert sorted(learned(whole)) == sorted(row for part in parts for row in learned(part))


class TestTemplate:
    def test_a_default_system_message_is_given(self) -> None:
        text = render((user("Hi"),), (), True)
        assert text.startswith("<|im_start|>system\nYou are the demo model of quire.<|im_end|>\n<|im_start|>user\nHi")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")

    def test_tools_stand_in_the_system_part_and_calls_are_written_out(self) -> None:
        tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
        call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
        as_text = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        texts = {
            render((user("x"), {"role": "assistant", "content": None, "tool_calls": [c]}), (tool,), False)
            for c in (call, as_text)
        }

        assert len(texts) == 1
        system, _, rest = texts.pop().partition("<|im_end|>")
        assert json.dumps(tool["function"]) in system
        assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in rest

    def test_content_may_come_in_parts(self) -> None:
        parts = {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "you"}]}
        assert render((parts,), (), True) == render((user("Hello you"),), (), True)


class TestScores:
    @pytest.mark.parametrize(
        ("answer", "wrong"),
        [
            (Answer("exact", "c-a-t"), "c-a-t-s"),
            (Answer("number", 75), "27 + 48 = 75, or 76"),
            (Answer("number", 75), "no idea"),
            (Answer("json", {"age": 3}), '{"age": "3"}'),
            (Answer("json", {"age": 3}), '{"age": 3'),
            (Answer("contains", ("quire", "demo")), "I am quire"),
            (Answer("one of", ("Hi",)), "Ho"),
            (Answer("tool call", {"name": "f", "arguments": {}}), '{"name": "f", "arguments": {}}'),
            (Answer("tool call", {"name": "f", "arguments": {}}), '<tool_call>{"name": "g"}</tool_call>'),
            (Answer("story", "Vexa"), "A fox named Vexa lived. " * 20),
        ],
    )
    def test_a_wrong_reply_is_refused(self, answer: Answer, wrong: str) -> None:
        assert not is_right(answer, Reply(wrong, ended=True))

    def test_a_kind_that_nobody_knows_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="smell"):
            is_right(Answer("smell", ""), Reply("", ended=True))

    def test_stories_are_refused_for_the_right_reason(self) -> None:
        assert story_fault(STORY, "Vexa") is None
        assert story_fault(STORY, "Brom") == "not about its hero"
        assert story_fault("Vexa slept.", "Vexa") == "too short"
        assert story_fault(STORY + " so it was and so it was and so it was and so it was", "Vexa") == "repeats itself"
        assert most_repeats("a b c d a b c d") == 2

    def test_a_call_with_text_beside_it_is_no_call(self) -> None:
        assert tool_calls('<tool_call>\n{"name": "f"}\n</tool_call>') == [{"name": "f"}]
        assert tool_calls('Sure! <tool_call>{"name": "f"}</tool_call>') == []

    def test_targets_are_told_when_missed(self) -> None:
        scores = [Score("sum", 79, 100), Score("story", 99, 100)]

        assert overall(scores) == 0.89
        assert [text.split(":")[0] for text in missed_targets(scores)] == ["sum", "overall"]
        assert "| sum | both operands | 100 | 79.0% |" in table(scores)


class TestNetwork:
    def test_decoding_with_a_cache_equals_decoding_without(self, encoder: Encoder) -> None:
        model = TinyLlama(replace(MICRO, layers=2), 3)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
        prompts = [Prompt((user("Hi"),)), Prompt((user("Count from 3 to 9, please, and then on."),))]
        replies = TorchChat(model, encoder).replies(prompts, 12)

        for prompt, reply in zip(prompts, replies, strict=True):
            ids = encoder.prompt_ids(prompt.messages, prompt.tools)
            start = len(ids)
            for _ in range(12):
                hidden, _ = model.hidden(torch.tensor([ids]), torch.arange(len(ids))[None])
                ids.append(int(model.logits(hidden[:, -1]).argmax()))
                if ids[-1] == encoder.end_id:
                    break
            assert encoder.decode([i for i in ids[start:] if i != encoder.end_id]) == reply.text

    def test_the_learning_rate_rises_and_then_falls_to_nothing(self) -> None:
        recipe = _micro("rate", 10)
        factors = [recipe.rate_factor(step) for step in range(10)]

        assert factors[:3] == [0.5, 1.0, 1.0]
        assert factors[2:] == sorted(factors[2:], reverse=True)
        assert recipe.rate_factor(10) == 0.0

    def test_a_killed_run_resumes_to_the_same_weights(self, encoder: Encoder, tmp_path: Path) -> None:
        whole = Trainer(_micro("whole", 4), encoder.tokenizer, tmp_path)
        whole.run()
        killed = Trainer(_micro("killed", 4), encoder.tokenizer, tmp_path)
        for _ in range(2):
            killed.train_step()
        killed.save()
        killed.train_step()
        resumed = Trainer(_micro("killed", 4), encoder.tokenizer, tmp_path)

        assert resumed.step == 2
        resumed.run()
        for left, right in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(left, right)

    def test_evaluation_counts_an_untrained_model_as_wrong(self, encoder: Encoder) -> None:
        class Silent:
            def replies(self, prompts: list[Prompt], max_tokens: int) -> list[Reply]:
                return [Reply("", ended=True) for _ in prompts]

        scores, wrong = evaluate(Silent(), "valid", 2)
        assert overall(scores) == 0
        assert len(wrong) == 2 * len(scores)


class TestAssets:
    @pytest.mark.parametrize(("recipe", "least", "most"), [(DEMO_RECIPE, 2e6, 8e6), (DRAFT_RECIPE, 1e4, 8e5)])
    def test_weights_are_those_of_the_recipe(self, recipe: Recipe, least: float, most: float) -> None:
        found = {name: tensor.shape for name, tensor in _parameters(recipe.name).items()}

        assert found == {name: p.shape for name, p in TinyLlama(recipe.model, 0).named_parameters()}
        assert least <= sum(shape.numel() for shape in found.values()) <= most

    def test_the_draft_has_at_most_a_tenth_of_the_parameters(self) -> None:
        assert 10 * TinyLlama(DRAFT, 0).parameter_count() <= TinyLlama(DEMO, 0).parameter_count()

    def test_all_files_together_are_small(self) -> None:
        assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 16e6

    def test_both_models_share_their_tokenizer_and_template(self) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (ASSETS / "quire-demo" / name).read_bytes() == (ASSETS / "quire-demo-draft" / name).read_bytes()
        shipped = json.loads((ASSETS / "quire-demo" / "tokenizer_config.json").read_text())["chat_template"]
        assert shipped == (ASSETS.parents[2] / "tools" / "tiny_model" / "chat_template.jinja").read_text().strip()

    def test_generation_ends_at_the_end_of_a_message(self, encoder: Encoder) -> None:
        settings = json.loads((ASSETS / "quire-demo" / "generation_config.json").read_text())
        assert encoder.end_id in settings["eos_token_id"]
        assert settings["temperature"] == 0.0


def test_held_out_texts_end_in_the_reply_that_is_right() -> None:
    lines = [json.loads(line) for line in held_out_lines("valid", 2)]
    assert len(lines) == 2 * len(EXACT_TASKS + OTHER_TASKS)
    for line in lines:
        assert line["prompt"].endswith("<|im_start|>assistant\n")
        assert line["completion"].endswith("<|im_end|>")
    episode = held_episode("sum", "valid", SEED, 0)
    sums = lines[EXACT_TASKS.index("sum")]
    assert sums["completion"] == episode.messages[-1]["content"] + "<|im_end|>"
    assert episode.messages[-2]["content"] in sums["prompt"]
