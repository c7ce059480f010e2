"""The training loop: deterministic, with checkpoints that a killed run resumes from.

Knows: steps, optimisers, checkpoints. Does not know: tasks, evaluation.
"""

from __future__ import annotations

import os
import resource
import time
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


def pick_device() -> torch.device:
    """Returns the accelerator if there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Trainer:
    """One run of a recipe, from its last checkpoint if the folder holds one."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer, folder: Path) -> None:
        torch.use_deterministic_algorithms(True)
        self.recipe = recipe
        self.encoder = Encoder(tokenizer)
        self.device = pick_device()
        if self.device.type == "cuda":
            # Their backward passes add up in any order.
            torch.backends.cuda.enable_flash_sdp(False)
            torch.backends.cuda.enable_mem_efficient_sdp(False)
        self.checkpoint = folder / f"{recipe.name}.checkpoint.pt"
        folder.mkdir(parents=True, exist_ok=True)
        self.model = TinyLlama(recipe.model, recipe.seed).to(self.device)
        matrices = [p for n, p in self.model.named_parameters() if p.dim() == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.dim() == 1 or "embed" in n]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=recipe.matrix_rate),
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

    def _save(self) -> None:
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

    def _loss_sum(self, batch: Batch) -> torch.Tensor:
        hidden, _ = self.model.hidden(batch.ids.to(self.device), batch.positions.to(self.device))
        targets = batch.targets.to(self.device)
        # Only learned positions go through the output layer, which saves half of its work.
        learned = targets >= 0
        return F.cross_entropy(self.model.logits(hidden[learned]), targets[learned], reduction="sum")

    def train_step(self) -> float:
        """Does one step and returns its loss per learned token."""
        recipe = self.recipe
        batches = step_batches(recipe.seed, self.step, recipe.weights, self.encoder, recipe.tokens_per_step)
        learned = sum(int((b.targets >= 0).sum()) for b in batches)
        total = 0.0
        for batch in batches:
            loss = self._loss_sum(batch) / learned
            loss.backward()
            total += loss.item()
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
                print(f"{self.recipe.name} step {self.step} loss {mean:.4f} wall {self.wall_seconds:.0f} s "
                      f"cpu {self.cpu_seconds:.0f} s", flush=True)
                recent.clear()
            if self.step % self.recipe.checkpoint_every == 0 or self.step == self.recipe.steps:
                self._save()
