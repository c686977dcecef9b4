"""Places on the WGS84 ellipsoid, and areas as GeoJSON (RFC 7946), poles and antimeridian included.

At a pole, where every direction is south, east and north are those of the meridian whose longitude is given.
"""

from typing import Any

import numpy as np

EQUATOR_M = 6_378_137.0  # WGS84's semi-major axis
FLATTENING = 1 / 298.257223563
POLE_M = EQUATOR_M * (1 - FLATTENING)
ITERATIONS = 6  # each leaves less than a hundredth of the error; below 1e-15 after six, at any distance

Array = Any  # numpy array


def wrap(lon: Array) -> Array:
    """Longitudes in degrees as -180 <= lon < 180."""
    return (np.asarray(lon) + 180) % 360 - 180


def destination(lat: Array, azimuth: Array, distance: Array) -> tuple[Array, Array, Array]:
    """Where a geodesic ends: Vincenty's direct formula (1975), good to a tenth of a millimetre. The shapes broadcast.

    From latitude `lat` in degrees, at `azimuth` in radians clockwise from north, for `distance` in metres. Returns the
    latitude and the difference in longitude (-180 to 180) in degrees, and the azimuth there in radians.
    """
    phi = np.radians(lat)
    reduced = np.arctan2((1 - FLATTENING) * np.sin(phi), np.cos(phi))
    sin_u, cos_u = np.sin(reduced), np.cos(reduced)
    sin_az, cos_az = np.sin(azimuth), np.cos(azimuth)
    sin_alpha = cos_u * sin_az  # of the geodesic where it crosses the equator
    cos2_alpha = 1 - sin_alpha**2
    sigma_start = np.arctan2(sin_u, cos_u * cos_az)
    sigma, cos_2m = _arc(distance, cos2_alpha, sigma_start)
    sin_s, cos_s = np.sin(sigma), np.cos(sigma)

    towards_pole = sin_u * sin_s - cos_u * cos_s * cos_az
    end = np.arctan2(sin_u * cos_s + cos_u * sin_s * cos_az, (1 - FLATTENING) * np.hypot(sin_alpha, towards_pole))
    on_sphere = np.arctan2(sin_s * sin_az, cos_u * cos_s - sin_u * sin_s * cos_az)
    c = FLATTENING / 16 * cos2_alpha * (4 + FLATTENING * (4 - 3 * cos2_alpha))
    bent = sigma + c * sin_s * (cos_2m + c * cos_s * (2 * cos_2m**2 - 1))
    lon_step = on_sphere - (1 - c) * FLATTENING * sin_alpha * bent
    return np.degrees(end), np.degrees(lon_step), np.arctan2(sin_alpha, -towards_pole)


def _arc(distance: Array, cos2_alpha: Array, sigma_start: Array) -> tuple[Array, Array]:
    """The geodesic's length as an angle on the auxiliary sphere, and the cosine of twice its middle's."""
    u2 = cos2_alpha * ((EQUATOR_M / POLE_M) ** 2 - 1)
    a = 1 + u2 / 16384 * (4096 + u2 * (-768 + u2 * (320 - 175 * u2)))
    b = u2 / 1024 * (256 + u2 * (-128 + u2 * (74 - 47 * u2)))
    straight = distance / (POLE_M * a)
    sigma = straight
    for _ in range(ITERATIONS):
        cos_2m, sin_s, cos_s = np.cos(2 * sigma_start + sigma), np.sin(sigma), np.cos(sigma)
        third = b / 6 * cos_2m * (4 * sin_s**2 - 3) * (4 * cos_2m**2 - 3)
        sigma = straight + b * sin_s * (cos_2m + b / 4 * (cos_s * (2 * cos_2m**2 - 1) - third))
    return sigma, np.cos(2 * sigma_start + sigma)


def area(lon: float, lon_steps: Array, lats: Array) -> dict[str, Any]:
    """The GeoJSON geometry of an area that is convex as seen from a place on `lon` within it, and less than a quarter
    of the earth wide: a Polygon, or a MultiPolygon of two where the antimeridian cuts it.

    `lon_steps` and `lats`: its vertices, counter-clockwise, as degrees of longitude from `lon` and of latitude. Where
    they go once round a pole, the polygon is closed along the edge of the map, as the format wants it.
    """
    if (np.abs(np.diff(lon_steps, append=lon_steps[0])) > 180).any():
        return _polygon(_around_pole(wrap(lon + lon_steps), lats))
    ring = np.stack([lon + lon_steps, lats], axis=1)
    for edge in (-180.0, 180.0):
        beyond = (ring[:, 0] - edge) * np.sign(edge) > 0
        if beyond.any():
            sides = [_clip(ring, beyond, edge), _clip(ring, ~beyond, edge)]
            sides[0][:, 0] -= 2 * edge
            return {"type": "MultiPolygon", "coordinates": [_polygon(side)["coordinates"] for side in sides]}
    return _polygon(ring)


def _around_pole(lons: Array, lats: Array) -> Array:
    """The ring of an area with a pole inside: its vertices from one edge of the map to the other, and back along the
    pole."""
    last = int(np.abs(np.diff(lons, append=lons[0])).argmax())  # the vertex before the antimeridian
    lons, lats = np.roll(lons, -last - 1), np.roll(lats, -last - 1)
    edge = 180.0 if lons[-1] > 0 else -180.0  # where it ends; counter-clockwise is eastwards round the north pole
    pole = np.copysign(90.0, edge)
    before, after = edge - lons[-1], lons[0] + edge
    crossing = lats[-1] + (lats[0] - lats[-1]) * before / (before + after)
    start, end = [(-edge, pole), (-edge, crossing)], [(edge, crossing), (edge, pole)]
    return np.concatenate([start, np.stack([lons, lats], axis=1), end])


def _clip(ring: Array, kept: Array, edge: float) -> Array:
    """The part of a ring on one side of a meridian. It is one piece: meridians are straight seen from the pole, so that
    they cut a convex area once."""
    points = []
    for point, after, inside, inside_after in zip(ring, np.roll(ring, -1, 0), kept, np.roll(kept, -1), strict=True):
        if inside:
            points.append(point)
        if inside != inside_after:
            share = (edge - point[0]) / (after[0] - point[0])
            points.append(np.array([edge, point[1] + share * (after[1] - point[1])]))
    return np.array(points)


def _polygon(ring: Array) -> dict[str, Any]:
    points = ring.tolist()
    return {"type": "Polygon", "coordinates": [[*points, points[0]]]}
