"""Tokens are shared between tenants by weight, in virtual time: one engine step is the unit, no clock is read."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest

from quire.base.step import NewRow
from quire.scheduler import fair


@dataclass
class Load:
    """Requests one tenant offers: every `gap` steps on average, of `prompt` tokens with answers up to `output`."""

    gap: float
    prompt: int = 12
    output: int = 24
    weight: float = 1.0
    start: int = 0
    end: int = 10**9


class Offered:
    """Plays loads against a simulation and notes what every tenant got and how long its requests waited."""

    def __init__(self, s, loads: dict[str, Load], *, seed: int = 0) -> None:
        self.s, self.loads, self.rng = s, loads, random.Random(seed)
        self.tokens: Counter = Counter()
        self.waits: dict[str, list[int]] = defaultdict(list)
        self._due = {tenant: float(load.start) for tenant, load in loads.items()}
        self._arrivals: dict[str, tuple[str, int]] = {}
        self._started: set[str] = set()
        self._by_seed: dict[int, str] = {}
        self._owners: dict[int, str] = {}  # request in each row
        self._reached: Counter = Counter()  # tokens of each request that were computed at some time

    def run(self, num_steps: int, *, measure_from: int = 0) -> None:
        for step in range(num_steps):
            for tenant, load in self.loads.items():
                while self._due[tenant] <= step < load.end:
                    self._add(tenant, load, step)
                    self._due[tenant] += load.gap * self.rng.uniform(0.5, 1.5)
            work = self.s.step()
            if work is None:
                continue
            for request in self.s.scheduler.roster.running:
                if request.request_id not in self._started:
                    self._started.add(request.request_id)
                    tenant, arrival = self._arrivals[request.request_id]
                    self.waits[tenant].append(step - arrival)
            for row in work.new_rows:
                self._owners[row.row] = self._owner(row)
            for row, start, num_tokens in zip(work.rows, work.starts, work.num_scheduled, strict=True):
                name = self._owners[row]
                new = start + num_tokens - max(start, self._reached[name])
                self._reached[name] = max(self._reached[name], start + num_tokens)
                if step >= measure_from:
                    self.tokens[self.s.requests[name].tenant] += max(0, new)

    def p95(self, tenant: str) -> int:
        waits = sorted(self.waits[tenant])
        return waits[math.ceil(0.95 * len(waits)) - 1]

    def _add(self, tenant: str, load: Load, step: int) -> None:
        prompt = [self.rng.randrange(1, 50) for _ in range(self.rng.randint(load.prompt // 2, load.prompt * 3 // 2))]
        output = self.rng.randint(max(1, load.output // 2), max(1, load.output * 3 // 2))
        name = self.s.add(prompt, max_tokens=output, tenant=tenant, weight=load.weight)
        self._arrivals[name] = (tenant, step)
        self._by_seed[self.s.requests[name].seed] = name

    def _owner(self, new: NewRow) -> str:
        """The request that a row was given to: seeds are unique here."""
        return self._by_seed[new.seed]


def played(sim, loads, *, num_steps=900, measure_from=200, seed=0, **limits) -> Offered:
    values = {"num_pages": 400, "page_size": 8, "max_num_batched_tokens": 48, "max_prefill_tokens_mixed": 24}
    offered = Offered(sim(check=False, **(values | limits)), loads, seed=seed)
    offered.run(num_steps, measure_from=measure_from)
    offered.s.scheduler.check()
    return offered


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("shape", [(12, 24), (60, 4), (4, 120)], ids=["mixed", "prompts", "answers"])
def test_equal_weights_get_equal_tokens_whatever_they_offer(sim, shape, overlap):
    """S69: a tenant that offers ten times as much gets no more, whether prompts or answers are most of the work."""
    per_step = {(12, 24): 0.35, (60, 4): 0.6, (4, 120): 0.1}[shape]  # about 1.2 times an equal share
    loads = {"flood": Load(0.1 / per_step, *shape), "modest": Load(1 / per_step, *shape)}
    got = played(sim, loads, overlap=overlap).tokens
    assert got["flood"] == pytest.approx(got["modest"], rel=0.1)


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_weights_of_four_to_one_get_four_to_one(sim, rows):
    """N2: also where the shares are no whole rows."""
    loads = {"gold": Load(1.0, weight=4.0), "free": Load(1.0, weight=1.0)}
    got = played(sim, loads, max_num_seqs=rows, num_steps=2500 if rows < 3 else 900).tokens
    assert got["gold"] / got["free"] == pytest.approx(4.0, rel=0.1)


def test_one_tenants_long_prompts_and_another_ones_long_answers_cost_the_same(sim):
    """N2: prompt and output tokens count alike, so neither shape of request is the cheaper one."""
    loads = {"prompts": Load(0.5, 64, 2), "answers": Load(0.5, 4, 60)}
    got = played(sim, loads, num_steps=1500, max_num_batched_tokens=16, max_prefill_tokens_mixed=8).tokens
    assert got["prompts"] == pytest.approx(got["answers"], rel=0.1)


@pytest.mark.parametrize("prompt", [12, 400])
@pytest.mark.parametrize("seed", range(2))
def test_a_light_tenant_waits_at_most_two_steps_longer_than_alone(sim, prompt, seed):
    """S69: a flood, of long prompts too, does not push another tenant's latency beyond a bound."""
    light = Load(40, 8, 8)
    alone = played(sim, {"light": light}, seed=seed, num_pages=2000).p95("light")
    loads = {"flood": Load(0.5, prompt, 60), "second": Load(1.5, prompt, 60), "light": light}
    crowded = played(sim, loads, seed=seed, num_pages=2000)
    assert len(crowded.waits["light"]) >= 20
    assert crowded.p95("light") <= alone + 2


