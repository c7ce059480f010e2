"""Rows under constraints beside rows without, greedy and drawn, on the runner's own path."""

import pytest

from quire.base.sampling import SamplingParams

PROMPTS = [[(7 * i + n) % 61 for i in range(n)] for n in (5, 17, 9)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=64)
SEEDED = SamplingParams(temperature=1.5, top_p=0.95, max_tokens=64)
FIRST, SECOND = {2, 3, 5, 7, 31, 32, 60}, {1, 40, 41, 59}


def expected_greedy(model, prompt, sets, num_output):
    tokens = list(prompt)
    for step in range(num_output):
        logits = model.dense_logits(tokens)[-1]
        tokens.append(max(sorted(sets[step % len(sets)]), key=lambda token: logits[token]))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("others", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_constrained_row_takes_the_likeliest_allowed_token_and_its_neighbours_take_theirs(
    make_driver, model, solo, alternating, others
):
    driver = make_driver()
    held = driver.add(0, PROMPTS[0], GREEDY, constraint=alternating(FIRST, SECOND))
    free = [driver.add(row, PROMPTS[row], others, seed=row) for row in (1, 2)]
    driver.run([free[0], held, free[1]], 8)
    assert held.output == expected_greedy(model, PROMPTS[0], (FIRST, SECOND), 8)
    assert [job.output for job in free] == [solo(PROMPTS[row], 8, others, seed=row) for row in (1, 2)]


def test_a_drawn_token_is_an_allowed_one_whoever_runs_beside_it(make_driver, alternating):
    outputs = []
    for beside in (False, True):
        driver = make_driver()
        held = driver.add(0, PROMPTS[1], SEEDED, seed=4, constraint=alternating(FIRST, SECOND))
        others = [driver.add(1, PROMPTS[0], SEEDED, seed=5)] if beside else []
        driver.run([held, *others], 12)
        outputs.append(held.output)
    assert outputs[0] == outputs[1]
    assert set(outputs[0][::2]) <= FIRST and set(outputs[0][1::2]) <= SECOND
    assert len(set(outputs[0])) > 2


def test_log_probabilities_are_the_models_and_not_the_masks(make_driver, model, alternating):
    params = SamplingParams(temperature=0.0, max_tokens=8, logprobs=2)
    driver = make_driver()
    job = driver.add(0, PROMPTS[0], params, constraint=alternating({60}))
    driver.run([job], 2)
    logprobs = model.dense_logits(PROMPTS[0])[-1].log_softmax(-1)
    entry = job.logprobs[0]
    assert entry.token_ids[0] == 60
    assert entry.logprobs[0] == pytest.approx(logprobs[60].item(), abs=1e-4)
    assert entry.token_ids[1] == logprobs.argmax().item()


def test_a_mask_that_leaves_nothing_fails_its_row_alone(make_driver, solo, alternating):
    driver = make_driver()
    stuck = driver.add(0, PROMPTS[0], GREEDY, constraint=alternating(set()))
    free = driver.add(1, PROMPTS[1])
    plan = driver.plan({stuck: len(PROMPTS[0]), free: len(PROMPTS[1])})
    sampled = driver.runner.launch(plan).wait()
    assert list(sampled.failed_rows) == [0] and sampled.failed_rows[0].error_kind == "NoTokenLeftError"
    assert sampled.token_ids[1] == solo(PROMPTS[1], 1)


def test_bias_and_forbidden_words_hold_within_what_the_mask_allows(make_driver, model, alternating):
    params = SamplingParams(temperature=0.0, max_tokens=8, logit_bias={5: 100.0, 40: 100.0})
    driver = make_driver()
    job = driver.add(0, PROMPTS[0], params, constraint=alternating(FIRST, SECOND))
    driver.run([job], 4)
    assert job.output == [5, 40, 5, 40]
