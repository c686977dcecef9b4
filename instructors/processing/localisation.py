"""Where a transmitter is: features of what several receivers heard, and the area that a position is uncertain by.

Step `iq_features`, before the model. Takes the tensor `iq`, float [items, receivers, samples, 2]: complex samples of
the same stretch of time at all receivers, first the in-phase, then the quadrature part. The unit is any that is
proportional to volts, the same for all receivers. Gives `features`, float32 [items, `features_count`]:

- for each receiver, its power over the mean of all receivers, in bels (log10), at least -6;
- for each pair of receivers (0, 1), (0, 2), … (1, 2), …: the magnitude, 0..1, of the generalised cross-correlation with
  phase transform (GCC-PHAT) at lags of -`lags` to `lags` samples; where it peaks at a positive lag, the signal reached
  the pair's first receiver later;
- cosine and, after those of all pairs, sine of each pair's phase at its strongest lag.

Nothing is normalised receiver by receiver: how the receivers differ in power and time is what tells the position.

Step `uncertainty_ellipse`, after the model. Takes of its outputs

- `position_m` [items, 2], east and north of the origin in metres, or `position_deg` [items, 2], latitude and longitude
  in degrees (WGS84), as the parameter `position` says;
- `sigma_m` [items, 2], standard deviations to the east and to the north in metres;
- `covariance_m2` [items] or [items, 1], of east and north in square metres.

East and north are those of the origin; of the position itself where that is in degrees. The tensors stay in the answer,
and each item's prediction gets `position {lat, lon}`, `confidence`, and `uncertainty` with

- `semi_major_m`, `semi_minor_m`, `area_m2`: the ellipse that holds the truth with the probability `confidence`;
- `rotation_deg`: the bearing of the longer axis, clockwise from true north at the position, 0 <= rotation_deg < 180;
- `confidence`: again, since the ellipse means nothing without it;
- `polygon`: a GeoJSON Polygon around it, or a MultiPolygon where the antimeridian cuts it in two.
"""

from itertools import combinations
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from instructors import processing
from instructors.processing import Params, Values, geodesy
from protocol.errors import InvalidRequest, ModelInvalid

CHUNK_ELEMENTS = 1 << 21  # complex numbers at work at a time
BELS_MIN = -6.0
# Below this share of a spectrum's highest line there is rounding, whose phase means nothing (float32 has 7 digits).
LINE_MIN = 1e-6

SIGMA_M_MIN = 1e-3
EXTENT_M_MAX = 1e6  # of offsets and ellipses; beyond, a flat map of the surroundings has lost its meaning
ROUND_MIN = 1e-6  # 1 - correlation squared; below it the ellipse is a line, as far as float32 can tell
VERTICES = 64  # of a polygon, at least; it lacks 0.16 % of the ellipse's area
VERTICES_MAX = 720
BEND_MAX = 0.005  # of the shorter axis: how far an edge may leave the ellipse because parallels are curved

Array = Any  # numpy array


class IqParams(Params):
    """`samples`: of each receiver; `lags`: the longest delay between two receivers that is looked at, in samples."""

    receivers: Annotated[int, Field(strict=True, ge=2, le=16)]
    samples: Annotated[int, Field(strict=True, ge=16, le=16_384)]
    lags: Annotated[int, Field(strict=True, ge=1)]

    @model_validator(mode="after")
    def _lags_fit(self) -> "IqParams":
        if self.lags >= self.samples:
            raise ValueError("lags must be smaller than samples")
        return self


def features_count(params: IqParams) -> int:
    """The length of `features`."""
    pairs = params.receivers * (params.receivers - 1) // 2
    return params.receivers + pairs * (2 * params.lags + 1 + 2)


