"""The parity harness: tiny random checkpoints made by transformers, and both sides run over the same tokens.

How a comparison works. Our side generates greedily through pages in random order, prompts cut into chunks and rows of
different progress mixed in every step; it keeps its log-probabilities at every position of prompt and output. The
reference then reads prompt and output in ONE forward pass without a cache. If at every output position its most likely
token is the one we took, its own greedy generation would have produced the same text, by induction over positions:
equal prefixes give equal next tokens. So one pass replaces 64 steps of generation and checks every position besides.

Positions that scale with the running length (dynamic, longrope): quire fixes the scale from max_model_len, transformers
takes it from the longest sequence it sees. Every reference sequence is therefore extended to max_model_len with tokens
that causality hides from the positions compared, which makes transformers choose the same scale.
"""

import dataclasses
import json
import math
import random

import pytest
import torch

from quire.attention import select_backend
from quire.attention.interface import AttentionBatch
from quire.layers.context import BuildContext
from quire.models.inspect import inspect_model
from quire.models.loader import load_model
from quire.quant.packed import PackedWeights
from quire.quant.unquantized import Unquantized
from quire.runner.graphs import DirectGraphs

MAX_MODEL_LEN = 272
VOCAB = 160
TOLERANCE = 1e-3
TIE = 1e-4
NUM_NEW = 64
PROMPT_LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 33, 48, 64, 65, 100, 147, 200)

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclasses.dataclass
class Row:
    """One sequence of the driver."""

    tokens: list[int]
    goal: int
    pages: list[int] = dataclasses.field(default_factory=list)
    computed: int = 0
    logprobs: list[torch.Tensor] = dataclasses.field(default_factory=list)

    @property
    def is_open(self):
        return self.computed < self.goal - 1


