"""Runs one step on the device: rows updated, forward pass, tokens drawn. It chooses nothing.

`launch` queues a step and `PendingTokens.wait` brings its tokens to the host. A second step may be launched before the
first is waited for: its decode rows read their input tokens from the rows, where the first step's draw put them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from quire.attention.interface import AttentionBackend, AttentionPlan
from quire.base.step import SchedulerOutput
from quire.ops.sampling import greedy
from quire.runner.device import Device
from quire.runner.errors import allocation_failures_as_step_errors
from quire.runner.input_batch import InputBatch, RunnerLimits, StepInputs
from quire.runner.kv_tensors import copy_pages, poison
from quire.runner.pending import PendingTokens, StepResults
from quire.runner.prompt_logprobs import prompt_logprobs
from quire.runner.sampler import Greedy, SampledTensors, Sampler


class RunnableModel(Protocol):
    """What a runner needs of a model; `layers.decoder.CausalLM` says what it computes."""

    def __call__(self, token_ids: Tensor, positions: Tensor, *, kv: Sequence[Tensor], plan: AttentionPlan) -> Tensor:
        """Hidden states [T, E] of token_ids, positions [T] int64; writes K and V into `kv`."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token: hidden [R, E] → float32 [R, V], a tensor the caller may overwrite."""


class ModelRunner:
    """A model on a device, and the rows it runs."""

    def __init__(
        self,
        model: RunnableModel,
        *,
        backend: AttentionBackend,
        device: Device,
        kv: Sequence[Tensor],
        limits: RunnerLimits,
    ) -> None:
        self._model = model
        self._backend = backend
        self._device = device
        self._kv = kv
        self._batch = InputBatch(limits, device)
        self._sampler = Sampler(device=device, max_num_seqs=limits.max_num_seqs, vocab_size=limits.vocab_size)
        self._graphs = device.graphs()

    @property
    def kernel_seconds(self) -> float:
        """See `Device.kernel_seconds`."""
        return self._device.kernel_seconds()

    @torch.inference_mode()
    def launch(self, work: SchedulerOutput) -> PendingTokens:
        """Queue one step; does not wait for the device where that has a queue.

        Raises:
            StepError: when memory ran out. The rows of other requests are untouched; those of the step hold no valid
                result and must be freed.
        """
        with allocation_failures_as_step_errors(), self._device.computing():
            self._update_rows(work)
            copy_pages(self._kv, work.page_copies)
            inputs = self._batch.build(work)
            hidden, sampled = self._run(inputs)
            prompt = prompt_logprobs(
                work, inputs, hidden, state=self._sampler.state, batch=self._batch, logits=self._model.logits
            )
            invalid = self._batch.invalid_rows
            results = StepResults(
                num_rows=len(work.rows),
                draw_index=inputs.draw_index,
                sampled=sampled,
                prompt=prompt,
                invalid={line: invalid[row] for line, row in enumerate(work.rows) if row in invalid} if invalid else {},
            )
            return PendingTokens(results, self._device)

    @torch.inference_mode()
    def poison(self, pages: Sequence[int]) -> None:
        """Debug mode: fill freed pages with NaN, so that a read before the next write shows in the logits."""
        poison(self._kv, pages)

    def _update_rows(self, work: SchedulerOutput) -> None:
        """Apply a step's changes to the rows, those that end first; `page_copies` touch no row and follow."""
        self._sampler.remove(work.freed_rows)
        self._batch.apply(work)
        self._sampler.add(work.new_rows)

    def _run(self, inputs: StepInputs) -> tuple[Tensor, SampledTensors | None]:
        """Hidden states [T, E], and what was drawn for the rows that reached their last token and stored in them."""
        plan = self._backend.plan(inputs.attention)
        if inputs.last_tokens is None:
            hidden, logits, ids, largest = self._graphs.run(
                "decode", inputs.token_ids, inputs.positions, plan, forward=self._decode
            )
            return hidden, self._sample(logits, inputs, Greedy(ids, largest))
        (hidden,) = self._hidden(inputs.token_ids, inputs.positions, plan)
        if not inputs.draw_index.size:
            return hidden, None
        logits = self._model.logits(hidden.index_select(0, inputs.last_tokens))  # [R, V]
        return hidden, self._sample(logits, inputs, Greedy(*greedy(logits)))

    def _sample(self, logits: Tensor, inputs: StepInputs, found: Greedy) -> SampledTensors:
        sampled = self._sampler.sample(logits, inputs.draws, found)
        self._batch.store(inputs.draws, sampled.ids)
        return sampled

    def _decode(self, token_ids: Tensor, positions: Tensor, plan: AttentionPlan) -> tuple[Tensor, ...]:
        """A pass whose every token is its row's last: hidden states, logits, the largest one's id and the largest."""
        (hidden,) = self._hidden(token_ids, positions, plan)
        logits = self._model.logits(hidden)
        return hidden, logits, *greedy(logits)

    def _hidden(self, token_ids: Tensor, positions: Tensor, plan: AttentionPlan) -> tuple[Tensor, ...]:
        return self._graphs.run("hidden", token_ids, positions, plan, forward=self._forward)

    def _forward(self, token_ids: Tensor, positions: Tensor, plan: AttentionPlan) -> tuple[Tensor, ...]:
        return (self._model(token_ids, positions, kv=self._kv, plan=plan),)
