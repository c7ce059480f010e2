"""Structured output through the whole engine: every output that is not cut off is what was asked for."""

import asyncio
import json
import re

import pytest

from quire import LLM, AsyncEngine, SamplingParams, StructuredOutputsParams
from quire.base.config import EngineConfig
from quire.base.errors import InvalidRequestError, NoTokenLeftError

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
DATE = r"20[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]"


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "overlapped"])
def llm(request):
    with LLM(max_model_len=1024, max_num_seqs=8, async_scheduling=request.param) as llm:
        yield llm


def params(seed=0, **given):
    extra = {name: given.pop(name) for name in ("n", "stop", "logprobs", "ignore_eos", "temperature") if name in given}
    options = {"temperature": 1.0, "max_tokens": 256} | extra
    return SamplingParams(**options, seed=seed, structured_outputs=StructuredOutputsParams(**given))


def check_person(text):
    value = json.loads(text)
    assert set(value) == {"name", "age", "tags"}
    assert len(value["name"]) <= 12 and 0 <= value["age"] <= 120 and set(value["tags"]) <= {"a", "b", "c"}


def test_json_follows_its_schema_whatever_the_seed(llm):
    outputs = llm.generate(["A person: "] * 12, [params(seed=i, json=PERSON) for i in range(12)], use_tqdm=False)
    for output in outputs:
        assert output.outputs[0].finish_reason == "stop"
        check_person(output.outputs[0].text)


def test_constrained_and_free_requests_share_their_steps_and_do_not_touch_one_another(llm):
    """A request's text is the same alone and beside others, constrained or not."""
    prompts = ["One ", "Two ", "Three ", "Four "]
    mixed = [
        params(regex=DATE),
        SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True),
        params(choice=["left", "right"]),
        SamplingParams(temperature=1.0, seed=3, max_tokens=24, ignore_eos=True),
    ]
    together = [o.outputs[0].text for o in llm.generate(prompts, mixed, use_tqdm=False)]
    alone = [llm.generate(p, s, use_tqdm=False)[0].outputs[0].text for p, s in zip(prompts, mixed, strict=True)]
    assert together == alone
    assert re.fullmatch(DATE, together[0]) and together[2] in ("left", "right")


def test_greedy_and_random_samples_of_one_request_each_follow_the_grammar(llm):
    output = llm.generate("Choose: ", params(n=5, regex="[a-c]{3,6}"), use_tqdm=False)[0]
    texts = [sample.text for sample in output.outputs]
    assert len(texts) == 5 and all(re.fullmatch("[a-c]{3,6}", text) for text in texts)
    assert len(set(texts)) > 1
    greedy = llm.generate("Choose: ", params(temperature=0.0, regex="[a-c]{3,6}"), use_tqdm=False)[0].outputs[0]
    assert re.fullmatch("[a-c]{3,6}", greedy.text)


def test_a_grammar_may_be_lark_gbnf_or_a_structural_tag(llm):
    lark = 'start: "<" word ("," word)~2 ">"\nword: /[a-z]{1,4}/'
    gbnf = 'root ::= "<" word ">"\nword ::= [a-z] [a-z]'
    tag = {"structures": [{"begin": "<p>", "schema": PERSON, "end": "</p>"}], "triggers": ["<p>"]}
    texts = [llm.generate("x", params(grammar=g), use_tqdm=False)[0].outputs[0].text for g in (lark, gbnf)]
    assert re.fullmatch("<[a-z]{1,4}(,[a-z]{1,4}){2}>", texts[0]) and re.fullmatch("<[a-z]{2}>", texts[1])
    text = llm.generate("x", params(structural_tag=tag), use_tqdm=False)[0].outputs[0].text
    for part in re.findall("<p>(.*?)</p>", text, re.DOTALL):
        check_person(part)


def test_log_probabilities_are_those_of_the_model_and_of_the_drawn_tokens(llm):
    """They come from the unchanged logits, so a token the model would never have said may rank low."""
    sample = llm.generate("Say: ", params(logprobs=2, choice=["zebra quartz"]), use_tqdm=False)[0].outputs[0]
    assert sample.text == "zebra quartz"
    assert [token_id in entry for token_id, entry in zip(sample.token_ids, sample.logprobs, strict=True)] == [
        True
    ] * len(sample.token_ids)
    assert any(entry[token_id].rank > 1 for token_id, entry in zip(sample.token_ids, sample.logprobs, strict=True))


