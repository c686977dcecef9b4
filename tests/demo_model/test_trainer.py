"""A training that was interrupted goes on exactly where it stopped."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scripts.demo_model.trainer import Trainer, load_average

STEPS = 8


def trainer_of(path: Path, seed: int = 3) -> Trainer:
    torch.manual_seed(0)
    module = nn.Linear(4, 1)
    return Trainer(module, [{"params": list(module.parameters()), "lr": 0.1}], path, seed=seed, steps=STEPS, decay=0.9)


def run(trainer: Trainer, stop_at: int = STEPS) -> None:
    def loss(rng: np.random.Generator) -> torch.Tensor:
        if trainer.step == stop_at:
            trainer.save()
            raise KeyboardInterrupt
        inputs = torch.from_numpy(rng.normal(size=(16, 4)).astype(np.float32)) + 0.1 * torch.randn(16, 4)
        return (trainer.module(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()

    trainer.run(loss)


def test_resumed_training_equals_an_unbroken_one(tmp_path: Path) -> None:
    run(trainer_of(tmp_path / "unbroken.safetensors"))
    with pytest.raises(KeyboardInterrupt):
        run(trainer_of(tmp_path / "broken.safetensors"), stop_at=5)
    resumed = trainer_of(tmp_path / "broken.safetensors")
    assert resumed.step == 5
    run(resumed)

    averages = [nn.Linear(4, 1), nn.Linear(4, 1)]
    for module, name in zip(averages, ("unbroken", "broken"), strict=True):
        load_average(module, tmp_path / f"{name}.safetensors")
    assert torch.equal(averages[0].weight, averages[1].weight)
    assert torch.equal(averages[0].bias, averages[1].bias)


def test_a_checkpoint_of_another_seed_is_refused(tmp_path: Path) -> None:
    run(trainer_of(tmp_path / "run.safetensors"))
    with pytest.raises(ValueError, match="seed 3"):
        trainer_of(tmp_path / "run.safetensors", seed=4)
