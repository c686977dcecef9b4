"""Four receivers around a site hear one transmitter: complex samples with delays, path loss, echoes and noise.

What is simulated, and what is drawn anew for each transmission, stands in the model's card.
"""

from dataclasses import dataclass

import numpy as np

LIGHT_M_S = 299_792_458.0
SAMPLE_RATE_HZ = 10e6
SAMPLES = 256  # of each receiver: 25.6 microseconds
PERIOD = 2 * SAMPLES  # of the random signal; longer than samples and delays together, so that it is never seen twice
RECEIVERS_M = np.array([(-620.0, -540.0), (580.0, -610.0), (640.0, 560.0), (-560.0, 630.0)])  # east, north
HALF_SIDE_M = 600.0  # of the square, around the origin, that transmitters are in

NEAR_M = 10.0  # no receiver is nearer
SNR_AT_REFERENCE_DB = (14.0, 34.0)  # of the transmitter's power at REFERENCE_M in the open, uniform
REFERENCE_M = 500.0
EXPONENT = (2.7, 3.3)  # of path loss with distance, uniform
SHADOWING_DB = 6.0  # standard deviation, each link its own
BANDWIDTH_HZ = (2e6, 8e6)  # of the signal, uniform
ECHOES = 3  # of each link
ECHO_DB = (-20.0, -4.0)  # of an echo against the free direct path, uniform
ECHO_DELAY_S = 0.3e-6  # mean of the exponential distribution behind the direct path
OBSTRUCTED, OBSTRUCTION_DB = 0.15, 10.0  # share of links whose direct path is weaker by so much
CLOCK_S = 10e-9  # standard deviation of each receiver's clock
GAIN_DB = 1.0  # standard deviation of each receiver's gain
CHUNK = 256  # transmissions simulated at a time, for the cache's sake


@dataclass(frozen=True, slots=True)
class Heard:
    """`iq`: float32 [items, receivers, samples, 2], unit: the noise's standard deviation; `truth_m`: [items, 2], east
    and north of the origin."""

    iq: np.ndarray
    truth_m: np.ndarray


def simulate(rng: np.random.Generator, count: int) -> Heard:
    """So many transmissions from uniformly random places."""
    truth = rng.uniform(-HALF_SIDE_M, HALF_SIDE_M, (count, 2))
    parts = [_samples(rng, truth[start : start + CHUNK]) for start in range(0, count, CHUNK)]
    return Heard(np.concatenate(parts), truth)


def power_centroid(iq: np.ndarray) -> np.ndarray:
    """The mean of the receivers' places weighted by the power that each received, metres [items, 2]: the baseline."""
    power = np.square(iq, dtype=np.float64).mean(axis=(2, 3))
    return power @ RECEIVERS_M / power.sum(axis=1, keepdims=True)


def _samples(rng: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    distance = np.maximum(np.linalg.norm(truth[:, None] - RECEIVERS_M, axis=2), NEAR_M)
    spectrum = _signal(rng, len(truth))[:, None] * _channel(rng, distance)
    received = np.fft.ifft(spectrum)[..., :SAMPLES] * _amplitude(rng, distance)[..., None]
    noise = rng.standard_normal((*distance.shape, SAMPLES, 2), np.float32)
    iq = np.stack([received.real, received.imag], axis=-1) + noise / np.sqrt(2)
    return (iq * _decibels(rng.normal(0, GAIN_DB, distance.shape))[..., None, None]).astype(np.float32)


def _signal(rng: np.random.Generator, count: int) -> np.ndarray:
    """Spectra of noise-like signals of mean power 1, each flat within a band of its own width, [items, PERIOD]."""
    width = rng.uniform(*BANDWIDTH_HZ, (count, 1))
    band = np.abs(_frequencies()) < width / 2
    lines = _complex_normal(rng, (count, PERIOD)) * band
    return lines * (PERIOD / np.sqrt(np.sum(np.abs(lines) ** 2, axis=1, keepdims=True)))


def _channel(rng: np.random.Generator, distance: np.ndarray) -> np.ndarray:
    """What each link does to each line of the spectrum, beside its loss: [items, receivers, PERIOD]."""
    links = (*distance.shape, ECHOES)
    delay = distance / LIGHT_M_S + rng.normal(0, CLOCK_S, distance.shape)
    behind = np.concatenate([np.zeros((*distance.shape, 1)), rng.exponential(ECHO_DELAY_S, links)], axis=2)
    direct = _decibels(-OBSTRUCTION_DB * (rng.random((*distance.shape, 1)) < OBSTRUCTED))
    size = np.concatenate([direct, _decibels(rng.uniform(*ECHO_DB, links))], axis=2)
    # The carrier's phase turns once in each of its short wavelengths, and the receivers' oscillators are free.
    phase = np.exp(2j * np.pi * rng.random(size.shape))
    turns = _frequencies() * (delay[..., None] + behind)[..., None]
    return np.einsum("irp,irpf->irf", (size * phase).astype(np.complex64), np.exp((-2j * np.pi * turns).astype("c8")))


def _amplitude(rng: np.random.Generator, distance: np.ndarray) -> np.ndarray:
    """The signal's amplitude at each receiver, where the noise's is 1."""
    one_each = (len(distance), 1)
    snr = rng.uniform(*SNR_AT_REFERENCE_DB, one_each)
    loss = 10 * rng.uniform(*EXPONENT, one_each) * np.log10(distance / REFERENCE_M)
    return _decibels(snr - loss + rng.normal(0, SHADOWING_DB, distance.shape))


def _frequencies() -> np.ndarray:
    return np.fft.fftfreq(PERIOD, 1 / SAMPLE_RATE_HZ)


def _decibels(value: np.ndarray) -> np.ndarray:
    """As a factor of amplitude."""
    return 10.0 ** (value / 20)


def _complex_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal((*shape, 2), np.float32).view(np.complex64)[..., 0]