def iq_features(values: Values, params: IqParams) -> Values:
    """The step. Raises InvalidRequest where `iq` has another shape or dtype, NaN or infinity, or a silent receiver."""
    iq = values.get("iq")
    peaks = _checked_peaks(iq, params)
    features = np.empty((len(peaks), features_count(params)), np.float32)
    chunk = max(1, CHUNK_ELEMENTS // (params.receivers**2 * params.samples))
    for start in range(0, len(peaks), chunk):
        part = slice(start, start + chunk)
        features[part] = _features(iq[part], peaks[part], params)  # type: ignore[index]
    return {**{name: value for name, value in values.items() if name != "iq"}, "features": features}


def _checked_peaks(iq: Array, params: IqParams) -> Array:
    """The largest absolute value of each receiver, [items, receivers], in the dtype of `iq`."""
    wanted = (params.receivers, params.samples, 2)
    shape = f"[items, {params.receivers}, {params.samples}, 2]"
    if not isinstance(iq, np.ndarray):
        raise InvalidRequest(f"The input 'iq' is missing: complex samples as float {shape}.")
    if iq.dtype.kind != "f" or iq.shape[1:] != wanted:
        raise InvalidRequest(f"The input 'iq' is {iq.dtype} {list(iq.shape)}; it must be float {shape}.")
    peaks = np.abs(iq).max(axis=(2, 3))  # NaN where there is one, infinity where there is one
    for problem, found in (("NaN or infinity", ~np.isfinite(peaks)), ("nothing but zeros", peaks == 0)):
        if found.any():
            item, receiver = np.argwhere(found)[0]
            raise InvalidRequest(f"The input 'iq' has {problem} in item {item} at receiver {receiver} (from 0).")
    return peaks


def _features(iq: Array, peaks: Array, params: IqParams) -> Array:
    """`features` of some items. Each receiver is scaled for the arithmetic's sake only; its power keeps the scale."""
    scaled = np.ascontiguousarray(iq / peaks[..., None, None], np.float32).view(np.complex64)[..., 0]
    return np.concatenate([_relative_power(scaled, peaks), *_correlations(scaled, params)], axis=1)


def _relative_power(scaled: Array, peaks: Array) -> Array:
    peak = np.log10(peaks.astype(np.float64))
    power = 2 * (peak - peak.max(axis=1, keepdims=True)) + np.log10(np.mean(np.abs(scaled) ** 2, axis=2))
    return np.maximum(power - np.log10(np.mean(10.0**power, axis=1, keepdims=True)), BELS_MIN)


def _correlations(scaled: Array, params: IqParams) -> tuple[Array, Array, Array]:
    """GCC-PHAT of all pairs: magnitudes, and cosines and sines at the strongest lags. Whitening each spectrum is the
    same as whitening the cross-spectra, and there are fewer of them."""
    length = 2 * params.samples  # zeros behind the samples, so that a delay shifts them out and not round
    spectra = np.fft.fft(scaled, length)
    lines = np.abs(spectra)
    heard = lines > LINE_MIN * lines.max(axis=2, keepdims=True)
    white = np.divide(spectra, lines, out=np.zeros_like(spectra), where=heard)
    first, second = np.array(list(combinations(range(params.receivers), 2))).T
    lags = np.arange(-params.lags, params.lags + 1) % length
    correlation = np.fft.ifft(white[:, first] * white[:, second].conj())[..., lags]
    size = np.abs(correlation)
    strongest = size.argmax(axis=2)[..., None]
    peak, at_peak = (np.take_along_axis(array, strongest, axis=2)[..., 0] for array in (correlation, size))
    phase = np.divide(peak, at_peak, out=np.zeros_like(peak), where=at_peak > 0)
    return size.reshape(len(size), -1), phase.real, phase.imag


class EllipseParams(Params):
    """`position`: which of the model's outputs says where. The origin, WGS84 degrees, is for metres only."""

    position: Literal["position_m", "position_deg"] = "position_m"
    confidence: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.68
    origin_lat: Annotated[float, Field(strict=True, ge=-90, le=90)] | None = None
    origin_lon: Annotated[float, Field(strict=True, ge=-180, le=180)] | None = None

    @model_validator(mode="after")
    def _origin_has_a_use(self) -> "EllipseParams":
        if self.position == "position_deg" and (self.origin_lat, self.origin_lon) != (None, None):
            raise ValueError("the model gives positions in degrees, so that there is no origin")
        return self


def uncertainty_ellipse(values: Values, params: EllipseParams) -> Values:
    """The step. Raises InvalidRequest where nobody gave an origin; ModelInvalid where the model's outputs are not those
    named above, leave the earth, or are no position and covariance (not finite, not positive-definite)."""
    place = _output(values, params.position, (2,))
    sigma = _output(values, "sigma_m", (2,))
    covariance = _output(values, "covariance_m2", ())
    _check_covariance(sigma, covariance)
    lat, lon, turn = _position(place, params)
    semi_axes, rotation = _ellipse(sigma, covariance, params.confidence)
    bearing = rotation + turn
    rings = _rings(lat, lon, semi_axes, bearing)
    degrees = np.degrees(bearing) % 180
    degrees[degrees == 180] = 0  # the remainder of a tiny negative angle
    area = np.pi * semi_axes.prod(axis=1)
    uncertainty = [
        {
            "semi_major_m": major,
            "semi_minor_m": minor,
            "rotation_deg": angle,
            "confidence": params.confidence,
            "area_m2": size,
            "polygon": geodesy.area(*ring),
        }
        for (major, minor), angle, size, ring in zip(
            semi_axes.tolist(), degrees.tolist(), area.tolist(), rings, strict=True
        )
    ]
    position = [{"lat": north, "lon": east} for north, east in zip(lat.tolist(), lon.tolist(), strict=True)]
    told = {"position": position, "uncertainty": uncertainty, "confidence": [params.confidence] * len(position)}
    return {**values, **told}


def _output(values: Values, name: str, shape: tuple[int, ...]) -> Array:
    """One of the model's outputs in float64; a last axis of one may be left out."""
    value = values.get(name)
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        if shape == () and value.shape[1:] == (1,):
            value = value[:, 0]
        if value.ndim and value.shape[1:] == shape:
            _refuse(~np.isfinite(value).all(axis=tuple(range(1, value.ndim))), f"{name} is not finite")
            return value.astype(np.float64)
    wanted = "".join(f", {side}" for side in shape)
    raise ModelInvalid(f"The step 'uncertainty_ellipse' needs an output {name!r}, float [items{wanted}], of the model.")


def _refuse(bad: Array, problem: str) -> None:
    if bad.any():
        raise ModelInvalid(f"The model's answer for item {int(bad.argmax())} is no position: {problem}.")


def _check_covariance(sigma: Array, covariance: Array) -> None:
    _refuse((sigma < SIGMA_M_MIN).any(axis=1), f"sigma_m must be at least {SIGMA_M_MIN} m")
    _refuse((sigma > EXTENT_M_MAX).any(axis=1), f"sigma_m must be at most {EXTENT_M_MAX:.0f} m")
    roundness = 1 - (covariance / sigma.prod(axis=1)) ** 2
    _refuse(roundness < 0, "the covariance matrix is not positive-definite (covariance_m2 exceeds the sigmas' product)")
    _refuse(roundness < ROUND_MIN, "the covariance matrix is degenerate, its ellipse is a line")


def _position(place: Array, params: EllipseParams) -> tuple[Array, Array, Array]:
    """Latitudes and longitudes in degrees, and by how much, in radians, bearings there are larger than those counted
    from the north of the covariance: meridians converge, by whole degrees within sight of a pole."""
    if params.position == "position_deg":
        _refuse(np.abs(place[:, 0]) > 90, "its latitude is beyond 90 degrees")
        _refuse(np.abs(place[:, 1]) > 360, "its longitude is beyond 360 degrees")
        return place[:, 0], geodesy.wrap(place[:, 1]), np.zeros(len(place))
    if params.origin_lat is None or params.origin_lon is None:
        problem = "Say where the receivers' reference point is, in degrees: parameters.origin_lat and .origin_lon."
        raise InvalidRequest(problem)
    distance = np.hypot(*place.T)
    _refuse(distance > EXTENT_M_MAX, f"it is more than {EXTENT_M_MAX:.0f} m from the origin")
    azimuth = np.arctan2(*place.T)
    lat, lon_step, arrival = geodesy.destination(params.origin_lat, azimuth, distance)
    return lat, geodesy.wrap(params.origin_lon + lon_step), arrival - azimuth


def _ellipse(sigma: Array, covariance: Array, confidence: float) -> tuple[Array, Array]:
    """Semi-axes in metres [items, 2], the longer first, and the longer one's bearing in radians: of the ellipse that
    holds this share of a normal distribution. Its radius squared follows chi-squared of 2, whose quantile is closed."""
    (east, north), mean = (sigma**2).T, (sigma**2).mean(axis=1)
    spread = np.hypot((east - north) / 2, covariance)
    larger = mean + spread
    smaller = (east * north - covariance**2) / larger  # not mean - spread, which cancels
    radius = np.sqrt(-2 * np.log1p(-confidence))
    semi_axes = radius * np.sqrt(np.stack([larger, smaller], axis=1))
    _refuse(semi_axes[:, 0] > EXTENT_M_MAX, f"its ellipse reaches further than {EXTENT_M_MAX:.0f} m")
    return semi_axes, np.arctan2(2 * covariance, north - east) / 2


def _rings(lat: Array, lon: Array, semi_axes: Array, bearing: Array) -> list[tuple[float, Array, Array]]:
    """For each item the longitude of its position, and its polygon's vertices as longitudes from there and latitudes;
    counter-clockwise."""
    angle = np.linspace(0, -2 * np.pi, _vertices(lat, semi_axes), endpoint=False)
    along, across = semi_axes[:, :1] * np.cos(angle), semi_axes[:, 1:] * np.sin(angle)
    azimuth = bearing[:, None] + np.arctan2(across, along)
    lats, lon_steps, _ = geodesy.destination(lat[:, None], azimuth, np.hypot(along, across))
    return list(zip(lon.tolist(), lon_steps, lats, strict=True))


def _vertices(lat: Array, semi_axes: Array) -> int:
    """How many vertices the polygons need. GeoJSON's edges are straight in longitude and latitude: near a pole, where
    parallels are small circles, a long and thin ellipse needs short edges."""
    major, minor = semi_axes.T
    circle = geodesy.EQUATOR_M / np.maximum(np.tan(np.radians(np.abs(lat))), 1e-9)  # radius of the position's parallel
    nearest = np.maximum(circle - major, minor)
    needed = np.pi * major / np.sqrt(2 * BEND_MAX * minor * nearest)
    return int(np.clip(np.ceil(needed.max(initial=0)), VERTICES, VERTICES_MAX))


processing.add("iq_features", IqParams, iq_features)
processing.add(
    "uncertainty_ellipse", EllipseParams, uncertainty_ellipse, per_request=("confidence", "origin_lat", "origin_lon")
)
