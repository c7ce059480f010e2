"""The same runner on a GPU: queued uploads, copies back by event, and the answers of the CPU's tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quire.base.sampling import SamplingParams
from quire.runner.device import CudaDevice, select_device

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

PROMPTS = [[(7 * i + n) % 61 for i in range(n)] for n in (5, 17, 1, 30)]
SEEDED = SamplingParams(temperature=1.5, top_p=0.95, max_tokens=64)


@pytest.fixture
def device():
    return CudaDevice()


@pytest.fixture
def model(model, device):
    return model.to(device.torch_device)


def test_uploads_survive_the_reuse_of_their_pinned_buffers(device):
    tensors = [device.upload(np.full(1000 + i, i)) for i in range(300)]
    device.synchronize()
    assert all(bool((tensor == i).all()) for i, tensor in enumerate(tensors))
    assert device.upload(np.zeros((3, 0), dtype=np.int64)).shape == (3, 0)


def test_a_refreshed_tensor_holds_what_its_values_have_become_and_earlier_work_what_they_were(device):
    values = np.arange(6).reshape(2, 3)
    tensor = device.upload(values)
    before = tensor + 0
    values += 10
    device.refresh(tensor, values)
    assert tensor.tolist() == [[10, 11, 12], [13, 14, 15]]
    assert before.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_fetch_waits_for_the_work_before_it(device):
    big = torch.ones(4000, 4000, device=device.torch_device)
    for _ in range(20):
        big = big @ big / 4000
    copy = device.fetch([big.sum(), big[:2, 0]])
    assert copy.wait()[0].item() == pytest.approx(16e6)
    assert copy.is_ready()


def test_auto_selects_the_gpu_and_its_memory_is_reported():
    device = select_device("auto")
    assert device.name == "cuda"
    assert device.available_memory() > 2**30


def test_prefill_and_decode_match_a_dense_forward(model, solo):
    """S36, S37"""
    tokens = list(PROMPTS[1])
    for _ in range(8):
        tokens.append(int(model.dense_logits(tokens)[-1].argmax()))
    assert solo(PROMPTS[1], 8) == tokens[17:]


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SEEDED], ids=["greedy", "seeded"])
def test_overlapped_launches_equal_solo_runs(make_driver, solo, params):
    """REL-15: step n+1 is queued before the tokens of step n reach the host."""
    driver = make_driver()
    jobs = {driver.add(row, prompt, params, seed=row): prompt for row, prompt in enumerate(PROMPTS)}
    driver.run_overlapped(list(jobs), 9)
    for row, (job, prompt) in enumerate(jobs.items()):
        assert job.output == solo(prompt, 10, params, seed=row)


def test_controls_logprobs_and_failures_come_back(make_driver):
    """REL-15, SEC-35"""
    driver = make_driver()
    params = SamplingParams(
        temperature=0.9,
        repetition_penalty=1.3,
        min_p=0.01,
        logit_bias={3: 2.0},
        logprobs=3,
        prompt_logprobs=1,
        min_tokens=5,
        allowed_token_ids=list(range(50)),
    )
    job = driver.add(0, PROMPTS[3], params, stop_ids=(1,), bad_words=((2,), (4, 5)))
    victim = driver.add(1, PROMPTS[1])
    driver.run([job, victim], 4)
    assert [len(entry.token_ids) for entry in job.logprobs] == [4] * 4
    assert len(job.prompt_logprobs) == len(PROMPTS[3]) - 1
    driver.runner.poison(victim.pages[:1])
    sampled = driver.step({job: 1, victim: 1})
    assert list(sampled.failed_rows) == [1]
    assert len(job.output) == 5


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SEEDED], ids=["greedy", "seeded"])
def test_masks_are_applied_on_the_gpu_and_touch_their_rows_alone(make_driver, solo, alternating, params):
    """S49: a row under a constraint beside others."""
    first, second = {2, 3, 5, 60}, {1, 40, 41}
    driver = make_driver()
    held = driver.add(0, PROMPTS[0], params, seed=3, constraint=alternating(first, second))
    free = driver.add(1, PROMPTS[1], params, seed=4)
    driver.run([held, free], 8)
    assert set(held.output[::2]) <= first and set(held.output[1::2]) <= second
    assert free.output == solo(PROMPTS[1], 8, params, seed=4)
