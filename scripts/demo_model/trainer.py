"""The loop both stages share: AdamW with a cosine rate, moving average, checkpoints one can resume from."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

LossFunction = Callable[[np.random.Generator], torch.Tensor]
WARMUP_STEPS = 100
LOG_EVERY = 100
SAVE_EVERY = 500


class Trainer:
    """Trains one module and keeps everything it needs to go on in one safetensors file.

    Each step draws from a generator seeded with (seed, step), so a resumed run sees what an unbroken one
    would have seen.
    """

    def __init__(
        self, module: nn.Module, groups: list[dict], path: Path, *, seed: int, steps: int, decay: float
    ) -> None:
        self.module, self.path, self.seed, self.steps, self.decay = module, path, seed, steps, decay
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-4)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.step = 0
        self.seconds = 0.0
        if path.exists():
            self._load()

    def run(self, loss_function: LossFunction) -> None:
        """Train up to `steps`, saving every SAVE_EVERY steps and at the end."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        recent: list[float] = []
        with Progress(*columns) as progress:
            task = progress.add_task(self.path.stem, total=self.steps, completed=self.step)
            while self.step < self.steps:
                started = time.monotonic()
                recent.append(self._one_step(loss_function))
                self.seconds += time.monotonic() - started
                progress.update(task, completed=self.step)
                if self.step % LOG_EVERY == 0:
                    mean = sum(recent) / len(recent)
                    progress.console.print(f"step {self.step}  {self.seconds:.0f} s  loss {mean:.4f}")
                    recent.clear()
                if self.step % SAVE_EVERY == 0 or self.step == self.steps:
                    self.save()

    def _one_step(self, loss_function: LossFunction) -> float:
        """One optimizer step; returns the loss."""
        warmup = min(1.0, (self.step + 1) / WARMUP_STEPS)
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * warmup * (0.02 + 0.98 * cosine)
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        loss = loss_function(np.random.default_rng([self.seed, self.step]))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        return loss.item()

    @torch.no_grad()
    def _update_average(self) -> None:
        """Follow the weights; faster at first, so that the start is forgotten."""
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        names = list(self.average)
        parameters = dict(self.module.named_parameters())
        torch._foreach_lerp_([self.average[n] for n in names], [parameters[n] for n in names], 1 - decay)

    def save(self) -> None:
        """Write weights, average and optimizer state, replacing the last checkpoint in one step."""
        tensors = {f"module.{n}": p.detach() for n, p in self.module.named_parameters()}
        tensors |= {f"average.{n}": p for n, p in self.average.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        tensors = {name: t.contiguous() for name, t in tensors.items()}
        meta = {"progress": json.dumps({"step": self.step, "seconds": self.seconds, "seed": self.seed})}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        save_file(tensors, partial, metadata=meta)
        partial.replace(self.path)

    def _load(self) -> None:
        """Take up the checkpoint at `path`."""
        with safe_open(self.path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
        if progress["seed"] != self.seed:
            raise ValueError(f"{self.path} was trained with seed {progress['seed']}")
        self.step, self.seconds = progress["step"], progress["seconds"]
        tensors = load_file(self.path)
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(tensors[f"module.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


@torch.no_grad()
def load_average(module: nn.Module, checkpoint: Path) -> None:
    """Fill a module with the moving average of a checkpoint: what is evaluated and shipped."""
    tensors = load_file(checkpoint)
    for name, parameter in module.named_parameters():
        parameter.copy_(tensors[f"average.{name}"])
