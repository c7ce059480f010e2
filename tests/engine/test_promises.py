"""Promises that only the assembled engine can keep: memory as planned, foreign directories, live requests in peace."""

import asyncio
import hashlib
import json
import time
from pathlib import Path

import pytest

from quire import LLM, AsyncEngine, EngineConfig, SamplingParams
from quire.cli.main import main
from quire.engine.memory import format_bytes
from quire.quant.packed import PackedSlot

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_cache_memory_bytes": 5_000_001, "page_size": 32, "max_model_len": 512},
        {"max_num_seqs": 3, "max_model_len": 300, "page_size": 8, "dtype": "bfloat16"},
        {"kv_cache_dtype": "int8", "page_size": 64},
    ],
    ids=["defaults", "budget", "lengths", "int8 pages"],
)
def test_check_prints_what_the_engine_allocates_and_reports(options, demo_path, capsys):
    """S10, S4: the ledger of `quire check` and the one printed at start agree, weights and KV tensors to the byte."""
    flags = [word for name, value in options.items() for word in ("--" + name.replace("_", "-"), str(value))]
    assert main(["check", demo_path, "--json", *flags]) == 0
    checked = json.loads(capsys.readouterr().out)["memory"]
    with LLM(demo_path, **options) as llm:
        runner, resolved, ledger = llm._core.runner, llm.info.resolved, "\n".join(llm.info.ledger)
        kv = sum(tensor.untyped_storage().nbytes() for tensor in runner._kv)
        weights = {}
        for slot in runner._model.weight_slots().values():
            storage = slot.matrix.storage if isinstance(slot, PackedSlot) else slot.target.untyped_storage()
            weights[storage.data_ptr()] = storage.nbytes if isinstance(slot, PackedSlot) else storage.nbytes()
        pages = llm._core.scheduler.cache.num_pages
    reported = resolved["memory"]
    for name in set(reported) - {"free_bytes"}:
        assert reported[name] == checked[name], name
    assert kv == checked["kv_bytes"] == pages * checked["page_bytes"]
    assert sum(weights.values()) == checked["weight_bytes"]
    shown = f"{format_bytes(kv)}  = {pages} pages x {checked['page_size']} tokens x {checked['kv_bytes_per_token']} B"
    assert shown in ledger


@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "int8"])
def test_narrow_pages_give_a_prompt_the_same_tokens_alone_in_a_batch_and_from_a_prefix(kv_cache_dtype, demo_path):
    """S6, S18, REL-15, SEC-35: shared, copied and poisoned pages carry their scales along."""
    prompts = ["What is the capital of France?", "What is the capital of France, and of Spain?", "Count to ten."]
    plain = {"kv_cache_dtype": kv_cache_dtype, "page_size": 8, "max_model_len": 256}
    with LLM(demo_path, enable_prefix_caching=False, **plain) as llm:
        alone = [llm.generate(prompt, GREEDY, use_tqdm=False)[0].outputs[0].token_ids for prompt in prompts]
    with LLM(demo_path, debug=True, max_num_batched_tokens=16, max_num_seqs=8, **plain) as llm:
        for _ in range(2):
            outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
            assert [output.outputs[0].token_ids for output in outputs] == alone
        branches = SamplingParams(n=3, temperature=0.8, seed=1, max_tokens=12, ignore_eos=True)
        assert len(llm.generate(prompts[0], branches, use_tqdm=False)[0].outputs) == 3


def test_a_directory_written_by_transformers_serves_as_it_is(demo_path, tmp_path):
    """S2: weights and configuration as `save_pretrained` leaves them; not one file is changed or added."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(demo_path, dtype=torch.float32)
    theirs.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((Path(demo_path) / name).read_bytes())

    def digests():
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}

    before = digests()
    with LLM(str(tmp_path), max_model_len=128) as llm:
        output = llm.generate("Once upon a time", GREEDY, use_tqdm=False)[0]
    prompt = torch.tensor([output.prompt_token_ids])
    expected = theirs.generate(prompt, max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0)
    assert output.outputs[0].token_ids == expected[0, prompt.shape[1] :].tolist()
    assert digests() == before


def test_evictions_around_a_live_request_leave_its_tokens_alone():
    """S20: a real cache of few pages that evicts all the time, beside a request that runs through all of it."""
    long = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
    others = [[i % 1000 + 1] * 40 for i in range(30)]
    with LLM(max_model_len=384, max_num_seqs=2, page_size=8, kv_cache_memory_bytes=48 * 8 * 2560, debug=True) as llm:
        alone = llm.generate("Once upon a time", long, use_tqdm=False)[0].outputs[0].token_ids
        before = llm.stats.evictions
        short = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
        prompts = ["Once upon a time", *others]
        together = llm.generate(prompts, [long, *[short] * len(others)], use_tqdm=False)
        assert llm.stats.evictions - before > 48
        assert together[0].outputs[0].token_ids == alone


async def test_a_reader_that_never_reads_takes_no_step_from_the_others(monkeypatch):
    """S33: beside three streams nobody reads, a fourth takes part in every step from its first to its last."""
    engine = await AsyncEngine.start(EngineConfig.from_options(max_model_len=512), in_process=True)
    runner, rows = engine._client._core.runner, []
    launch = runner.launch

    def slow_launch(work):
        time.sleep(0.002)  # so that the three still run when the fourth ends, however busy the machine is
        rows.append(len(work.rows))
        return launch(work)

    monkeypatch.setattr(runner, "launch", slow_launch)
    endless = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True)
    stalled = [await engine.submit("Once", endless, request_id=f"stalled-{i}") for i in range(3)]
    try:
        while engine.stats.num_running < 3:
            await asyncio.sleep(0.001)
        async for output in engine.generate("count from 3 to 9", GREEDY, request_id="reader"):
            last = output
        assert len(last.outputs[0].token_ids) == 24
        assert engine.stats.num_running == 3, "the stalled requests still run"
        first = rows.index(4)
        assert rows[first : first + 24] == [4] * 24 and rows.count(4) == 24
    finally:
        for stream in stalled:
            await stream.aclose()
        await engine.close()
