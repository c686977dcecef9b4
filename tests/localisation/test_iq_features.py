"""The step `iq_features`: power and time differences come through, and what is no signal is refused."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructors import processing
from instructors.processing.localisation import BELS_MIN
from protocol.errors import InvalidRequest, ModelInvalid

RECEIVERS, SAMPLES, LAGS = 3, 64, 10
PAIRS = list(combinations(range(RECEIVERS), 2))
WIDTH = 2 * LAGS + 1
MANIFEST = {"step": "iq_features", "receivers": RECEIVERS, "samples": SAMPLES, "lags": LAGS}


def features(iq: Any, **manifest: Any) -> np.ndarray:
    values = processing.chain([{**MANIFEST, **manifest}], Path("model")).run({"iq": iq}, {})
    assert list(values) == ["features"]
    assert values["features"].dtype == np.float32
    return values["features"]


def parts(found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Power [items, receivers], correlation [items, pairs, lags], phase [items, pairs] as complex numbers."""
    power, rest = found[:, :RECEIVERS], found[:, RECEIVERS:]
    correlation = rest[:, : len(PAIRS) * WIDTH].reshape(-1, len(PAIRS), WIDTH)
    cosine, sine = np.split(rest[:, len(PAIRS) * WIDTH :], 2, axis=1)
    return power, correlation, cosine + 1j * sine


def noise(items: int, seed: int = 0) -> np.ndarray:
    """Independent complex noise, [items, receivers, samples]."""
    draws = np.random.default_rng(seed).standard_normal((2, items, RECEIVERS, SAMPLES))
    return draws[0] + 1j * draws[1]


def pack(signal: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    return np.stack([signal.real, signal.imag], axis=-1).astype(dtype)


def test_the_parts_are_what_their_definitions_say() -> None:
    signal = noise(5) * [[[1], [3], [0.2]]]
    power, correlation, phase = parts(features(pack(signal)))
    mean = np.mean(np.abs(signal) ** 2, axis=2)
    np.testing.assert_allclose(power, np.log10(mean / mean.mean(axis=1, keepdims=True)), atol=1e-5)
    for item in range(5):
        for pair, (i, j) in enumerate(PAIRS):
            cross = np.fft.fft(signal[item, i], 2 * SAMPLES) * np.fft.fft(signal[item, j], 2 * SAMPLES).conj()
            whole = np.fft.ifft(cross / np.abs(cross))
            wanted = np.array([whole[lag] for lag in range(-LAGS, LAGS + 1)])
            np.testing.assert_allclose(correlation[item, pair], np.abs(wanted), atol=1e-4)
            peak = wanted[np.abs(wanted).argmax()]
            assert phase[item, pair] == pytest.approx(peak / abs(peak), abs=1e-2)


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(-5, 5)] * RECEIVERS), st.tuples(*[st.floats(-3.1, 3.1)] * RECEIVERS))
def test_delays_and_phases_between_receivers_show(delays: tuple[int, ...], phases: tuple[float, ...]) -> None:
    source = noise(1, seed=7)[0].ravel()
    heard = [source[20 - delay :][:SAMPLES] * np.exp(1j * phase) for delay, phase in zip(delays, phases, strict=True)]
    _, correlation, turned = parts(features(pack(np.array([heard]))))
    for pair, (i, j) in enumerate(PAIRS):
        assert correlation[0, pair].argmax() - LAGS == delays[i] - delays[j]
        assert turned[0, pair] == pytest.approx(np.exp(1j * (phases[i] - phases[j])), abs=0.3)


def test_a_gain_of_all_receivers_changes_nothing_and_one_of_a_single_receiver_only_power() -> None:
    signal = noise(4)
    plain, louder = features(pack(signal)), features(pack(signal * 1000))
    np.testing.assert_allclose(louder, plain, atol=1e-5)
    nearer = features(pack(signal * [[[10], [1], [1]]]))
    power, before = parts(nearer)[0], parts(plain)[0]
    np.testing.assert_allclose((power[:, 0] - power[:, 1]) - (before[:, 0] - before[:, 1]), 2, atol=1e-4)  # 20 dB
    np.testing.assert_allclose(nearer[:, RECEIVERS:], plain[:, RECEIVERS:], atol=1e-4)


def test_items_do_not_touch_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    signal = pack(noise(7))
    whole = features(signal)
    monkeypatch.setattr("instructors.processing.localisation.CHUNK_ELEMENTS", 3 * RECEIVERS**2 * SAMPLES)
    np.testing.assert_allclose(features(signal), whole, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([features(signal[i : i + 1]) for i in range(7)]), whole, atol=1e-6)
    assert features(signal[:0]).shape == (0, whole.shape[1])


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.tuples(*[st.floats(-40, 38)] * RECEIVERS),
    st.sampled_from(["noise", "constant", "one sample", "tone"]),
)
def test_any_finite_signal_has_finite_features(dtype: Any, powers: tuple[float, ...], kind: str) -> None:
    shape = {
        "noise": noise(1)[0] / 8,
        "constant": np.ones((RECEIVERS, SAMPLES)),
        "one sample": np.eye(RECEIVERS, SAMPLES),
        "tone": np.exp(2j * np.pi * np.outer([0.1, 0.2, 0.3], np.arange(SAMPLES))),
    }[kind]
    limits = np.finfo(dtype)
    scale = np.clip(10.0 ** np.array(powers), float(limits.smallest_subnormal) * 16, float(limits.max) / 16)
    power, correlation, phase = parts(features(pack(shape[None] * scale[:, None], dtype)))
    assert np.isfinite(power).all()
    assert power.min() >= BELS_MIN
    assert power.max() <= np.log10(RECEIVERS) + 1e-6
    assert (correlation >= 0).all()
    assert correlation.max() <= 1 + 1e-5
    assert (np.abs(phase) <= 1 + 1e-5).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    iq = pack(noise(3))
    iq[2, 1, 5, 0] = bad
    with pytest.raises(InvalidRequest, match="NaN or infinity in item 2 at receiver 1"):
        features(iq)


def test_a_silent_receiver_is_refused() -> None:
    iq = pack(noise(3))
    iq[1, 2] = 0
    with pytest.raises(InvalidRequest, match="nothing but zeros in item 1 at receiver 2"):
        features(iq)


@pytest.mark.parametrize(
    "iq",
    [
        np.ones((2, RECEIVERS, SAMPLES), np.complex64),
        np.ones((2, RECEIVERS, SAMPLES, 2), np.int16),
        np.ones((2, RECEIVERS + 1, SAMPLES, 2), np.float32),
        np.ones((2, RECEIVERS, SAMPLES - 1, 2), np.float32),
        np.ones((RECEIVERS, SAMPLES, 2), np.float32),
        np.float32(1),
        np.zeros((), np.float32),
    ],
)
def test_another_shape_or_type_is_refused(iq: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"must be float \[items, 3, 64, 2\]|missing"):
        features(iq)


def test_a_missing_input_is_named() -> None:
    with pytest.raises(InvalidRequest, match="'iq' is missing"):
        processing.chain([MANIFEST], Path("model")).run({"features": np.ones((1, 2))}, {})


@pytest.mark.parametrize(
    "changed", [{"lags": SAMPLES}, {"receivers": 1}, {"samples": "64"}, {"receivers": 4.0}, {"rate": 1}]
)
def test_a_manifest_with_bad_parameters_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ModelInvalid, match="iq_features"):
        processing.chain([{**MANIFEST, **changed}], Path("model"))