class Driver:
    """The least that runs a model over pages: a page table per row, chunks, rows of different progress in one step."""

    def __init__(self, model, *, page_size, num_pages, chunk=16, graphs=None):
        self.model, self.page_size, self.chunk = model, page_size, chunk
        self.graphs = graphs or DirectGraphs()
        self.backend = model.context.attention
        self.free = list(range(num_pages))
        random.Random(5).shuffle(self.free)  # physical order never equals logical order
        shapes = [self.backend.kv_shape(num_pages, page_size, s.num_kv_heads, s.head_dim) for s in model.kv_layers]
        # NaN in every place that was never written: reading one shows up in every logit.
        self.kv = [torch.full(shape, math.nan, dtype=model.context.dtype) for shape in shapes]

    def generate(self, prompts, num_new):
        """Continue the prompts greedily; tokens [n] and log-probabilities [n - 1, V] per prompt, over all positions."""
        rows = [Row(list(prompt), len(prompt) + num_new) for prompt in prompts]
        step = 0
        while any(row.is_open for row in rows):
            # Rows join three per step, so that chunks and single tokens meet in one batch.
            joined = [row for row in rows[: 3 * (step + 1)] if row.is_open]
            self._step(joined or [row for row in rows if row.is_open])
            step += 1
        return [(row.tokens, torch.stack(row.logprobs)) for row in rows]

    def _step(self, rows):
        counts = [min(len(row.tokens) - row.computed, self.chunk) for row in rows]
        for row, count in zip(rows, counts, strict=True):
            while len(row.pages) * self.page_size < row.computed + count:
                row.pages.append(self.free.pop())
        ids, positions, slots = self._flat(rows, counts)
        width = max(len(row.pages) for row in rows)
        batch = AttentionBatch(
            query_lens=counts,
            context_lens=[row.computed + count for row, count in zip(rows, counts, strict=True)],
            page_tables=torch.tensor([row.pages + [0] * (width - len(row.pages)) for row in rows], dtype=torch.int32),
            slot_mapping=torch.tensor(slots),
            page_size=self.page_size,
        )
        with torch.inference_mode():
            plan = self.backend.plan(batch)
            inputs = torch.tensor(ids), torch.tensor(positions)
            (logits,) = self.graphs.run("logits", plan, *inputs, forward=self._logits)
            logprobs = logits.log_softmax(-1)
        self._commit(rows, counts, logprobs)

    def _logits(self, plan, token_ids, positions):
        return (self.model.logits(self.model(token_ids, positions, kv=self.kv, plan=plan)),)

    def _flat(self, rows, counts):
        ids, positions, slots = [], [], []
        for row, count in zip(rows, counts, strict=True):
            places = range(row.computed, row.computed + count)
            ids += row.tokens[row.computed : row.computed + count]
            positions += places
            slots += [row.pages[p // self.page_size] * self.page_size + p % self.page_size for p in places]
        return ids, positions, slots

    def _commit(self, rows, counts, logprobs):
        start = 0
        for row, count in zip(rows, counts, strict=True):
            row.logprobs += list(logprobs[start : start + count])
            row.computed += count
            start += count
            if row.computed == len(row.tokens) < row.goal:
                row.tokens.append(int(row.logprobs[-1].argmax()))


class Harness:
    """Makes checkpoints, runs both sides, compares."""

    def __init__(self, root):
        self.root = root
        self.paths = {}
        self.references = {}

    def checkpoint(self, model_type, **config):
        """Directory of a tiny random float32 checkpoint that transformers made and saved."""
        key = json.dumps([model_type, config], sort_keys=True, default=str)
        if key not in self.paths:
            path = self.root / f"{len(self.paths)}-{model_type}"
            settings = transformers.AutoConfig.for_model(model_type, **{"vocab_size": VOCAB, **config})
            torch.manual_seed(len(self.paths))
            model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
            randomise(model)
            model.save_pretrained(path)
            self.paths[key] = path
        return self.paths[key]

    def config(self, path):
        """config.json of a checkpoint."""
        return json.loads((path / "config.json").read_text())

    def model(self, path, *, max_model_len=MAX_MODEL_LEN, dtype=torch.float32, kernels=False, **changes):
        """Our model of a checkpoint with some keys of config.json changed on our side alone; `kernels` packs its
        weights, unrounded, and attends with the CPU kernels."""
        info = inspect_model(path)
        if changes:
            info = dataclasses.replace(info, config=merged(info.config, changes))
        context = BuildContext(
            dtype=dtype,
            device=torch.device("cpu"),
            attention=select_backend("kernels" if kernels else "reference"),
            max_model_len=max_model_len,
            scheme=PackedWeights("float32") if kernels else Unquantized(),
        )
        return load_model(info, context)

    def reference(self, path, dtype=torch.float32):
        """transformers' model of a checkpoint."""
        if (path, dtype) not in self.references:
            # transformers' eager Falcon adds ALiBi twice (to the scores and through the mask); its sdpa does not.
            kind = "sdpa" if self.config(path).get("alibi") else "eager"
            load = transformers.AutoModelForCausalLM.from_pretrained
            self.references[path, dtype] = load(path, attn_implementation=kind, dtype=dtype).eval()
        return self.references[path, dtype]

    def reference_logits(self, path, sequences, dtype=torch.float32):
        """transformers' logits [n - 1, V] of each sequence, all in one pass, each extended to MAX_MODEL_LEN."""
        filler = [1] * MAX_MODEL_LEN
        batch = torch.tensor([(list(tokens) + filler)[:MAX_MODEL_LEN] for tokens in sequences])
        with torch.inference_mode():
            logits = self.reference(path, dtype)(input_ids=batch, use_cache=False).logits.float()
        return [row[: len(tokens) - 1] for row, tokens in zip(logits, sequences, strict=True)]

    def ours(self, model, prompts, *, num_new=NUM_NEW, page_size=16, graphs=None):
        """Tokens and log-probabilities per prompt, by our side."""
        needed = sum(-(-(len(prompt) + num_new) // page_size) for prompt in prompts)
        return Driver(model, page_size=page_size, num_pages=needed + 3, graphs=graphs).generate(prompts, num_new)

    def compare(self, path, results, prompts):
        """Raise AssertionError unless our tokens and log-probabilities are transformers'."""
        logits = self.reference_logits(path, [tokens for tokens, _ in results])
        spread = torch.cat(logits).std(-1).mean()
        assert spread >= 1.0, f"logits of this checkpoint are too flat to tell anything: {spread:.2f}"
        for (tokens, ours), theirs, prompt in zip(results, logits, prompts, strict=True):
            difference = (ours - theirs.log_softmax(-1)).abs().amax(-1)
            assert not difference.isnan().any(), "our log-probabilities hold NaN"
            worst = int(difference.argmax())
            assert difference[worst] < TOLERANCE, f"position {worst} of {len(tokens)} is off by {difference[worst]:.2e}"
            for position in range(len(prompt), len(tokens)):
                row = theirs[position - 1]
                gap = float(row.max() - row[tokens[position]])
                assert gap <= TIE, f"token {position} (prompt {len(prompt)}) is not the reference's; margin {gap:.2e}"

    def is_equal(self, path, model, prompts):
        """Whether our side agrees with transformers over these prompts and a few new tokens."""
        results = self.ours(model, prompts, num_new=2)
        try:
            self.compare(path, results, prompts)
        except AssertionError:
            return False
        return True


def merged(config, changes):
    """config.json with changes; "a.b" reaches into a nested object; None in a change is a JSON null."""
    result = json.loads(json.dumps(config))
    for key, value in changes.items():
        *parents, last = key.split(".")
        target = result
        for parent in parents:
            target = target[parent]
        assert last not in target or target[last] != value, f"{key} is {value!r} already: the change changes nothing"
        target[last] = value
    return result


def randomise(model):
    """Give every parameter values that matter: no ones, no zeros, scores and logits well spread."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(noise * 0.3 + parameter)
            elif "embed" in name or "wte" in name or "wpe" in name:
                parameter.copy_(noise * 0.6)
            else:
                attends = any(part in name for part in ("q_proj", "k_proj", "qkv", "query_key_value", "c_attn"))
                parameter.copy_(noise * (1.6 if attends else 1.0) / math.sqrt(parameter.shape[-1]))
        head = model.get_output_embeddings()
        if head is not None and head.weight is not model.get_input_embeddings().weight:
            head.weight.mul_(2.5)


def make_prompts(lengths, seed=0):
    """Random token sequences of these lengths."""
    source = random.Random(seed)
    return [[source.randrange(VOCAB) for _ in range(length)] for length in lengths]


@pytest.fixture(scope="session")
def harness(tmp_path_factory):
    """One harness per run, so that checkpoints and reference models are made once."""
    return Harness(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def all_prompts():
    """Twenty prompts of 1 to 200 tokens."""
    return make_prompts(PROMPT_LENGTHS)


@pytest.fixture(scope="session")
def few_prompts():
    """Enough to cross pages, chunks and windows."""
    return make_prompts((1, 17, 70, 130), seed=1)
