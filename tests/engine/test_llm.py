"""The offline API: prompts in every form, parameters, outputs shaped like vLLM's, and a clean end."""

import random
import signal

import pytest

from quire import LLM, BeamSearchParams, SamplingParams
from quire.base.errors import ConfigError, ContextLengthError, EngineDeadError, InvalidRequestError, TemplateError

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def llm():
    with LLM(max_model_len=512) as llm:
        yield llm


def _one(llm, prompt, **params):
    return llm.generate(prompt, SamplingParams(**({"temperature": 0.0} | params)), use_tqdm=False)[0].outputs[0]


def test_text_ids_and_dicts_are_the_same_prompt(llm):
    """S48: every prompt form vLLM takes."""
    ids = llm.tokenizer.encode("Once upon a time")
    forms = ["Once upon a time", ids, {"prompt_token_ids": ids}, {"prompt": "Once upon a time"}]
    outputs = [llm.generate(form, GREEDY, use_tqdm=False)[0] for form in forms]
    assert len({tuple(o.outputs[0].token_ids) for o in outputs}) == 1
    assert all(o.prompt_token_ids == ids and o.finished for o in outputs)
    assert outputs[0].prompt == "Once upon a time"


def test_outputs_come_in_the_order_of_the_prompts_with_their_own_params(llm):
    """S48: many prompts, many params."""
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in (9, 1, 5)]
    outputs = llm.generate(["a", "b", "c"], params, use_tqdm=False)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [9, 1, 5]
    assert [o.outputs[0].finish_reason for o in outputs] == ["length"] * 3


@pytest.mark.parametrize(("length", "steps"), [(512, 2), (4, 2), (3, 1)])
def test_a_start_runs_what_a_first_request_will(length, steps, draft_path):
    """A step of a prompt and one of a decode, recorded when they first come; a short model has room for one."""
    with LLM(draft_path, max_model_len=length) as llm:
        assert llm.stats.step == steps
        assert llm.stats.num_running == 0
        assert len(_one(llm, [300], max_tokens=1).token_ids) == 1


def test_nothing_runs_when_one_prompt_of_a_batch_is_invalid(llm):
    before = llm.stats.step
    with pytest.raises(InvalidRequestError):
        llm.generate(["fine", [10**6]], GREEDY, use_tqdm=False)
    assert llm.stats.step == before


@pytest.mark.parametrize("prompt", ["", [], {"text": "x"}, [-1], [True]])
def test_prompts_that_cannot_be_are_refused(llm, prompt):
    """SEC-13: empty prompts, unknown keys, ids out of range."""
    with pytest.raises(InvalidRequestError):
        llm.generate([prompt], GREEDY, use_tqdm=False)


def test_a_prompt_longer_than_the_model_is_refused_with_the_counts(llm):
    """S75: exact counts, nothing truncated."""
    with pytest.raises(ContextLengthError, match=r"512 tokens and 12 completion.*maximum context length is 512"):
        llm.generate([[1] * 512], GREEDY, use_tqdm=False)


def test_generation_ends_at_the_models_length(llm):
    """S68: finish reason length says what happened."""
    output = _one(llm, [1] * 505, max_tokens=100, ignore_eos=True)
    assert len(output.token_ids) == 7
    assert output.finish_reason == "length"


def test_chat_applies_the_template_once(llm):
    """S47: no double special tokens; many conversations at once."""
    conversation = [{"role": "user", "content": "hello"}]
    one, two = llm.chat([conversation, conversation], GREEDY, use_tqdm=False)
    assert one.outputs[0].token_ids == two.outputs[0].token_ids
    rendered = llm.chat_template.render(conversation)
    assert one.prompt == rendered
    assert one.prompt_token_ids == llm.tokenizer.encode(rendered, add_special_tokens=False)


