"""Positions by way of earth-centred coordinates: another road than the geodesics of what is tested."""

from itertools import pairwise
from typing import Any

import numpy as np

EQUATOR_M, FLATTENING = 6_378_137.0, 1 / 298.257223563
E2 = FLATTENING * (2 - FLATTENING)

Geometry = dict[str, Any]


def to_plane(origin: tuple[float, float], lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Metres east and north, in the plane that touches the ellipsoid at the origin; [..., 2]."""
    east, north, centre = _frame(*origin)
    difference = _earth_centred(lat, lon) - centre
    return np.stack([difference @ east, difference @ north], axis=-1)


def from_plane(origin: tuple[float, float], places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes in degrees of points of that plane."""
    east, north, centre = _frame(*origin)
    x, y, z = (centre + places[..., :1] * east + places[..., 1:] * north).T
    across = np.hypot(x, y)
    lat = np.arctan2(z, across * (1 - E2))
    for _ in range(5):
        radius = EQUATOR_M / np.sqrt(1 - E2 * np.sin(lat) ** 2)
        lat = np.arctan2(z + E2 * radius * np.sin(lat), across)
    return np.degrees(lat).T, np.degrees(np.arctan2(y, x)).T


def holds(geometry: Geometry, lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Which points are inside, edges straight in longitude and latitude as GeoJSON says: how often does a line to the
    north cross the ring?"""
    inside = np.zeros(len(lat), bool)
    for ring in rings(geometry):
        for (lon_a, lat_a), (lon_b, lat_b) in pairwise(ring):
            if lon_a == lon_b:
                continue
            between = (lon >= min(lon_a, lon_b)) & (lon < max(lon_a, lon_b))
            inside ^= between & (lat < lat_a + (lon - lon_a) / (lon_b - lon_a) * (lat_b - lat_a))
    return inside


def rings(geometry: Geometry) -> list[list[tuple[float, float]]]:
    """The outer rings."""
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    assert all(len(polygon) == 1 for polygon in polygons)
    return [polygon[0] for polygon in polygons]


def _frame(lat: float, lon: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    phi, lam = np.radians(lat), np.radians(lon)
    east = np.array([-np.sin(lam), np.cos(lam), 0])
    north = np.array([-np.sin(phi) * np.cos(lam), -np.sin(phi) * np.sin(lam), np.cos(phi)])
    return east, north, _earth_centred(np.array(lat), np.array(lon))


def _earth_centred(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    phi, lam = np.radians(lat), np.radians(lon)
    radius = EQUATOR_M / np.sqrt(1 - E2 * np.sin(phi) ** 2)
    across = radius * np.cos(phi)
    return np.stack([across * np.cos(lam), across * np.sin(lam), radius * (1 - E2) * np.sin(phi)], axis=-1)
