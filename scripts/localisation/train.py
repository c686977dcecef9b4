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
CALIBRATION_BINS = 10
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
    calibrate(network, arguments.seed)
    notes = {"trained": f"seed {arguments.seed}, {arguments.steps} steps"}
    export(network, arguments.output / "model.onnx", notes)


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


@torch.no_grad()
def calibrate(network: Network, seed: int) -> None:
    """Make the 68 % ellipses hold 68 % of fresh truths, be they small or large.

    Errors have longer tails than a normal distribution, and the longer the less sure the network is. So a standard
    deviation becomes a factor times a power of itself: the power makes the shares of small and large ellipses equal,
    the factor makes them right.
    """
    features, truth = _tensors(simulate(np.random.default_rng([seed, CALIBRATION_STREAM]), CALIBRATION_COUNT))
    prediction = network(features)
    distance2, log_size = prediction.distance2(truth), prediction.sigma_m.log().mean(1)
    bins = torch.tensor_split(log_size.argsort(), CALIBRATION_BINS)
    log_factors = [math.log(_factor(distance2[part])) for part in bins]
    power = 1 + float(np.polyfit([log_size[part].mean().item() for part in bins], log_factors, 1)[0])
    network.log_sigma = network.log_sigma.changed(1, power)
    factor = _factor(network(features).distance2(truth))
    network.log_sigma = network.log_sigma.changed(factor, 1)
    print(f"each standard deviation becomes {factor:.3f} times its power of {power:.3f}")


def _factor(distance2: torch.Tensor) -> float:
    """Of standard deviations, with which their ellipses hold CALIBRATED_SHARE of the truths at these distances."""
    return math.sqrt(torch.quantile(distance2, CALIBRATED_SHARE).item() / (-2 * math.log1p(-CALIBRATED_SHARE)))


def _scaling(seed: int) -> Scaling:
    features, _ = _tensors(simulate(np.random.default_rng([seed, SCALING_STREAM]), SCALING_COUNT))
    return Scaling(features.mean(0), features.std(0))


def _tensors(heard: Heard) -> tuple[torch.Tensor, torch.Tensor]:
    params = IqParams(folder=MODEL, receivers=len(RECEIVERS_M), samples=SAMPLES, lags=LAGS)
    features = iq_features({"iq": heard.iq}, params)["features"]
    return torch.from_numpy(features), torch.from_numpy(heard.truth_m).float()


if __name__ == "__main__":
    main()