def test_chat_takes_a_template_of_the_callers(llm):
    """S48, SEC-6: `chat_template=` as in vLLM, with the checkpoint's special tokens and in the same sandbox."""
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}{{ mood }}"
    chat = [{"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "text", "text": "you"}]}]
    (output,) = llm.chat(chat, GREEDY, use_tqdm=False, chat_template=source, chat_template_kwargs={"mood": "glad"})
    assert output.prompt == "<user>hello\nyou<|im_end|>glad"
    (parts,) = llm.chat(
        chat, GREEDY, use_tqdm=False, chat_template_content_format="openai",
        chat_template="{{ messages[0].content | length }} parts",
    )  # fmt: skip
    assert parts.prompt == "2 parts"
    for hostile in ("{{ ''.__class__.__mro__ }}", "{% if %}"):
        with pytest.raises(TemplateError):
            llm.chat(chat, GREEDY, use_tqdm=False, chat_template=hostile)
    plain = [{"role": "user", "content": "hello"}]  # the model's own template is back
    assert llm.chat(plain, GREEDY, use_tqdm=False)[0].prompt == llm.chat_template.render(plain)


def test_chat_template_kwargs_override_arguments_of_their_name(llm):
    chat = [{"role": "user", "content": "hello"}]
    (output,) = llm.chat(chat, GREEDY, use_tqdm=False, chat_template_kwargs={"add_generation_prompt": False})
    assert output.prompt == llm.chat_template.render(chat, add_generation_prompt=False)


def test_a_base_model_chats_with_a_template_of_the_callers(llm, monkeypatch):
    """S53: without any template the error says how to go on."""
    monkeypatch.setattr(llm, "chat_template", None)
    chat = [{"role": "user", "content": "hello"}]
    with pytest.raises(TemplateError, match="no chat template; give one, or use generate"):
        llm.chat(chat, GREEDY, use_tqdm=False)
    assert llm.chat(chat, GREEDY, use_tqdm=False, chat_template="Q: {{ messages[0].content }}")[0].prompt == "Q: hello"


def test_a_later_turn_recomputes_only_its_suffix(llm):
    """S8, S19: turn k of a chat reuses the pages of the turns before."""
    chat = [{"role": "user", "content": "My name is Bertha and I like long walks by the sea in the evening."}]
    first = llm.chat(chat, GREEDY, use_tqdm=False)[0]
    chat += [{"role": "assistant", "content": first.outputs[0].text}, {"role": "user", "content": "And you?"}]
    second = llm.chat(chat, GREEDY, use_tqdm=False)[0]
    assert second.num_cached_tokens >= len(first.prompt_token_ids) // 16 * 16


@pytest.mark.parametrize(
    ("options", "num_steps"),
    [
        ({"max_num_seqs": 4, "max_num_batched_tokens": 256}, 4),  # everyone's prompt at once, then three tokens each
        ({"max_num_seqs": 1, "max_num_batched_tokens": 256}, 16),  # one after the other
        ({"max_num_seqs": 1, "max_num_batched_tokens": 16}, 28),  # and each prompt in four pieces
    ],
)
def test_batch_sizes_are_settings_with_a_visible_effect(options, num_steps):
    """S97: how many requests, and how many tokens, one step takes."""
    with LLM(max_model_len=128, async_scheduling=False, **options) as llm:
        before = llm.stats.step
        params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
        llm.generate([[10 + i] * 64 for i in range(4)], params, use_tqdm=False)
        assert llm.stats.step - before == num_steps
        assert llm.stats.batch_size == options["max_num_seqs"]


@pytest.mark.parametrize(("policy", "order"), [("fcfs", [0, 1, 2]), ("priority", [2, 1, 0])])
def test_the_policy_is_chosen_by_name_and_the_length_capped_per_deployment(policy, order):
    """S98: who goes first, and how far anyone may go."""
    with LLM(max_model_len=20, max_num_seqs=1, scheduling_policy=policy) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
        outputs = llm.generate([[7] * 16] * 3, params, use_tqdm=False, priority=[2, 1, 0])
        started = [output.metrics.first_scheduled_time for output in outputs]
        assert sorted(range(3), key=started.__getitem__) == order
        assert [len(output.outputs[0].token_ids) for output in outputs] == [4, 4, 4]


def test_stop_strings_end_the_text_before_them_and_their_request(llm):
    """REL-11: found inside the text, not shown, reported; the engine is free afterwards."""
    whole = _one(llm, "Once upon a time", max_tokens=40, ignore_eos=True).text
    stop = whole[5:8]
    cut = _one(llm, "Once upon a time", max_tokens=40, ignore_eos=True, stop=[stop])
    assert cut.text == whole[: whole.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    kept = _one(llm, "Once upon a time", max_tokens=40, ignore_eos=True, stop=[stop], include_stop_str_in_output=True)
    assert kept.text == whole[: whole.index(stop) + len(stop)]
    llm.generate("x", GREEDY, use_tqdm=False)
    assert llm.stats.num_running == llm.stats.num_used_pages == 0


def test_stop_token_ids_and_min_tokens(llm):
    """S80: a stop token ends the sample, is listed, is not shown, and waits for min_tokens."""
    free = _one(llm, "Once upon a time", max_tokens=12, ignore_eos=True)
    stop = free.token_ids[4]
    cut = _one(llm, "Once upon a time", max_tokens=12, ignore_eos=True, stop_token_ids=[stop])
    first = free.token_ids.index(stop)
    assert cut.token_ids == free.token_ids[: first + 1]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert cut.text == llm.tokenizer.decode(free.token_ids[:first])
    later = _one(llm, "Once upon a time", max_tokens=12, ignore_eos=True, stop_token_ids=[stop], min_tokens=10)
    assert len(later.token_ids) >= 10


def test_bad_words_allowed_ids_and_bias_shape_the_text(llm):
    """S80: masks reach the sampler."""
    free = _one(llm, "Once upon a time", max_tokens=8, ignore_eos=True)
    biased = _one(llm, "Once upon a time", max_tokens=8, ignore_eos=True, logit_bias={free.token_ids[0]: -100})
    assert free.token_ids[0] not in biased.token_ids
    allowed = _one(llm, "Once upon a time", max_tokens=8, ignore_eos=True, allowed_token_ids=[65, 66])
    assert set(allowed.token_ids) <= {65, 66}
    word = free.text.split()[0]
    assert word not in _one(llm, "Once upon a time", max_tokens=8, ignore_eos=True, bad_words=[word]).text.split()


def test_logprobs_list_the_chosen_token_and_the_most_likely(llm):
    """S48, S80: a list of {token_id: Logprob}, whole vocabulary on request."""
    output = _one(llm, "Once upon a time", max_tokens=4, ignore_eos=True, logprobs=3)
    for token, entry in zip(output.token_ids, output.logprobs, strict=True):
        assert entry[token].rank == 1
        assert len(entry) == 3
        assert all(0 >= one.logprob > -1000 and one.decoded_token is not None for one in entry.values())
    assert output.cumulative_logprob == pytest.approx(
        sum(e[t].logprob for t, e in zip(output.token_ids, output.logprobs, strict=True))
    )
    everything = _one(llm, "Once", max_tokens=1, ignore_eos=True, logprobs=-1)
    assert len(everything.logprobs[0]) == llm.info.vocab_rows


def test_prompt_logprobs_cover_every_prompt_token_but_the_first(llm):
    """S80, REL-16: scoring by prefill equals scoring by decode."""
    generated = _one(llm, "Once upon a time", max_tokens=8, ignore_eos=True, logprobs=0)
    ids = llm.tokenizer.encode("Once upon a time")
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
    scored = llm.generate([ids + generated.token_ids], params, use_tqdm=False)[0].prompt_logprobs
    assert scored[0] is None
    assert len(scored) == len(ids) + 8
    for token, entry, given in zip(generated.token_ids, scored[len(ids) :], generated.logprobs, strict=True):
        assert entry[token].logprob == pytest.approx(given[token].logprob, abs=1e-4)


def test_beam_search_finds_a_likelier_text_than_greedy(llm):
    """S80: beams are ordered by score, and exhaustive search agrees on a short case."""
    ids = llm.tokenizer.encode("Once upon a time")
    (result,) = llm.beam_search([ids], BeamSearchParams(beam_width=4, max_tokens=6, ignore_eos=True))
    scores = [sequence.cum_logprob / len(sequence.tokens) for sequence in result.sequences]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    assert all(sequence.tokens[: len(ids)] == ids for sequence in result.sequences)
    assert all(sequence.text.startswith("Once upon a time") for sequence in result.sequences)
    greedy = _one(llm, ids, max_tokens=6, ignore_eos=True, logprobs=0)
    assert result.sequences[0].cum_logprob >= greedy.cumulative_logprob - 1e-4
    (single,) = llm.beam_search([ids], BeamSearchParams(beam_width=1, max_tokens=6, ignore_eos=True))
    assert single.sequences[0].tokens == ids + greedy.token_ids


def test_beam_search_at_another_temperature_rescales_whole_distributions(llm):
    """S80: no beam parameter is parsed and ignored."""
    plain, warm = (
        llm.beam_search(["Once"], BeamSearchParams(beam_width=2, max_tokens=3, temperature=t))[0] for t in (1.0, 2.0)
    )
    assert plain.sequences[0].cum_logprob != pytest.approx(warm.sequences[0].cum_logprob)


def test_a_salt_keeps_equal_prompts_apart(llm):
    """SEC-33: different salts share no cached page."""
    prompt = list(range(100, 180))
    llm.generate([prompt], GREEDY, use_tqdm=False, cache_salt="tenant one")
    same = llm.generate([prompt], GREEDY, use_tqdm=False, cache_salt="tenant one")[0]
    other = llm.generate([prompt], GREEDY, use_tqdm=False, cache_salt="tenant two")[0]
    assert (same.num_cached_tokens, other.num_cached_tokens) == (79, 0)


def test_requests_without_a_seed_differ_and_a_rerun_repeats_them():
    """S80: random numbers differ by request; the engine's seed makes a script repeatable."""
    params = SamplingParams(temperature=1.5, max_tokens=12, ignore_eos=True)
    runs = []
    for _ in range(2):
        with LLM(max_model_len=256, seed=3) as llm:
            outputs = llm.generate(["Once"] * 4, params, use_tqdm=False)
            runs.append([o.outputs[0].token_ids for o in outputs])
    assert runs[0] == runs[1]
    assert len({tuple(tokens) for tokens in runs[0]}) > 1


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal; a test run in the background of a script starts with it ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_generation_leaves_a_usable_engine(llm, monkeypatch):
    """REL-17: Ctrl-C in the middle of a step takes effect after it and gives every page back."""
    advance, steps = llm._core.advance, []

    def interrupted():
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return advance()

    monkeypatch.setattr(llm._core, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["Once upon a time"] * 3, GREEDY, use_tqdm=False)
    assert llm.stats.num_used_pages == llm.stats.num_running == llm.stats.num_waiting == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(_one(llm, "x", max_tokens=2, ignore_eos=True).token_ids) == 2


def test_a_failing_progress_bar_leaves_a_usable_engine(llm):
    """REL-17: what breaks outside a step does not break the engine."""

    class Bar:
        def __init__(self, **options):
            self.options = options

        def __enter__(self):
            return self

        def __exit__(self, *args):
            return None

        def update(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        llm.generate(["x"] * 3, [GREEDY, SamplingParams(max_tokens=1), GREEDY], use_tqdm=Bar)
    assert llm.stats.num_used_pages == llm.stats.num_running == llm.stats.num_waiting == 0


def test_a_step_that_is_torn_apart_makes_the_llm_say_so_from_then_on(monkeypatch):
    """REL-2: an engine whose books may be wrong is not used again."""
    with LLM(max_model_len=256) as llm:
        monkeypatch.setattr(llm._core.runner, "launch", lambda work: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            llm.generate("x", GREEDY, use_tqdm=False)
        with pytest.raises(EngineDeadError, match="ZeroDivisionError"):
            llm.generate("x", GREEDY, use_tqdm=False)


def test_a_closed_llm_says_so_and_may_be_closed_again():
    with LLM(max_model_len=256) as llm:
        llm.close()
    for use in (lambda: llm.generate("x", GREEDY), lambda: llm.stats):
        with pytest.raises(EngineDeadError, match="closed"):
            use()


def test_parameters_may_be_changed_before_use_and_are_checked_then(llm):
    """S48: code for vLLM sets fields of the model's default parameters."""
    params = llm.get_default_sampling_params()
    params.temperature, params.max_tokens, params.ignore_eos = 0.0, 3, True
    output = llm.generate("x", params, use_tqdm=False)[0].outputs[0]
    assert len(output.token_ids) == 3
    assert output.finished()
    params.top_p = 7.0
    with pytest.raises(InvalidRequestError, match="top_p"):
        llm.generate("x", params, use_tqdm=False)


def test_prompt_logprobs_of_a_lone_token_and_of_several_samples(llm):
    """S80: one entry per prompt token, the first is None, however many samples share the prompt."""
    lone = SamplingParams(max_tokens=2, prompt_logprobs=0)
    assert llm.generate([[7]], lone, use_tqdm=False)[0].prompt_logprobs == [None]
    several = SamplingParams(n=3, seed=1, max_tokens=4, prompt_logprobs=1, logprobs=2, ignore_eos=True)
    output = llm.generate([[7, 8, 9]], several, use_tqdm=False)[0]
    assert [
        entry and set(entry) >= {token} for token, entry in zip([7, 8, 9], output.prompt_logprobs, strict=True)
    ] == [
        None,
        True,
        True,
    ]
    for sample in output.outputs:
        assert all(token in entry for token, entry in zip(sample.token_ids, sample.logprobs, strict=True))


def test_prompt_logprobs_are_the_same_in_chunks_and_after_preemption(llm):
    """S80, REL-6: repeated chunks are dropped and the order is kept.

    The last prompt is computed a token a step while the others decode, until they take its pages.
    """
    rng = random.Random(5)
    prompts = [[rng.randrange(3, 500) for _ in range(length)] for length in (20, 20, 20, 70)]
    params = SamplingParams(temperature=0.0, max_tokens=50, prompt_logprobs=1, ignore_eos=True)
    expected = [llm.generate([prompt], params, use_tqdm=False)[0] for prompt in prompts]
    page_bytes = llm.info.resolved["memory"]["page_bytes"]
    tight = {"max_model_len": 128, "max_num_batched_tokens": 16, "max_num_seqs": 4, "max_prefill_tokens_mixed": 1}
    for overlap in (False, True):
        with LLM(kv_cache_memory_bytes=13 * page_bytes, async_scheduling=overlap, debug=True, **tight) as small:
            found = small.generate(prompts, params, use_tqdm=False)
        assert found[3].metrics.num_preemptions > 0
        for one, other in zip(expected, found, strict=True):
            assert one.outputs[0].token_ids == other.outputs[0].token_ids
            scored = zip(one.prompt_token_ids[1:], one.prompt_logprobs[1:], other.prompt_logprobs[1:], strict=True)
            for token, entry, again in scored:  # chunks of other sizes round differently, and a tie may change ranks
                assert entry[token].logprob == pytest.approx(again[token].logprob, abs=1e-3)


def test_unknown_options_are_refused_before_anything_loads():
    """S79: the nearest option is named."""
    with pytest.raises(ConfigError, match="did you mean page_size"):
        LLM(pagesize=8)


def test_kv_tensors_take_exactly_the_bytes_the_plan_says(llm):
    """S10: arithmetic and allocation agree to the byte."""
    allocated = sum(tensor.numel() * tensor.element_size() for tensor in llm._core.runner._kv)
    assert allocated == llm.info.resolved["memory"]["kv_bytes"]
