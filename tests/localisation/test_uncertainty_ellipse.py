"""The step `uncertainty_ellipse`: the ellipse, its place on the earth, its polygon, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from instructors import processing
from instructors.processing import geodesy
from instructors.processing.localisation import VERTICES
from protocol.errors import InvalidRequest, ModelInvalid
from tests.localisation.geography import from_plane, holds, rings, to_plane

FOLDER = Path("model")
MISSING_AREA = 1 - np.sin(2 * np.pi / VERTICES) / (2 * np.pi / VERTICES)  # of a polygon within its ellipse
HOME = {"origin_lat": 47.0, "origin_lon": 8.0}


def ellipses(outputs: dict[str, Any], parameters: dict[str, Any] | None = None, **manifest: Any) -> dict[str, Any]:
    chain = processing.chain([{"step": "uncertainty_ellipse", **manifest}], FOLDER)
    values = {name: np.array(value, np.float64) for name, value in outputs.items()}
    return chain.run(values, parameters or {})


def one(sigma: Any, covariance: float, at: tuple[float, float] = (0.0, 0.0), **parameters: Any) -> dict[str, Any]:
    outputs = {"position_m": [at], "sigma_m": [sigma], "covariance_m2": [covariance]}
    values = ellipses(outputs, {**HOME, **parameters})
    return values["uncertainty"][0]


@pytest.mark.parametrize(
    ("sigma", "covariance", "rotation"),
    [
        ((300, 100), 0, 90),  # longer from east to west
        ((100, 300), 0, 0),
        ((200, 200), 20_000, 45),  # to the north-east
        ((200, 200), -20_000, 135),  # to the south-east
        ((200, 100), 10_000, 73.155),
    ],
)
def test_the_rotation_is_the_bearing_of_the_longer_axis(sigma: Any, covariance: float, rotation: float) -> None:
    assert one(sigma, covariance)["rotation_deg"] == pytest.approx(rotation, abs=0.01)


def test_the_rotation_is_below_180() -> None:
    assert one((100, 300), -1e-13)["rotation_deg"] == 0  # a hair to the west of north


@pytest.mark.parametrize(("confidence", "radius"), [(0.3935, 1.0), (0.68, 1.5096), (0.95, 2.4477), (0.99, 3.0349)])
def test_the_axes_grow_with_the_confidence(confidence: float, radius: float) -> None:
    told = one((300, 100), 0, confidence=confidence)
    assert told["confidence"] == confidence
    assert told["semi_major_m"] == pytest.approx(300 * radius, rel=1e-3)
    assert told["semi_minor_m"] == pytest.approx(100 * radius, rel=1e-3)
    assert told["area_m2"] == pytest.approx(np.pi * told["semi_major_m"] * told["semi_minor_m"])


def test_every_item_has_its_own() -> None:
    outputs = {
        "position_m": [[0, 0], [1000, 0], [0, -500]],
        "sigma_m": [[10, 20], [30, 5], [7, 7]],
        "covariance_m2": [[0], [10], [1]],
    }
    values = ellipses(outputs, HOME, confidence=0.95)
    assert values["confidence"] == [0.95] * 3
    assert values["position"][0] == pytest.approx({"lat": 47, "lon": 8})
    for (sigma, covariance), told in zip(
        zip(outputs["sigma_m"], outputs["covariance_m2"], strict=True), values["uncertainty"], strict=True
    ):
        matrix = [[sigma[0] ** 2, *covariance], [*covariance, sigma[1] ** 2]]
        small, large = np.sqrt(np.linalg.eigvalsh(matrix)) * np.sqrt(-2 * np.log(0.05))
        assert (told["semi_minor_m"], told["semi_major_m"]) == pytest.approx((small, large))
    assert values["position_m"].tolist() == outputs["position_m"]  # the model's outputs stay


def test_no_items_are_no_predictions() -> None:
    outputs = {"position_m": np.zeros((0, 2)), "sigma_m": np.zeros((0, 2)), "covariance_m2": np.zeros(0)}
    values = ellipses(outputs, HOME)
    assert (values["position"], values["uncertainty"], values["confidence"]) == ([], [], [])


ANYWHERE = st.tuples(st.floats(-90, 90), st.floats(-180, 180))
NEAR_A_POLE = st.tuples(st.sampled_from([-1, 1]), st.floats(89.9, 90), st.floats(-180, 180)).map(
    lambda drawn: (drawn[0] * drawn[1], drawn[2])
)
NEAR_THE_DATE_LINE = st.tuples(st.floats(-85, 85), st.floats(-0.02, 0.02)).map(
    lambda drawn: (drawn[0], (drawn[1] + 360) % 360 - 180)
)
PLACES = ANYWHERE | NEAR_A_POLE | NEAR_THE_DATE_LINE
OFFSET = st.tuples(st.floats(-2000, 2000), st.floats(-2000, 2000))
SIGMA = st.tuples(st.floats(10, 2000), st.floats(10, 2000))
CORRELATION = st.floats(-0.95, 0.95)


@settings(max_examples=60, deadline=None)
@given(PLACES, OFFSET, SIGMA, CORRELATION, st.floats(0.1, 0.95))
@example((89.9, 10.0), (1500.0, 0.0), (900.0, 100.0), 0.5, 0.68)
@example((90.0, 0.0), (0.0, 0.0), (500.0, 300.0), 0.0, 0.68)
@example((-89.999, 170.0), (50.0, -400.0), (700.0, 300.0), -0.5, 0.68)
@example((65.0, 179.99), (300.0, 0.0), (900.0, 500.0), 0.3, 0.95)
def test_the_polygon_holds_that_share_of_the_truths(
    origin: tuple[float, float], at: tuple[float, float], sigma: tuple[float, float], correlation: float, share: float
) -> None:
    covariance = correlation * sigma[0] * sigma[1]
    parameters = {"origin_lat": origin[0], "origin_lon": origin[1], "confidence": share}
    told = one(sigma, covariance, at, **parameters)
    check_geometry(told["polygon"])

    count = 10_000
    matrix = [[sigma[0] ** 2, covariance], [covariance, sigma[1] ** 2]]
    truths = np.random.default_rng(5).multivariate_normal(at, matrix, count)
    inside = holds(told["polygon"], *from_plane(origin, truths)).mean()
    assert inside == pytest.approx(share, abs=0.004 + 5 * np.sqrt(share * (1 - share) / count))


@settings(max_examples=120, deadline=None)
@given(PLACES, OFFSET, SIGMA, CORRELATION)
@example((89.9, 10.0), (1500.0, 0.0), (900.0, 100.0), 0.5)
@example((90.0, 0.0), (0.0, 0.0), (500.0, 300.0), 0.0)
def test_the_vertices_lie_on_the_ellipse(
    origin: tuple[float, float], at: tuple[float, float], sigma: tuple[float, float], correlation: float
) -> None:
    covariance = correlation * sigma[0] * sigma[1]
    told = one(sigma, covariance, at, origin_lat=origin[0], origin_lon=origin[1])
    ring = np.array([point for ring in rings(told["polygon"]) for point in ring[:-1]])
    ring = ring[(np.abs(ring[:, 0]) != 180) & (np.abs(ring[:, 1]) != 90)]  # where the antimeridian cuts it
    away = to_plane(origin, ring[:, 1], ring[:, 0]) - at
    matrix = np.array([[sigma[0] ** 2, covariance], [covariance, sigma[1] ** 2]])
    radius = np.sqrt(np.einsum("vi,ij,vj->v", away, np.linalg.inv(matrix), away))
    assert radius == pytest.approx(np.sqrt(-2 * np.log(0.32)), rel=1e-3)
    assert len(ring) >= VERTICES - 4
    assert np.hypot(*away.T).max() == pytest.approx(told["semi_major_m"], rel=0.01)


@settings(max_examples=50, deadline=None)
@given(PLACES, OFFSET)
def test_a_position_is_so_many_metres_from_the_origin(origin: tuple[float, float], at: tuple[float, float]) -> None:
    outputs = {"position_m": [at], "sigma_m": [[10, 10]], "covariance_m2": [0]}
    place = ellipses(outputs, {"origin_lat": origin[0], "origin_lon": origin[1]})["position"][0]
    assert -180 <= place["lon"] <= 180
    found = to_plane(origin, np.array(place["lat"]), np.array(place["lon"]))
    assert found == pytest.approx(np.array(at), abs=0.001)


def check_geometry(geometry: dict[str, Any]) -> None:
    """RFC 7946: rings closed, counter-clockwise, on the map."""
    assert geometry["type"] == ("MultiPolygon" if len(rings(geometry)) > 1 else "Polygon")
    for ring in rings(geometry):
        assert ring[0] == ring[-1]
        assert len(ring) >= 4
        lon, lat = np.array(ring).T
        assert (np.abs(lon) <= 180).all()
        assert (np.abs(lat) <= 90).all()
        middle = lat.mean()
        assert np.sum((lon[1:] - lon[:-1]) * (lat[1:] + lat[:-1] - 2 * middle)) < 0


def test_the_area_of_the_polygon_is_that_of_the_ellipse() -> None:
    told = one((300, 100), 9_000)
    lon, lat = np.array(rings(told["polygon"])[0]).T
    x, y = to_plane((47.0, 8.0), lat, lon).T
    shoelace = np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2
    assert shoelace == pytest.approx(told["area_m2"] * (1 - MISSING_AREA), rel=1e-5)


def test_at_high_latitude_north_is_that_of_the_position() -> None:
    """Ten kilometres from the pole, meridians 1.5 km apart differ by eight degrees; the ellipse does not turn."""
    parameters = {"origin_lat": 89.9, "origin_lon": 10.0}
    assert one((100, 300), 0, **parameters)["rotation_deg"] == pytest.approx(0)
    assert one((100, 300), 0, (1500, 0), **parameters)["rotation_deg"] == pytest.approx(7.65, abs=0.02)
    assert one((100, 300), 0, (-1500, 0), **parameters)["rotation_deg"] == pytest.approx(180 - 7.65, abs=0.02)


def test_the_antimeridian_cuts_the_polygon_in_two() -> None:
    for lon in (179.999, -179.999):
        told = one((500, 500), 0, origin_lat=60, origin_lon=lon)
        west, east = sorted(rings(told["polygon"]), key=lambda ring: ring[0][0])
        assert max(point[0] for point in west) < -179.9
        assert min(point[0] for point in east) > 179.9
        assert -180 in [point[0] for point in west]
        assert 180 in [point[0] for point in east]


@pytest.mark.parametrize("lat", [89.9999, -89.9999])
def test_a_pole_inside_belongs_to_the_polygon(lat: float) -> None:
    polygon = one((500, 500), 0, origin_lat=lat, origin_lon=20)["polygon"]
    assert polygon["type"] == "Polygon"
    lon, lats = np.array(polygon["coordinates"][0]).T
    assert (lon.min(), lon.max()) == (-180, 180)
    assert np.abs(lats).max() == 90
    assert holds(polygon, np.full(9, np.copysign(89.9999999, lat)), np.linspace(-179, 179, 9)).all()


def test_a_ring_round_a_pole_meets_the_edge_of_the_map_where_its_own_edge_does() -> None:
    ring = geodesy.area(0.0, np.array([0.0, 90.0, -140.0]), np.array([80.0, 70.0, 60.0]))["coordinates"][0]
    crossing = pytest.approx(70 - 10 * 90 / 130)
    assert ring == [[-180, 90], [-180, crossing], [-140, 60], [0, 80], [90, 70], [180, crossing], [180, 90], [-180, 90]]


def test_a_needle_near_a_pole_gets_more_vertices() -> None:
    """Parallels are small circles there: between 64 vertices, edges that follow them would leave the needle."""
    told = one((750, 1), 0, origin_lat=89.97, origin_lon=0, confidence=0.75)
    truths = np.random.default_rng(6).normal(0, (750, 1), (40_000, 2))
    assert holds(told["polygon"], *from_plane((89.97, 0.0), truths)).mean() == pytest.approx(0.75, abs=0.012)


def test_positions_in_degrees() -> None:
    outputs = {"position_deg": [[10, 20], [10, 340], [-5, -180]], "sigma_m": [[30, 10]] * 3, "covariance_m2": [0] * 3}
    values = ellipses(outputs, position="position_deg")
    assert values["position"] == [{"lat": 10, "lon": 20}, {"lat": 10, "lon": -20}, {"lat": -5, "lon": -180}]
    assert [told["rotation_deg"] for told in values["uncertainty"]] == pytest.approx([90] * 3)


def test_a_geodesic_that_surveyors_publish() -> None:
    """Flinders Peak to Buninyong, the worked example of Australia's datum manual."""
    lat, lon_step, azimuth = geodesy.destination(
        degrees(-37, 57, 3.72030), np.radians(degrees(306, 52, 5.37)), 54972.271
    )
    assert lat == pytest.approx(degrees(-37, 39, 10.15610), abs=2e-8)
    assert degrees(144, 25, 29.52440) + lon_step == pytest.approx(degrees(143, 55, 35.38390), abs=2e-8)
    assert np.degrees(azimuth) % 360 - 180 == pytest.approx(degrees(127, 10, 25.07), abs=3e-6)


