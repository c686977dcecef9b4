"""Measure the localisation model on fresh simulated transmissions: errors in metres, and whether its ellipses hold."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from instructors import manifest, processing
from scripts.localisation.simulator import Heard, power_centroid, simulate

MODEL = Path("models/localisation/1")
SHARES = (0.68, 0.95)


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python -m scripts.localisation.evaluate")
    parser.add_argument("--model", type=Path, default=MODEL, help="default %(default)s")
    parser.add_argument("--count", type=int, default=20_000, help="number of transmissions, default %(default)s")
    parser.add_argument("--seed", type=int, default=1234, help="default %(default)s")
    arguments = parser.parse_args()
    heard = simulate(np.random.default_rng(arguments.seed), arguments.count)
    print(json.dumps(evaluate(arguments.model, heard), indent=1))


def predict(folder: Path, iq: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a model with its manifest's preprocessing, on one CPU thread."""
    values = processing.chain(manifest.read(folder).preprocess, folder).run({"iq": iq}, {})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"features": values["features"]}), strict=True))


def evaluate(folder: Path, heard: Heard) -> dict[str, Any]:
    """Errors in metres, of the model and of the baseline; minus the log-likelihood per truth, in nats with densities
    per square metre, with the model's covariances and with the one constant covariance that fits these errors best; the
    share of truths in the ellipses, overall and by quartile of the predicted error, the surest first."""
    outputs = predict(folder, heard.iq)
    away = heard.truth_m - outputs["position_m"]
    own = Normal.of(outputs["sigma_m"], outputs["covariance_m2"])
    constant = Normal(np.broadcast_to(away.T @ away / len(away), own.matrix.shape))
    distance2 = own.distance2(away)
    quartiles = np.array_split(np.argsort(np.hypot(*outputs["sigma_m"].T)), 4)
    held = {share: distance2 <= -2 * np.log1p(-share) for share in SHARES}
    error = np.linalg.norm(away, axis=1)
    return {
        "count": len(error),
        "error_m": _summary(error),
        "centroid_error_m": _summary(np.linalg.norm(heard.truth_m - power_centroid(heard.iq), axis=1)),
        "nll": float(own.nll(away).mean()),
        "nll_constant_covariance": float(constant.nll(away).mean()),
        "held": {str(share): float(inside.mean()) for share, inside in held.items()},
        "held_by_quartile": {
            str(share): [float(inside[part].mean()) for part in quartiles] for share, inside in held.items()
        },
        "median_error_by_quartile_m": [float(np.median(error[part])) for part in quartiles],
    }


@dataclass(frozen=True, slots=True)
class Normal:
    """Normal distributions around zero; `matrix`: their covariances, square metres [items, 2, 2]."""

    matrix: np.ndarray

    @classmethod
    def of(cls, sigma: np.ndarray, covariance: np.ndarray) -> "Normal":
        """From standard deviations [items, 2] and covariances [items]."""
        east, north = np.square(sigma, dtype=np.float64).T
        return cls(np.stack([east, covariance, covariance, north], axis=1).reshape(-1, 2, 2))

    def distance2(self, away: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distances, [items]."""
        return np.einsum("ni,ni->n", away, np.linalg.solve(self.matrix, away[..., None])[..., 0])

    def nll(self, away: np.ndarray) -> np.ndarray:
        """Minus the logarithm of the densities, [items]."""
        return self.distance2(away) / 2 + np.log(np.linalg.det(self.matrix)) / 2 + np.log(2 * np.pi)


def _summary(error: np.ndarray) -> dict[str, float]:
    return {"median": float(np.median(error)), "mean": float(error.mean()), "p95": float(np.quantile(error, 0.95))}


if __name__ == "__main__":
    main()