def test_without_fair_shares_the_same_flood_makes_a_light_tenant_wait(sim):
    """The bound above is the policy's doing."""
    loads = {"flood": Load(0.5, 12, 60), "second": Load(1.5, 12, 60), "light": Load(40, 8, 8)}
    assert not played(sim, loads, policy="priority").waits["light"][5:]


def test_a_light_tenant_is_not_kept_out_where_pages_run_out_before_rows(sim):
    """S69: the flood holds every page and a row is free."""
    light = Load(40, 8, 8)
    loads = {"flood": Load(0.5, 40, 60), "second": Load(1.5, 40, 60), "light": light}
    crowded = played(sim, loads, num_pages=60, max_num_seqs=32)
    assert crowded.s.scheduler.stats().preemptions
    assert crowded.p95("light") <= 4


def test_a_lone_tenant_gets_everything_and_is_scheduled_as_by_priority(sim):
    """N2: work-conserving; for one tenant the policy is `priority`, step for step."""
    loads = {"only": Load(0.3, 20, 30)}
    fair, plain = (played(sim, loads, num_steps=300, policy=policy).s.steps for policy in ("fair", "priority"))
    assert fair == plain and max(len(work.rows) for work in fair) == 8


def test_idle_rows_go_to_whoever_asks(sim):
    """N2: a tenant with little to do leaves its share to the others."""
    loads = {"little": Load(60, 8, 8), "much": Load(0.2, 8, 40)}
    offered = played(sim, loads)
    assert sum(offered.tokens.values()) / 700 > 7.9
    assert offered.tokens["much"] > 20 * offered.tokens["little"]


def test_idling_saves_nothing_up(sim):
    """N2: whoever returns after a pause shares equally from then on, and is owed nothing for the pause."""
    loads = {"always": Load(0.5), "late": Load(0.5, start=1000)}
    got = played(sim, loads, num_steps=1300, measure_from=1000).tokens
    assert got["late"] == pytest.approx(got["always"], rel=0.15)


def test_a_tenant_that_used_idle_capacity_is_not_punished_for_it(sim):
    loads = {"always": Load(0.5), "pausing": Load(0.5, end=100), "later": Load(0.5, start=1000)}
    s = played(sim, loads, num_steps=1300, measure_from=1000)
    assert s.tokens["always"] == pytest.approx(s.tokens["later"], rel=0.15)


def test_priority_orders_the_requests_of_one_tenant(sim, prompt):
    """S26: the more urgent request of a tenant goes first, without an advantage over another tenant's."""
    s = sim(max_num_seqs=1)
    s.add(prompt(0, 4), max_tokens=4, tenant="a", name="running")
    s.step()
    s.add(prompt(1, 4), max_tokens=4, tenant="a", name="later", priority=5)
    s.add(prompt(2, 4), max_tokens=4, tenant="a", name="sooner", priority=-5)
    s.add(prompt(3, 4), max_tokens=4, tenant="b", name="other")
    order = []
    while s.live:
        s.step()
        order += [r.request_id for r in s.scheduler.roster.running if r.request_id not in order]
    assert order == ["running", "other", "sooner", "later"]
    s.verify()


def test_samples_of_one_request_count_as_the_tokens_they_are(sim, prompt):
    """N2: n = 4 is four requests' worth of rows and tokens."""
    s = sim(num_pages=200, max_num_seqs=4, check=False)
    for i in range(30):
        s.add(prompt(i, 8), max_tokens=16, n=4, tenant="wide")
        for j in range(4):
            s.add(prompt(100 + 4 * i + j, 8), max_tokens=16, tenant="narrow")
    for _ in range(400):
        s.step()
    computed: Counter = Counter()
    for name, index in s.outputs:  # the prompt is computed once, by sample 0
        computed[s.requests[name].tenant] += len(s.tokens(name, index)) + (8 if index == 0 else 0)
    assert computed["wide"] == pytest.approx(computed["narrow"], rel=0.15)
    s.run()
    s.verify()


def test_taking_rows_in_turns_loses_no_token_and_little_work(sim):
    """REL-6: one row, three tenants; all texts are those of requests alone, and recomputation stays below new work."""
    s = sim(num_pages=100, page_size=8, max_num_seqs=1, enable_prefix_caching=False, check=False)
    for tenant in "abc":
        s.add([1, 2, 3], max_tokens=700, tenant=tenant)
    s.run()
    s.verify()
    stats = s.scheduler.stats()
    assert stats.preemptions >= 2
    assert stats.recomputed_tokens < stats.generation_tokens


def test_an_unknown_tenants_weight_must_be_a_number_above_nothing(sim, prompt):
    s = sim()
    for weight in (0.0, -1.0, math.inf, math.nan):
        name = s.add(prompt(1, 4), weight=weight)
        assert s.last(name).error_kind == "InvalidRequestError" and "weight" in s.last(name).error


def test_tenants_that_come_once_are_forgotten(sim, prompt, monkeypatch):
    """REL-17: the accounts of names that never return do not pile up."""
    s = sim(check=False)
    monkeypatch.setattr(fair, "MAX_IDLE", 8)
    s.add([1], max_tokens=250, tenant="always")
    for i in range(200):
        s.add(prompt(i, 2), max_tokens=1, tenant=f"t{i}")
        s.step()
    queue = s.scheduler.roster.waiting._foreground
    assert len(queue._idle) + len(queue._open) < 20 and len(queue._heap) < 20