def degrees(whole: int, minutes: int, seconds: float) -> float:
    return np.copysign(abs(whole) + minutes / 60 + seconds / 3600, whole)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"covariance_m2": [0, 6001]}, "item 1 .* not positive-definite"),
        ({"covariance_m2": [0, -6000]}, "item 1 .* degenerate"),
        ({"covariance_m2": [np.nan, 0]}, "item 0 .* covariance_m2 is not finite"),
        ({"sigma_m": [[100, 60], [0, 60]]}, "item 1 .* sigma_m must be at least"),
        ({"sigma_m": [[100, -60], [100, 60]]}, "item 0 .* sigma_m must be at least"),
        ({"sigma_m": [[100, 60], [np.inf, 60]]}, "item 1 .* sigma_m is not finite"),
        ({"sigma_m": [[100, 60], [2e6, 60]]}, "item 1 .* sigma_m must be at most"),
        ({"sigma_m": [[100, 60], [9e5, 9e5]]}, "item 1 .* ellipse reaches further"),
        ({"position_m": [[0, 0], [np.nan, 0]]}, "item 1 .* position_m is not finite"),
        ({"position_m": [[2e6, 0], [0, 0]]}, "item 0 .* from the origin"),
        ({"sigma_m": [[100, 60, 1], [100, 60, 1]]}, "output 'sigma_m', float \\[items, 2\\]"),
        ({"covariance_m2": [[0, 0], [0, 0]]}, "output 'covariance_m2', float \\[items\\]"),
        ({"covariance_m2": 0.0}, "output 'covariance_m2', float \\[items\\]"),
    ],
)
def test_an_answer_that_is_no_position_is_refused(changed: dict[str, Any], problem: str) -> None:
    outputs = {"position_m": [[0, 0]] * 2, "sigma_m": [[100, 60]] * 2, "covariance_m2": [0, 0]}
    with pytest.raises(ModelInvalid, match=problem):
        ellipses({**outputs, **changed}, HOME)


