"""Train the localisation model on simulated receivers, calibrate its uncertainty, and export it to ONNX."""

import argparse
import math
from pathlib import Path

import numpy as np
import torch

from instructors.processing.localisation import IqParams, iq_features
from scripts.demo_model.trainer import Trainer, load_average
from scripts.localisation.network import Network, Scaling, export
from scripts.localisation.simulator import RECEIVERS_M, SAMPLES, Heard, simulate

MODEL = Path("models/localisation/1")
SEED = 1
STEPS = 4_000
BATCH = 512  # transmissions a step, each simulated anew and seen once
LEARNING_RATE = 1.5e-3
AVERAGE_DECAY = 0.998
LAGS = 64  # the receivers furthest apart are 56 samples of light apart
SCALING_COUNT = 4_096
CALIBRATION_COUNT = 20_000
CALIBRATED_SHARE = 0.68
# Streams of random numbers beside the training's own, which are (seed, step).
SCALING_STREAM, CALIBRATION_STREAM = 1_000_001, 1_000_002


def main() -> None:
    """Training goes on from its last checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m scripts.localisation.train")
    parser.add_argument("--work", type=Path, default=Path("out/localisation"), help="folder of the checkpoint")
    parser.add_argument("--output", type=Path, default=MODEL, help="folder to export to, default %(default)s")
    parser.add_argument("--steps", type=int, default=STEPS, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=SEED, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, default %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network = train(arguments.work / "network.safetensors", seed=arguments.seed, steps=arguments.steps)
    factor = calibrate(network, arguments.seed)
    print(f"standard deviations times {factor:.3f}")
    notes = {"trained": f"seed {arguments.seed}, {arguments.steps} steps", "sigma_factor": f"{factor:.4f}"}
    export(network, factor, arguments.output / "model.onnx", notes)


def train(path: Path, *, seed: int, steps: int) -> Network:
    """The network with the moving average of its weights. `path`: of the checkpoint."""
    torch.manual_seed(seed)
    network = Network(_scaling(seed))
    groups = [{"params": list(network.parameters()), "lr": LEARNING_RATE}]
    trainer = Trainer(network, groups, path, seed=seed, steps=steps, decay=AVERAGE_DECAY)

    def loss(rng: np.random.Generator) -> torch.Tensor:
        features, truth = _tensors(simulate(rng, BATCH))
        return network(features).nll(truth).mean()

    trainer.run(loss)
    load_average(network, path)
    return network


def calibrate(network: Network, seed: int) -> float:
    """The factor of all standard deviations with which the 68 % ellipses hold 68 % of fresh truths."""
    features, truth = _tensors(simulate(np.random.default_rng([seed, CALIBRATION_STREAM]), CALIBRATION_COUNT))
    with torch.no_grad():
        distance2 = network(features).distance2(truth)
    held = torch.quantile(distance2, CALIBRATED_SHARE).item()
    return math.sqrt(held / (-2 * math.log1p(-CALIBRATED_SHARE)))


def _scaling(seed: int) -> Scaling:
    features, _ = _tensors(simulate(np.random.default_rng([seed, SCALING_STREAM]), SCALING_COUNT))
    return Scaling(features.mean(0), features.std(0))


def _tensors(heard: Heard) -> tuple[torch.Tensor, torch.Tensor]:
    params = IqParams(folder=MODEL, receivers=len(RECEIVERS_M), samples=SAMPLES, lags=LAGS)
    features = iq_features({"iq": heard.iq}, params)["features"]
    return torch.from_numpy(features), torch.from_numpy(heard.truth_m).float()


if __name__ == "__main__":
    main()
