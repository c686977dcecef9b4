"""The examples of the guide to conversions, run as they stand there, one after the other."""

import shutil
import sys

import pytest
from PIL import Image

from instructors.pipelines.convert.graphs import TOLERANCES
from scripts.demo_model.judge import judge
from tests.docs import pages
from tests.docs.pages import ROOT
from tests.docs.test_examples import run
from tests.docs.test_pages import rows
from tests.docs.test_versions import Workshop, workshop

__all__ = ["workshop"]
PAGE = "docs/guides/convert.md"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_guide(workshop: Workshop) -> None:
    shutil.copytree(ROOT / "models" / "demo", workshop.folder / "models" / "demo")
    convert, generate = pages.blocks(pages.text(PAGE), "sh")
    (code,) = pages.blocks(pages.text(PAGE), "python")
    while "demo" not in run(workshop, "atelier models list"):
        pass
    assert "demo-onnx:1" in run(workshop, convert.strip(), limit_s=120)
    made = run(
        workshop, [sys.executable, "-c", code.replace("Client()", f"Client({workshop.endpoint!r})")], limit_s=120
    )
    assert made.startswith("demo-onnx:2 ")
    run(workshop, generate.strip())
    with Image.open(workshop.folder / "onnx.png") as picture:
        seen = judge(picture)
    assert (seen.shape_kind, seen.shape_colour, seen.background_colour) == ("circle", "red", "white")


def test_the_differences_allowed_are_those_of_the_code() -> None:
    told = rows(pages.section(PAGE, "What is compared"))
    assert {precision: float(most) for precision, most in told} == TOLERANCES
