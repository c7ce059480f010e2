"""A budget of reasoning through the whole engine: kept to the token, whatever else a request asks for."""

import pytest

from quire import LLM, SamplingParams, StructuredOutputsParams
from quire.base.errors import InvalidRequestError
from quire.base.thinking import ThinkingBudget
from quire.text.thinking import missing_bytes

END = "\n</think>\n\n"


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "overlapped"])
def llm(request):
    with LLM(max_model_len=1024, max_num_seqs=8, async_scheduling=request.param) as llm:
        yield llm


def thinking(llm, most, *, starts_open=True):
    end = llm.get_tokenizer().encode(END, add_special_tokens=False)
    return ThinkingBudget(
        max_tokens=most, opening="<think>", closing="</think>", end_token_ids=tuple(end), starts_open=starts_open
    )


def params(llm, most, seed=0, **given):
    return SamplingParams(
        **{"temperature": 1.0, "max_tokens": 60, "ignore_eos": True, "seed": seed} | given, thinking=thinking(llm, most)
    )


def check(sample, budget, *, end):
    """The end stands where the budget does, the answer behind it."""
    assert tuple(sample.token_ids[budget : budget + len(end)]) == tuple(end)
    assert "</think>" not in sample.text[: sample.text.index(END)]
    assert len(sample.token_ids) > budget + len(end)


def test_reasoning_ends_at_its_budget_and_the_answer_goes_on(llm):
    end = thinking(llm, 1).end_token_ids
    budgets = [0, 1, 3, 7, 20, 0, 2, 11]
    wanted = [params(llm, most, seed=i) for i, most in enumerate(budgets)]
    outputs = llm.generate(["Think: "] * len(budgets), wanted, use_tqdm=False)
    for budget, output in zip(budgets, outputs, strict=True):
        check(output.outputs[0], budget, end=end)


def test_until_the_budget_the_tokens_are_those_of_a_free_request(llm):
    """The same seed draws the same tokens; samples of one request have a budget each."""
    limited = llm.generate("Once ", params(llm, 12, seed=5, n=3, logprobs=1), use_tqdm=False)[0]
    free = llm.generate(
        "Once ", SamplingParams(temperature=1.0, max_tokens=60, ignore_eos=True, seed=5, n=3), use_tqdm=False
    )[0]
    end = thinking(llm, 1).end_token_ids
    for sample, other in zip(limited.outputs, free.outputs, strict=True):
        check(sample, 12, end=end)
        assert sample.token_ids[:9] == other.token_ids[:9]  # the last three may not begin what they cannot end
        entries = zip(sample.token_ids, sample.logprobs, strict=True)
        assert all(token_id in entry for token_id, entry in entries)
        assert any(entry[token_id].rank > 1 for token_id, entry in zip(end, sample.logprobs[12:], strict=False))


def test_no_character_is_cut_by_the_budget(llm):
    """At a high temperature most tokens are parts of characters."""
    wanted = [params(llm, 6, seed=seed, temperature=100.0, top_k=0) for seed in range(16)]
    for output in llm.generate(["x"] * 16, wanted, use_tqdm=False):
        ids = output.outputs[0].token_ids[:6]
        spelled = b"".join(llm.get_tokenizer().token_bytes(i) for i in ids)
        assert missing_bytes(spelled) == 0


def test_a_grammar_holds_before_and_behind_the_forced_end(llm):
    lark = 'start: thought /\\n\\n/? "yes" \nthought[lazy]: /(?s:.*)<\\/think>/'
    wanted = [
        params(llm, 5, seed=seed, ignore_eos=False, structured_outputs=StructuredOutputsParams(grammar=lark))
        for seed in range(4)
    ]
    for output in llm.generate(["Is it? "] * 4, wanted, use_tqdm=False):
        sample = output.outputs[0]
        assert sample.text.endswith(END + "yes") and sample.finish_reason == "stop"


def test_chunks_and_preemption_change_nothing():
    prompts = [f"{i} word " * (8 + i) for i in range(8)]
    with LLM(max_model_len=256, page_size=8, max_num_seqs=8, max_num_batched_tokens=32) as small_steps:
        wanted = [params(small_steps, 20 + i, seed=i, max_tokens=70) for i in range(8)]
        expected = [o.outputs[0].token_ids for o in small_steps.generate(prompts, wanted, use_tqdm=False)]
    end = list(wanted[0].thinking.end_token_ids)
    assert all(ids[20 + i : 20 + i + len(end)] == end for i, ids in enumerate(expected))
    with LLM(max_model_len=256, page_size=8, max_num_seqs=8, kv_cache_memory_bytes=36 * 8 * 1280) as tight:
        found = [o.outputs[0].token_ids for o in tight.generate(prompts, wanted, use_tqdm=False)]
        assert found == expected
        assert tight.stats.preemptions > 0


def test_what_would_forbid_the_end_is_refused(llm):
    with pytest.raises(InvalidRequestError, match="allowed_token_ids leaves out"):
        params(llm, 5, allowed_token_ids=[1, 2])
    with pytest.raises(InvalidRequestError, match="end of reasoning is written with"):
        llm.generate("x", params(llm, 5, bad_words=["</think>"]), use_tqdm=False)