def test_an_output_that_is_missing_is_named() -> None:
    with pytest.raises(ModelInvalid, match="'position_deg'"):
        ellipses({"sigma_m": [[1, 1]], "covariance_m2": [0]}, position="position_deg")


@pytest.mark.parametrize(("place", "problem"), [([90.5, 0], "latitude"), ([0, 361], "longitude")])
def test_degrees_off_the_map_are_refused(place: list[float], problem: str) -> None:
    outputs = {"position_deg": [place], "sigma_m": [[1, 1]], "covariance_m2": [0]}
    with pytest.raises(ModelInvalid, match=problem):
        ellipses(outputs, position="position_deg")


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({}, r"parameters\.origin_lat"),
        ({"origin_lat": 1}, r"parameters\.origin_lat and \.origin_lon"),
        ({"origin_lat": 91, "origin_lon": 0}, r"parameters\.origin_lat"),
        ({"origin_lat": 1, "origin_lon": float("nan")}, r"parameters\.origin_lon"),
        ({"origin_lat": "1", "origin_lon": 2}, r"parameters\.origin_lat"),
        ({**HOME, "confidence": 0}, r"parameters\.confidence"),
        ({**HOME, "confidence": 1}, r"parameters\.confidence"),
        ({**HOME, "confidence": "0.95"}, r"parameters\.confidence"),
    ],
)
def test_a_request_with_bad_parameters_is_refused(parameters: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        ellipses({"position_m": [[0, 0]], "sigma_m": [[1, 1]], "covariance_m2": [0]}, parameters)


@pytest.mark.parametrize(
    "manifest",
    [{"confidence": 68}, {"position": "metres"}, {"position": "position_deg", **HOME}, {"vertices": 8}],
)
def test_a_manifest_with_bad_parameters_is_refused(manifest: dict[str, Any]) -> None:
    with pytest.raises(ModelInvalid):
        processing.chain([{"step": "uncertainty_ellipse", **manifest}], FOLDER)
