"""The training loop: deterministic, with checkpoints that a killed run resumes from.

Knows: steps, optimisers, checkpoints. Does not know: tasks, evaluation.
"""

from __future__ import annotations

import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tools.tiny_model.data import Batch, step_batches
from tools.tiny_model.model import TinyLlama
from tools.tiny_model.optim import Muon
from tools.tiny_model.recipe import Recipe
from tools.tiny_model.tokenizer import Encoder
from torch import Tensor


def pick_device() -> torch.device:
    """Returns the accelerator if there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _worker_pool(device: torch.device) -> ThreadPoolExecutor:
    """Returns workers of one thread each: they share two cores with other programs far better
    than one operation split over both, whose parts would wait for each other."""
    count = 1 if device.type == "cuda" else min(2, os.cpu_count() or 1)
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


class Trainer:
    """One run of a recipe, from its last checkpoint if the folder holds one."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, folder: Path) -> None:
        torch.use_deterministic_algorithms(True)
        # The optimisers run in this thread.
        torch.set_num_threads(1)
        self.recipe = recipe
        self.encoder = Encoder(tokenizer)
        self.device = pick_device()
        if self.device.type == "cuda":
            # What deterministic matrix products demand.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            # Their backward passes add up in any order.
            torch.backends.cuda.enable_flash_sdp(False)
            torch.backends.cuda.enable_mem_efficient_sdp(False)
        self.workers = _worker_pool(self.device)
        self.checkpoint = folder / f"{recipe.name}.checkpoint.pt"
        folder.mkdir(parents=True, exist_ok=True)
        self.model = TinyLlama(recipe.model, recipe.seed).to(self.device)
        matrices = [p for n, p in self.model.named_parameters() if p.dim() == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.dim() == 1 or "embed" in n]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay, workers=self.workers),
            torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.step = 0
        self.wall_seconds = 0.0
        self.cpu_seconds = 0.0
        if self.checkpoint.exists():
            self._load()

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]
        self.wall_seconds, self.cpu_seconds = state["wall_seconds"], state["cpu_seconds"]

    def save(self) -> None:
        """Writes the checkpoint, in place of the last one, all at once."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            # The data of a step follow from seed and step, so this is the data position too.
            "step": self.step,
            "wall_seconds": self.wall_seconds,
            "cpu_seconds": self.cpu_seconds,
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)

    def _gradients(self, batch: Batch, learned_in_step: int) -> tuple[float, tuple[Tensor, ...]]:
        hidden, _ = self.model.hidden(batch.ids.to(self.device), batch.positions.to(self.device))
        targets = batch.targets.to(self.device)
        # Only learned positions go through the output layer, which saves half of its work.
        learned = targets >= 0
        logits = self.model.logits(hidden[learned])
        loss = F.cross_entropy(logits, targets[learned], reduction="sum") / learned_in_step
        return loss.item(), torch.autograd.grad(loss, list(self.model.parameters()))

    def train_step(self) -> float:
        """Does one step and returns its loss per learned token."""
        recipe = self.recipe
        # Launches cost more than padding on a GPU, so there all conversations share one batch.
        batches = step_batches(
            recipe.seed,
            self.step,
            recipe.mixture,
            self.encoder,
            recipe.tokens_per_step,
            one_batch=self.device.type == "cuda",
        )
        learned = sum(int((b.targets >= 0).sum()) for b in batches)
        parts = self.workers.map(lambda batch: self._gradients(batch, learned), batches)
        total = 0.0
        # Added up in the order of the batches, whichever worker is done first.
        for loss, gradients in parts:
            total += loss
            for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        factor = recipe.rate_factor(self.step)
        for optimizer, peak in zip(self.optimizers, (recipe.matrix_rate, recipe.other_rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    def run(self) -> None:
        """Trains to the recipe's last step, saving on the way."""
        recent: list[float] = []
        while self.step < self.recipe.steps:
            wall, cpu = time.monotonic(), _cpu_seconds()
            recent.append(self.train_step())
            self.wall_seconds += time.monotonic() - wall
            self.cpu_seconds += _cpu_seconds() - cpu
            if self.step % 20 == 0:
                mean = sum(recent) / len(recent)
                print(
                    f"{self.recipe.name} step {self.step} loss {mean:.4f} wall {self.wall_seconds:.0f} s "
                    f"cpu {self.cpu_seconds:.0f} s",
                    flush=True,
                )
                recent.clear()
            if self.step % self.recipe.checkpoint_every == 0 or self.step == self.recipe.steps:
                self.save()
