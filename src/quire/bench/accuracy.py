"""What holding weights in fewer bits costs: each weight format of a model against its weights in full.

Every format reads the same texts, and each prediction's distribution over the vocabulary is compared with the one of
float32 weights. One model is in memory at a time; the float32 model's log-probabilities are kept beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.attention import select_backend
from quire.attention.interface import AttentionBatch
from quire.base.cpu_kernels import are_usable
from quire.base.errors import ConfigError
from quire.bench.documents import Document, windows
from quire.bench.report import percentile, table
from quire.layers.context import BuildContext
from quire.models.info import ModelInfo
from quire.models.loader import load_model
from quire.ops import sampling
from quire.ops.cpu.weights import FORMATS
from quire.quant.schemes import select_scheme
from quire.runner.kv_tensors import allocate

FULL = "float32"
_PAGE_SIZE = 16
_LOGIT_BYTES = 32 << 20
"""Of float32 logits that are worked on at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyLoad:
    """How much text, and in which formats it is read."""

    formats: tuple[str, ...] = tuple(name for name in FORMATS if name != FULL)
    tokens: int = 2048
    """Predictions to judge."""
    context: int = 512
    """Tokens of a text that a prediction may look back on."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse loads that judge nothing."""
        if self.tokens < 1 or self.context < 2:
            raise ConfigError("tokens must be at least 1 and the context at least 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatResult:
    """One weight format's predictions."""

    name: str
    perplexity: float
    """e to the mean of -log p(next token)."""
    divergence: float
    """Mean Kullback-Leibler divergence from the distribution of float32 weights, in nats."""
    divergence_p99: float
    logit_error: float
    """Root mean square of the difference of logits over that of the logits, both about their row's mean."""
    agreement: float
    """Share of predictions whose most likely token is the same."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyResult:
    """All formats of one run, float32 first."""

    model: str
    num_documents: int
    num_tokens: int
    """Predictions judged."""
    formats: list[FormatResult]


class Scorer:
    """A model with its weights in one format, which reads one text at a time."""

    def __init__(self, info: ModelInfo, weight_format: str, *, context: int) -> None:
        device = torch.device("cpu")
        self._backend = select_backend("cpu")
        scheme = select_scheme(weight_format, device=device, dtype=torch.float32)
        self._model = load_model(
            info,
            BuildContext(
                dtype=torch.float32, device=device, attention=self._backend, max_model_len=context, scheme=scheme
            ),
        )
        self._num_pages = -(-context // _PAGE_SIZE)
        self._kv = allocate(
            info.kv_layers,
            attention=self._backend,
            num_pages=self._num_pages,
            page_size=_PAGE_SIZE,
            dtype=torch.float32,
            device=device,
        )

    @torch.inference_mode()
    def log_probs(self, document: Document) -> Iterator[Tensor]:
        """Log-probabilities over the vocabulary for each token that counts, [n, V] float32, some at a time."""
        ids = torch.tensor(document.token_ids[:-1])
        slots = torch.arange(len(ids))
        batch = AttentionBatch(
            query_lens=[len(ids)],
            context_lens=[len(ids)],
            page_tables=torch.arange(self._num_pages, dtype=torch.int32)[None],
            slot_mapping=slots,
            page_size=_PAGE_SIZE,
        )
        hidden = self._model(ids, slots, kv=self._kv, plan=self._backend.plan(batch))
        hidden = hidden[len(ids) - document.num_judged :]
        first = self._model.logits(hidden[:1])
        for part in torch.split(hidden, max(1, _LOGIT_BYTES // (4 * first.shape[1]))):
            yield sampling.log_probs(self._model.logits(part))


class _Tally:
    """Sums over predictions of one format."""

    def __init__(self) -> None:
        self.surprise = 0.0
        self.divergences: list[float] = []
        self.error = self.power = 0.0
        self.equal = 0

    def add(self, found: Tensor, exact: Tensor, targets: Tensor) -> None:
        """Count n predictions: log-probabilities `found` and those of float32 weights [n, V], what came [n]."""
        self.surprise -= float(found.gather(1, targets[:, None]).double().sum())
        self.divergences += (exact.exp() * (exact - found)).sum(1).double().clamp(min=0).tolist()
        centred = exact - exact.mean(1, keepdim=True)
        self.error += float((found - found.mean(1, keepdim=True) - centred).square().sum(dtype=torch.float64))
        self.power += float(centred.square().sum(dtype=torch.float64))
        self.equal += int((found.argmax(1) == exact.argmax(1)).sum())

    def result(self, name: str, seconds: float) -> FormatResult:
        """The means."""
        count = len(self.divergences)
        return FormatResult(
            name=name,
            perplexity=math.exp(self.surprise / count),
            divergence=sum(self.divergences) / count,
            divergence_p99=percentile(self.divergences, 99),
            logit_error=math.sqrt(self.error / self.power) if self.power else 0.0,
            agreement=self.equal / count,
            seconds=seconds,
        )


def run_accuracy(
    info: ModelInfo, documents: Sequence[Document], load: AccuracyLoad, *, others: Sequence[ModelInfo] = ()
) -> AccuracyResult:
    """Compare formats, and `others`, checkpoints of the same model held in float32, on the documents' first tokens.

    Raises:
        ConfigError: a format that needs the kernels where they are not, texts without a prediction, ids that the model
            does not have.
        UnsupportedModelError, WeightError: a checkpoint that cannot be loaded.
    """
    if not are_usable():
        raise ConfigError(
            "weight formats are those of the CPU kernels, which are not in use; build them with a compiler"
        )
    if load.context > info.max_position:
        raise ConfigError(f"--context is {load.context}; {info.path} takes up to {info.max_position} tokens")
    texts = windows(documents, context=load.context, num_tokens=load.tokens)
    if not texts:
        raise ConfigError("no text holds two tokens, so there is nothing to predict")
    if max(max(text.token_ids) for text in texts) >= min(one.vocab_rows for one in (info, *others)):
        raise ConfigError("a text holds token ids that the model does not have; is it the tokenizer of another model?")
    exact: list[Tensor] = []
    results = [_judge(Scorer(info, FULL, context=load.context), texts, exact, name=FULL)]
    for name in load.formats:
        results.append(_judge(Scorer(info, name, context=load.context), texts, exact, name=name))
    for other in others:
        results.append(_judge(Scorer(other, FULL, context=load.context), texts, exact, name=other.path))
    num_tokens = sum(text.num_judged for text in texts)
    return AccuracyResult(model=info.path, num_documents=len(texts), num_tokens=num_tokens, formats=results)


def _judge(scorer: Scorer, texts: Sequence[Document], exact: list[Tensor], *, name: str) -> FormatResult:
    """Compare a scorer's predictions with `exact`; the first scorer fills it."""
    began, tally, is_first = time.perf_counter(), _Tally(), not exact
    beside = iter(exact)
    for text in texts:
        targets = torch.tensor(text.token_ids[-text.num_judged :])
        done = 0
        for found in scorer.log_probs(text):
            if is_first:
                exact.append(found)
            tally.add(found, found if is_first else next(beside), targets[done : done + len(found)])
            done += len(found)
    return tally.result(name, time.perf_counter() - began)


def describe(result: AccuracyResult) -> str:
    """The result as a table, a line per format."""
    rows = [
        [
            one.name, f"{one.perplexity:.4f}", f"{one.divergence:.3e}", f"{one.divergence_p99:.3e}",
            f"{one.logit_error:.3%}", f"{one.agreement:.2%}", one.seconds,
        ]
        for one in result.formats
    ]  # fmt: skip
    header = ["weights", "perplexity", "KL mean", "KL p99", "logit error", "same token", "seconds"]
    return (
        f"{result.model}: {result.num_tokens} predictions in {result.num_documents} texts\n\n"
        f"{table(header, rows)}\n\n"
        "KL: divergence of each prediction from that of float32 weights, in nats. logit error: root mean square over\n"
        "that of the logits, about their row's mean. same token: share of predictions with the same most likely token."
    )
