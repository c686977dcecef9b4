"""Make the picture of the guide on localisation, with the model that is shipped and simulated receivers.

    python -m scripts.localisation_sheet

Nothing is chosen: the transmissions are the first that the simulator draws with seed 1. The ellipses are the GeoJSON
polygons of the answers, taken back from degrees to metres.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from instructors.processing import geodesy
from orchestrator.client import Client, LocalServer
from scripts.contact_sheet import INK, PAPER, ROOT
from scripts.localisation.simulator import RECEIVERS_M, power_centroid, simulate

SHEET = ROOT / "docs" / "images" / "localisation.png"
COUNT, SEED = 9, 1
ORIGIN = {"origin_lat": 52.473, "origin_lon": 13.401}
SHARES = (0.95, 0.68)  # the larger ellipse is drawn first
FILL = {0.95: (207, 226, 246), 0.68: (134, 182, 232)}
BLUE, ORANGE, GREY = (24, 92, 170), (224, 122, 24), (214, 214, 214)
FINE = 3  # each pixel is drawn as so many, by so many
SITE, CLOSE, MARGIN, LEGEND = 548, 268, 12, 30  # pixels
SITE_M = 720.0  # from the origin to the map's edge


@dataclass(frozen=True, slots=True)
class Found:
    """One transmission, all in metres east and north of the origin: places [2], and polygons [vertices, 2] by share."""

    truth: np.ndarray
    estimate: np.ndarray
    centroid: np.ndarray
    polygons: dict[float, np.ndarray]

    @property
    def reach(self) -> float:
        """How far the larger ellipse or the truth is from the estimate."""
        points = np.vstack([self.polygons[max(SHARES)], self.truth])
        return float(np.linalg.norm(points - self.estimate, axis=1).max())


def main() -> None:
    """Ask a server of this script's own, and draw what it answers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=SHEET, help="default %(default)s")
    output: Path = parser.parse_args().output
    with LocalServer(models=ROOT / "models") as client:
        found = ask(client)
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet(found).quantize(256).save(output, optimize=True)
    print(output)


def ask(client: Client) -> list[Found]:
    """What the model answers for each transmission, and what the mean of the receivers weighted by power would be."""
    heard = simulate(np.random.default_rng(SEED), COUNT)
    answers = {
        share: client.predict("localisation", {"iq": heard.iq}, parameters={**ORIGIN, "confidence": share})
        for share in SHARES
    }
    estimates, centroids = answers[SHARES[0]].outputs["position_m"], power_centroid(heard.iq)
    return [
        Found(
            heard.truth_m[i],
            estimates[i],
            centroids[i],
            {share: metres(made.predictions[i]["uncertainty"]["polygon"]) for share, made in answers.items()},
        )
        for i in range(COUNT)
    ]


def metres(polygon: dict[str, Any]) -> np.ndarray:
    """The vertices of a GeoJSON Polygon near the origin, [vertices, 2]: a degree of each is as long as there."""
    lon, lat = np.array(polygon["coordinates"][0]).T
    east, north = (length_of_a_degree(azimuth) for azimuth in (np.pi / 2, 0.0))
    return np.stack([(lon - ORIGIN["origin_lon"]) * east, (lat - ORIGIN["origin_lat"]) * north], axis=1)


def length_of_a_degree(azimuth: float) -> float:
    """Metres, along a line to the east (pi / 2) or to the north (0) of the origin."""
    lat, lon_step, _ = geodesy.destination(ORIGIN["origin_lat"], azimuth, 1000.0)
    return float(1000.0 / (lon_step if azimuth else lat - ORIGIN["origin_lat"]))


class Map:
    """A square piece of the plane, drawn finely."""

    def __init__(self, centre: np.ndarray, reach: float, side: int, bar: int) -> None:
        """`reach`: metres from the centre to an edge; `side`: pixels; `bar`: metres of the scale."""
        self._centre, self._scale, self._side = centre, side * FINE / 2 / reach, side * FINE
        self.image = Image.new("RGB", (self._side, self._side), PAPER)
        self.pen = ImageDraw.Draw(self.image)
        self.pen.rectangle((0, 0, self._side - 1, self._side - 1), outline=GREY, width=FINE)
        x, y, font = 10 * FINE, self._side - 10 * FINE, ImageFont.load_default(11 * FINE)
        self.pen.line((x, y, x + bar * self._scale, y), INK, 2 * FINE)
        self.pen.text((x, y - 16 * FINE), f"{bar} m", INK, font)

    def at(self, place: np.ndarray) -> tuple[float, float]:
        east, north = (place - self._centre) * self._scale
        return self._side / 2 + east, self._side / 2 - north

    def draw(self, found: Found) -> None:
        for share, polygon in found.polygons.items():
            self.pen.polygon([self.at(vertex) for vertex in polygon], FILL[share], BLUE, FINE)
        mark(self.pen, "estimate", self.at(found.estimate))
        mark(self.pen, "truth", self.at(found.truth))

    def small(self) -> Image.Image:
        return self.image.resize((self._side // FINE,) * 2, Image.Resampling.LANCZOS)


def mark(pen: ImageDraw.ImageDraw, kind: str, at: tuple[float, float]) -> None:
    """A sign of the legend."""
    x, y = at
    r = 5 * FINE
    if kind == "receiver":
        pen.polygon([(x, y - 1.4 * r), (x - 1.3 * r, y + r), (x + 1.3 * r, y + r)], INK)
    elif kind == "estimate":
        pen.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), BLUE)
    elif kind == "truth":
        pen.line((x - r, y - r, x + r, y + r), INK, FINE)
        pen.line((x - r, y + r, x + r, y - r), INK, FINE)
    else:
        pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], PAPER, ORANGE, FINE + 1)


def sheet(found: list[Found]) -> Image.Image:
    """The site, and beside it the surest and the least sure answer from near by; the signs below."""
    site = Map(np.zeros(2), SITE_M, SITE, 200)
    for one in found:
        site.pen.line((*site.at(one.truth), *site.at(one.centroid)), (246, 214, 178), FINE)
    for one in found:
        mark(site.pen, "centroid", site.at(one.centroid))
        site.draw(one)
    for receiver in RECEIVERS_M:
        mark(site.pen, "receiver", site.at(receiver))
    page = Image.new("RGB", (SITE + CLOSE + 3 * MARGIN, SITE + LEGEND + 2 * MARGIN), PAPER)
    page.paste(site.small(), (MARGIN, MARGIN))
    by_reach = sorted(found, key=lambda one: one.reach)
    for row, one in enumerate((by_reach[0], by_reach[-1])):
        close = Map(one.estimate, 1.25 * one.reach, CLOSE, 20)
        close.draw(one)
        page.paste(close.small(), (SITE + 2 * MARGIN, MARGIN + row * (SITE - CLOSE)))
    page.paste(legend(page.width - 2 * MARGIN), (MARGIN, SITE + MARGIN))
    return page


def legend(width: int) -> Image.Image:
    strip = Image.new("RGB", (width * FINE, LEGEND * FINE), PAPER)
    pen, font, x, y = ImageDraw.Draw(strip), ImageFont.load_default(12 * FINE), 12.0 * FINE, 20 * FINE
    words = {
        "receiver": "receiver",
        "truth": "where the transmitter is",
        "estimate": "the model's answer, with the ellipses of 68 % and 95 %",
        "centroid": "power-weighted centroid",
    }
    for kind, text in words.items():
        mark(pen, kind, (x, y))
        pen.text((x + 10 * FINE, y), text, INK, font, anchor="lm")
        x += 34 * FINE + pen.textlength(text, font)
    return strip.resize((width, LEGEND), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
