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
from quire.ops.sampling import TokenLogprobTensors, append_tokens, greedy, read_tokens
from quire.runner.device import Device
from quire.runner.errors import AllocationFailuresAsStepErrors
from quire.runner.input_batch import InputBatch, RunnerLimits
from quire.runner.kv_tensors import copy_pages, poison
from quire.runner.pending import PendingTokens, StepResults
from quire.runner.pooling import PooledRows
from quire.runner.prompt_logprobs import PromptPart, prompt_logprobs
from quire.runner.sampler import Greedy, SampledTensors, Sampler
from quire.runner.sampling_state import DrawColumns
from quire.runner.step_inputs import StepInputs


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
        self._pooled = PooledRows()
        self._graphs = device.graphs()
        self._plan: tuple[StepInputs, AttentionPlan] | None = None

    @property
    def kernel_seconds(self) -> float:
        """See `Device.kernel_seconds`."""
        return self._device.kernel_seconds()

    def launch(self, work: SchedulerOutput) -> PendingTokens:
        """Queue one step; does not wait for the device where that has a queue.

        Raises:
            StepError: when memory ran out. The rows of other requests are untouched; those of the step hold no valid
                result and must be freed.
        """
        with AllocationFailuresAsStepErrors(), self._device.computing():
            self._update_rows(work)
            pooling = self._pooled.lines(work)
            inputs = self._batch.build(work, pooling)
            hidden, sampled = self._decode(inputs) if inputs.last_tokens is None else self._mixed(inputs)
            asks = self._sampler.state.asks_for_prompt
            invalid = self._batch.invalid_rows
            results = StepResults(
                num_rows=len(work.rows),
                draw_index=inputs.draw_index,
                sampled=sampled,
                prompt=self._prompt_logprobs(work, inputs, hidden) if asks else (),
                pooled=self._pool(work, inputs, hidden, pooling) if pooling else (),
                invalid={line: invalid[row] for line, row in enumerate(work.rows) if row in invalid} if invalid else {},
            )
            return PendingTokens(results, self._device)

    @torch.inference_mode()
    def poison(self, pages: Sequence[int]) -> None:
        """Debug mode: fill freed pages with NaN, so that a read before the next write shows in the logits."""
        poison(self._kv, pages)

    def _update_rows(self, work: SchedulerOutput) -> None:
        """Apply a step's changes to the rows."""
        self._sampler.constrain(work.constraints)
        if work.freed_rows or work.new_rows or work.page_copies:
            self._change_rows(work)
        self._batch.extend(work)

    @torch.inference_mode()
    def _change_rows(self, work: SchedulerOutput) -> None:
        """Rows that end, then rows that start; `page_copies` touch no row."""
        self._sampler.remove(work.freed_rows)
        self._batch.start(work)
        self._sampler.add([new for new in work.new_rows if new.pooling is None])
        self._pooled.change(work)
        copy_pages(self._kv, work.page_copies)

    def _plan_for(self, inputs: StepInputs) -> AttentionPlan:
        """The plan of the step: the last one's where its inputs were advanced."""
        if self._plan is not None and self._plan[0] is inputs:
            plan = self._backend.advance(self._plan[1], inputs.attention)
        else:
            plan = self._backend.plan(inputs.attention)
        self._plan = inputs, plan
        return plan

    def _decode(self, inputs: StepInputs) -> tuple[Tensor, SampledTensors]:
        """A step whose every token is its row's last: hidden states [T, E], and what was drawn and stored in the rows.

        No torch function runs where the pass is replayed and its rows want nothing but their largest logit, or a draw.
        """
        step, run, draws = (self._plan_for(inputs), inputs.places, inputs.positions), self._graphs.run, inputs.draws
        if self._sampler.only_draws:
            columns = self._sampler.state.columns(draws.rows)
            hidden, ids, largest = run("drawn", *step, draws.position_index, *columns, forward=self._drawn)
            return hidden, SampledTensors(ids, largest)
        hidden, logits, ids, largest = run("decode", *step, forward=self._decoded)
        if self._sampler.takes_largest:
            return hidden, SampledTensors(ids, largest)
        return hidden, self._draw(logits, inputs, Greedy(ids, largest))

    @torch.inference_mode()
    def _mixed(self, inputs: StepInputs) -> tuple[Tensor, SampledTensors | None]:
        """A step with tokens that draw nothing: the same, for the rows that reached their last token."""
        (hidden,) = self._hidden(self._plan_for(inputs), inputs.places, inputs.positions)
        if inputs.last_tokens is None or not inputs.draw_index.size:
            return hidden, None
        logits = self._model.logits(hidden.index_select(0, inputs.last_tokens))  # [R, V]
        return hidden, self._draw(logits, inputs, Greedy(*greedy(logits)))

    @torch.inference_mode()
    def _draw(self, logits: Tensor, inputs: StepInputs, found: Greedy) -> SampledTensors:
        sampled = self._sampler.sample(logits, inputs.draws, found)
        self._batch.store(inputs.draws, sampled.ids)
        return sampled

    @torch.inference_mode()
    def _prompt_logprobs(
        self, work: SchedulerOutput, inputs: StepInputs, hidden: Tensor
    ) -> list[tuple[PromptPart, TokenLogprobTensors]]:
        state, logits = self._sampler.state, self._model.logits
        return prompt_logprobs(work, inputs, hidden, state=state, batch=self._batch, logits=logits)

    @torch.inference_mode()
    def _pool(
        self, work: SchedulerOutput, inputs: StepInputs, hidden: Tensor, lines: Sequence[int]
    ) -> list[tuple[int, Tensor]]:
        return self._pooled.pool(work, lines, inputs.first_tokens, hidden)

    @torch.inference_mode()
    def _decoded(self, plan: AttentionPlan, places: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """Hidden states, logits, the largest one's id, which is appended to the row, and the largest."""
        (hidden,) = self._hidden(plan, places, positions)
        logits = self._model.logits(hidden)
        ids, largest = greedy(logits)
        append_tokens(self._batch.flat_tokens, places, ids)
        return hidden, logits, ids, largest

    @torch.inference_mode()
    def _drawn(
        self, plan: AttentionPlan, places: Tensor, positions: Tensor, draw_positions: Tensor, *columns: Tensor
    ) -> tuple[Tensor, ...]:
        """Hidden states, the ids drawn, which are appended to the rows, and the largest logits."""
        (hidden,) = self._hidden(plan, places, positions)
        logits = self._model.logits(hidden)
        _, largest = greedy(logits)
        ids = DrawColumns(*columns).draw(logits, draw_positions)
        append_tokens(self._batch.flat_tokens, places, ids)
        return hidden, ids, largest

    def _hidden(self, plan: AttentionPlan, places: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        return self._graphs.run("hidden", plan, places, positions, forward=self._forward)

    @torch.inference_mode()
    def _forward(self, plan: AttentionPlan, places: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        token_ids = read_tokens(self._batch.flat_tokens, places)
        return (self._model(token_ids, positions, kv=self._kv, plan=plan),)
