"""A device made of dictionaries and a driver that plays request histories against the scheduler.

The device keeps, per page and offset, a hash of the whole prefix that was written there, and checks before every step
that each position a row attends to holds exactly its own prefix. Its next token is a hash of the full sequence and the
seed, so every output can be compared with what the request would have said alone.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from quire.base.outputs import FinishReason, TokenOutput
from quire.base.request import EngineRequest
from quire.base.sampling import SamplingParams
from quire.base.step import SampledTokens, SchedulerOutput
from quire.cache.manager import KVCacheManager
from quire.scheduler.budget import SchedulerLimits
from quire.scheduler.intake import sample_seed
from quire.scheduler.scheduler import Scheduler

OPTIONS = ("priority", "deadline", "cache_salt", "tenant", "weight")
"""Fields of a request that are not sampling."""
VOCABULARY = 50
EOS = 0


class WrongMemoryError(Exception):
    """A row would attend to something that is not its own prefix, or a step breaks the contract."""


def extend_hashes(hashes: list[int], token_ids: list[int]) -> None:
    """Bring the chain of prefix hashes up to the tokens."""
    for token_id in token_ids[len(hashes) :]:
        hashes.append(hash((hashes[-1] if hashes else 17, token_id)))


def next_token(prefix_hash: int, seed: int) -> int:
    """The toy model: a token that depends on the whole sequence and the seed."""
    return hash((prefix_hash, seed, 5)) % VOCABULARY


@dataclass
class DeviceRow:
    tokens: list[int]
    pages: list[int]
    seed: int
    hashes: list[int] = field(default_factory=list)


class FakeDevice:
    """What a runner does with a step, on prefix hashes instead of tensors."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.memory: list[list[int | None]] = [[None] * page_size for _ in range(num_pages)]
        self.rows: dict[int, DeviceRow] = {}
        self.num_copies = 0

    def poison(self, pages: list[int]) -> None:
        for page in pages:
            self.memory[page] = [None] * self.page_size

    def launch(self, work: SchedulerOutput) -> SampledTokens:
        self._apply(work)
        token_ids = []
        for row, start, num in zip(work.rows, work.starts, work.num_scheduled, strict=True):
            self._write(self.rows[row], start, num)
        for row, start, num, samples in zip(work.rows, work.starts, work.num_scheduled, work.samples, strict=True):
            drawn = self._attend(self.rows[row], start + num, samples)
            token_ids.append(drawn)
        return SampledTokens(token_ids=token_ids)

    def _apply(self, work: SchedulerOutput) -> None:
        for row in work.freed_rows:
            self.rows.pop(row, None)
        sources, destinations = {s for s, _ in work.page_copies}, [d for _, d in work.page_copies]
        if len(set(work.rows)) != len(work.rows) or len(set(destinations)) != len(destinations):
            raise WrongMemoryError("a row is scheduled twice or a page is copied to twice")
        if sources & set(destinations):
            raise WrongMemoryError("a copy reads what another copy of the step writes")
        before = {source: list(self.memory[source]) for source in sources}
        for source, destination in work.page_copies:
            self.memory[destination] = list(before[source])
            self.num_copies += 1
        for new in work.new_rows:
            self.rows[new.row] = DeviceRow(list(new.token_ids), list(new.page_ids), new.seed)
        for row, page in work.page_appends:
            self.rows[row].pages.append(page)
        for row, position, page in work.page_replacements:
            self.rows[row].pages[position] = page

    def _write(self, row: DeviceRow, start: int, num: int) -> None:
        size = self.page_size
        extend_hashes(row.hashes, row.tokens)
        if num < 1 or start + num > len(row.tokens) or start + num > len(row.pages) * size:
            raise WrongMemoryError(f"tokens {start}..{start + num} of {len(row.tokens)} on {len(row.pages)} pages")
        for position in range(start, start + num):
            self.memory[row.pages[position // size]][position % size] = row.hashes[position]

    def _attend(self, row: DeviceRow, context: int, samples: bool) -> list[int]:
        size = self.page_size
        for index in range(-(-context // size)):
            wanted = row.hashes[index * size : min((index + 1) * size, context)]
            if self.memory[row.pages[index]][: len(wanted)] != wanted:
                raise WrongMemoryError(f"page {row.pages[index]} does not hold page {index} of the row's own prefix")
        if samples != (context == len(row.tokens)):
            raise WrongMemoryError("a row samples before its last token, or does not at it")
        if not samples:
            return []
        row.tokens.append(next_token(row.hashes[-1], row.seed))
        return [row.tokens[-1]]


def solo_output(request: EngineRequest, index: int) -> list[int]:
    """What sample `index` of the request says when it has the machine to itself."""
    tokens, hashes, params = list(request.prompt_token_ids), [], request.params
    num_prompt, seed = len(tokens), sample_seed(request.seed, index)
    while len(tokens) - num_prompt < request.max_tokens:
        extend_hashes(hashes, tokens)
        tokens.append(next_token(hashes[-1], seed))
        stops = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
        if tokens[-1] in stops and len(tokens) - num_prompt >= params.min_tokens:
            break
    return tokens[num_prompt:]


class Clock:
    def __init__(self) -> None:
        self.now = 1.0

    def __call__(self) -> float:
        return self.now


class CountingCache(KVCacheManager):
    """The real manager, noting how often requests fork."""

    num_forks = 0

    def fork(self, parent, child) -> None:
        self.num_forks += 1
        super().fork(parent, child)


class Simulation:
    """A scheduler, its cache and the fake device, stepped plainly or overlapped as the engine would."""

    def __init__(
        self,
        *,
        num_pages: int = 64,
        page_size: int = 4,
        overlap: bool = False,
        check: bool = True,
        cache_class: type[KVCacheManager] = CountingCache,
        page_order: list[int] | None = None,
        enable_prefix_caching: bool = True,
        **limits,
    ) -> None:
        values = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_prefill_tokens_mixed": 16}
        values |= {"max_model_len": num_pages * page_size} | limits
        self.clock = Clock()
        self.cache = cache_class(
            num_pages,
            page_size,
            enable_prefix_caching=enable_prefix_caching,
            fingerprint=b"toy",
            page_order=page_order,
            debug=True,
        )
        self.scheduler = Scheduler(SchedulerLimits(**values), self.cache, clock=self.clock, eos_token_ids=(EOS,))
        self.device = FakeDevice(num_pages, page_size)
        self.overlap = overlap
        self.requests: dict[str, EngineRequest] = {}
        self.outputs: dict[tuple[str, int], list[TokenOutput]] = {}
        self.steps: list[SchedulerOutput] = []
        self.live: list[tuple[str, int]] = []  # samples that have not ended
        self._check = check
        self._in_flight: deque = deque()

    def add(self, prompt: list[int], *, max_tokens: int = 8, name: str | None = None, **options) -> str:
        name = name or f"r{len(self.requests)}"
        fields = {key: options.pop(key) for key in OPTIONS if key in options}
        seed = options.pop("seed", len(self.requests))
        arrival = options.pop("arrival_time", self.clock.now)
        request = EngineRequest(
            request_id=name,
            prompt_token_ids=prompt,
            params=SamplingParams(max_tokens=max_tokens, **({"ignore_eos": True} | options)),
            max_tokens=max_tokens,
            seed=seed,
            arrival_time=arrival,
            **fields,
        )
        self.requests[name] = request
        self.live += [(name, index) for index in range(request.params.n)]
        self.take(self.scheduler.add(request))
        self.check()
        return name

    def pass_time(self, seconds: float) -> None:
        """Let the clock jump without a step."""
        self.clock.now += seconds
        self.check()

    def step(self, *, failure: str | None = None) -> SchedulerOutput | None:
        """One turn of the engine's loop; `failure` is "launch" or "wait" to make the new step fail there."""
        self.clock.now += 0.01
        self.take(self.scheduler.expire())
        work = self.scheduler.schedule()
        if work is not None:
            self.steps.append(work)
            self.device.poison(self.cache.take_freed_pages())
            sampled = None if failure == "launch" else self.device.launch(work)
            self._in_flight.append((work, None if failure else sampled))
        # A step that was never launched changed no row, so nothing may be scheduled on top of it: it fails at once.
        depth = 1 if self.overlap and work is not None and failure != "launch" else 0
        while len(self._in_flight) > depth:
            self._commit(*self._in_flight.popleft())
        self.check()
        return work

    def _commit(self, work: SchedulerOutput, sampled: SampledTokens | None) -> None:
        if sampled is None:
            self.take(self.scheduler.fail(work, "the device said no", "StepError"))
        else:
            self.take(self.scheduler.commit(work, sampled))

    def abort(self, *names: str) -> None:
        self.take(self.scheduler.abort(names))
        self.check()

    def abort_sample(self, name: str, index: int) -> None:
        self.take(self.scheduler.abort_samples([(name, index)]))
        self.check()

    def take(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            seen = self.outputs.setdefault((output.request_id, output.index), [])
            assert not seen or seen[-1].finish_reason is None, "an output after the last"
            seen.append(output)
            if output.finish_reason is not None:
                self.live.remove((output.request_id, output.index))

    def check(self) -> None:
        if self._check:
            self.scheduler.check()

    def run(self, max_steps: int = 10_000) -> None:
        """Step until nothing is left; fails when some steps in a row bring nothing (no livelock)."""
        idle = 0
        while self.scheduler.has_unfinished or self._in_flight:
            before = sum(map(len, self.outputs.values())), len(self.steps) and self.steps[-1].num_tokens
            work = self.step()
            progressed = work is not None or sum(map(len, self.outputs.values())) != before[0]
            idle = 0 if progressed else idle + 1
            assert idle < 3, f"no progress: {self.scheduler.dump()}"
            max_steps -= 1
            assert max_steps > 0, f"does not end: {self.scheduler.dump()}"

    def tokens(self, name: str, index: int = 0) -> list[int]:
        return [token for output in self.outputs.get((name, index), []) for token in output.token_ids]

    def last(self, name: str, index: int = 0) -> TokenOutput:
        return self.outputs[name, index][-1]

    def is_finished(self, name: str, index: int = 0) -> bool:
        seen = self.outputs.get((name, index))
        return bool(seen) and seen[-1].finish_reason is not None

    def verify(self) -> None:
        """Every sample ended, said what it would have said alone, and left nothing behind."""
        for name, request in self.requests.items():
            for index in range(request.params.n):
                expected, found = solo_output(request, index), self.tokens(name, index)
                reason = self.last(name, index).finish_reason
                assert reason is not None
                if reason in (FinishReason.STOP, FinishReason.LENGTH):
                    assert found == expected, f"{name}/{index} said {found}, alone it says {expected}"
                else:
                    assert found == expected[: len(found)], f"{name}/{index} said something else before it ended"
        stats = self.scheduler.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_used_pages) == (0, 0, 0)
        assert stats.num_free_pages + stats.num_cached_pages == stats.num_pages
        self.scheduler.check()


def random_history(
    seed: int, *, num_operations: int = 100, has_tenants: bool = False, **options
) -> tuple[Simulation, Counter]:
    """Play one random history to its end; returns the simulation and which events occurred in it."""
    rng, tenants = random.Random(seed), _random_tenant(seed) if has_tenants else None
    size = rng.choice([1, 2, 3, 4, 4, 8, 8, 16]) if rng.random() < 0.95 else rng.choice([32, 64, 128])
    num_pages = rng.randint(4, 64) if size < 8 else rng.randint(4, 12)
    order = rng.sample(range(num_pages), num_pages)
    budget = rng.choice([1, 4, 16, 64, 256])
    settings = {
        "max_num_seqs": rng.randint(1, 8),
        "max_num_batched_tokens": budget,
        "max_prefill_tokens_mixed": rng.choice([1, 3, 8, 64]),
        "policy": rng.choice(["fcfs", "priority"]),
        "overlap": rng.random() < 0.5,
        "enable_prefix_caching": rng.random() < 0.9,
    }
    sim = Simulation(num_pages=num_pages, page_size=size, page_order=order, **(settings | options))
    stems = [[rng.randrange(VOCABULARY) for _ in range(num_pages * size)] for _ in range(2)]
    events: Counter = Counter()
    for _ in range(num_operations):
        _random_operation(sim, rng, stems, events, tenants)
    sim.run()
    sim.verify()
    stats = sim.scheduler.stats()
    events["fork"], events["eviction"] = getattr(sim.cache, "num_forks", 0), stats.evictions
    events["preemption"], events["copy"], events["hit"] = stats.preemptions, stats.page_copies, stats.prefix_hits
    assert sim.device.num_copies <= stats.page_copies  # a step that failed to launch copied nothing
    return sim, events


def _random_tenant(seed: int) -> Callable[[], dict]:
    """Draws tenants and weights from numbers of its own, so that histories with and without them are the same else."""
    rng = random.Random(-1 - seed)
    return lambda: {"tenant": rng.choice(["a", "a", "b", "c"]), "weight": rng.choice([1.0, 1.0, 4.0])}


def _random_operation(sim: Simulation, rng: random.Random, stems: list[list[int]], events: Counter, tenants) -> None:
    draw = rng.random()
    live = sim.live
    if draw < 0.25 and len(live) < 12:
        _random_request(sim, rng, stems, tenants)
    elif draw < 0.29 and live:
        sim.abort(rng.choice(live)[0])
        events["abort"] += 1
    elif draw < 0.31 and live:
        sim.abort_sample(*rng.choice(live))
        events["abort"] += 1
    elif draw < 0.32:
        sim.pass_time(5.0)
    elif draw < 0.325:
        sim.step(failure=rng.choice(["launch", "wait"]))
        events["failure"] += 1
    else:
        sim.step()


def _random_request(sim: Simulation, rng: random.Random, stems: list[list[int]], tenants) -> None:
    room = sim.cache.num_pages * sim.cache.page_size
    longest = min(room, rng.choice([4, 3 * sim.cache.page_size, 60]))
    total = rng.randint(2, max(2, longest))
    max_tokens = rng.randint(1, max(1, min(total - 1, 20)))
    num_prompt = max(1, total - max_tokens)
    prompt = rng.choice(stems)[:num_prompt]
    if rng.random() < 0.5:  # leave the common stem somewhere
        keep = rng.randint(0, num_prompt)
        prompt = prompt[:keep] + [rng.randrange(VOCABULARY) for _ in range(num_prompt - keep)]
    sim.add(
        prompt,
        max_tokens=max_tokens,
        n=rng.choice([1, 1, 1, 2, 4]),
        ignore_eos=rng.random() < 0.5,
        min_tokens=rng.choice([0, min(2, max_tokens)]),
        stop_token_ids=rng.choice([[], [1, 2]]),
        priority=rng.choice([0, 0, 1, -1]),
        cache_salt=rng.choice([None, None, None, "tenant"]),
        **(tenants() if tenants is not None else {}),
        skip_reading_prefix_cache=rng.random() < 0.1,
        seed=rng.choice([1, 2]),
        deadline=sim.clock.now + 3.0 if rng.random() < 0.1 else None,
    )


@pytest.fixture
def sim() -> type[Simulation]:
    """The simulation's class: a scheduler on a device that remembers what was written where."""
    return Simulation


@pytest.fixture
def histories() -> SimpleNamespace:
    """Random histories and the pieces they are made of."""
    return SimpleNamespace(play=random_history, wrong_memory=WrongMemoryError, cache=CountingCache, solo=solo_output)


@pytest.fixture
def prompt() -> Callable[[int, int], list[int]]:
    """Make a prompt from a seed and a length."""

    def make(seed: int, length: int) -> list[int]:
        rng = random.Random(seed)
        return [rng.randrange(1, VOCABULARY) for _ in range(length)]

    return make