def test_a_stop_string_still_ends_the_output(llm):
    sample = llm.generate("x", params(stop=["b"], choice=["aaabaaa"]), use_tqdm=False)[0].outputs[0]
    assert (sample.text, sample.finish_reason, sample.stop_reason) == ("aaa", "stop", "b")


def test_ignoring_the_end_of_sequence_does_not_add_to_a_complete_output(llm):
    sample = llm.generate("x", params(ignore_eos=True, choice=["yes"]), use_tqdm=False)[0].outputs[0]
    assert (sample.text, sample.finish_reason) == ("yes", "stop")


def test_long_prompts_in_chunks_and_preemption_change_nothing():
    """Chunked prefill draws nothing until its last chunk; preempted requests go on where they were."""
    prompts = [f"{i} word " * (8 + i) for i in range(8)]
    wanted = [params(seed=i, regex="[a-z]{60,70}") for i in range(7)] + [params(seed=7, json=PERSON)]
    with LLM(max_model_len=256, page_size=8, max_num_seqs=8, max_num_batched_tokens=32) as small_steps:
        expected = [o.outputs[0].text for o in small_steps.generate(prompts, wanted, use_tqdm=False)]
    assert all(re.fullmatch("[a-z]{60,70}", text) for text in expected[:7])
    check_person(expected[7])
    with LLM(max_model_len=256, page_size=8, max_num_seqs=8, kv_cache_memory_bytes=36 * 8 * 1280) as tight:
        found = [o.outputs[0].text for o in tight.generate(prompts, wanted, use_tqdm=False)]
        assert found == expected
        assert tight.stats.preemptions > 0


@pytest.mark.parametrize(
    ("given", "said"),
    [({"json": {"not": {}}}, "not"), ({"regex": "("}, "regex"), ({"grammar": "start: x"}, "x")],
)
def test_a_constraint_that_cannot_be_is_refused_before_anything_runs(llm, given, said):
    """SEC-16: the front end finds out, and the engine takes no step for it."""
    before = llm.stats.step
    with pytest.raises(InvalidRequestError, match=said) as caught:
        llm.generate(["a", "b"], [SamplingParams(), params(**given)], use_tqdm=False)
    assert caught.value.code == "invalid_grammar"
    assert llm.stats.step == before


def test_a_constraint_and_token_lists_that_exclude_one_another_end_in_an_error_of_that_request(llm):
    """SEC-17: nothing is drawn that either forbids."""
    impossible = SamplingParams(
        allowed_token_ids=[300], structured_outputs=StructuredOutputsParams(choice=["y"]), temperature=0.0
    )
    with pytest.raises(NoTokenLeftError, match="no token is left to draw"):
        llm.generate("x", impossible, use_tqdm=False)
    assert llm.generate("x", params(choice=["y"]), use_tqdm=False)[0].outputs[0].text == "y"


def test_an_engine_process_compiles_beside_its_steps_and_aborts_what_is_compiling():
    async def run():
        engine = await AsyncEngine.start(EngineConfig.from_options(model="quire-demo", max_model_len=512))
        try:
            free = engine.generate(
                "Tell ", SamplingParams(max_tokens=40, ignore_eos=True), request_id="free", delta=True
            )
            texts = await asyncio.gather(
                _text(free),
                _text(engine.generate("x", params(json=PERSON), request_id="json", delta=True)),
                _text(engine.generate("x", params(regex=DATE), request_id="date", delta=True)),
            )
            check_person(texts[1])
            assert re.fullmatch(DATE, texts[2])
            stream = await engine.submit("x", params(choice=["never seen"]), request_id="gone")
            await stream.aclose()
            assert await _text(engine.generate("x", params(choice=["ok"]), request_id="last", delta=True)) == "ok"
            for _ in range(3000):
                if engine.stats.num_running == engine.stats.num_waiting == 0:
                    break
                await asyncio.sleep(0.01)
            assert engine.stats.num_running == engine.stats.num_waiting == 0
        finally:
            await engine.close()

    async def _text(outputs):
        return "".join([output.outputs[0].text async for output in outputs])

    asyncio.run(run())
