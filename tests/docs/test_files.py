"""The examples of the guide to files of models run as they stand."""

import re
import sys
import tomllib

from instructors.catalogue.settings import CatalogueSettings
from instructors.model_settings import ModelSettings
from tests.docs import pages
from tests.docs.test_examples import Studio, run, studio

__all__ = ["studio"]
GUIDE = pages.text("docs/guides/files.md")


def test_finding_and_checking(studio: Studio) -> None:
    listed, checked = (
        run(studio, [sys.executable, "-c", re.sub(r"Client\(\)", f"Client({studio.endpoint!r})", code)]).splitlines()
        for code in pages.blocks(GUIDE, "python")
    )
    assert listed == [
        "models/demo pipeline sd1 ['v_prediction'] float16 demo",
        "models/loras/demo-hollow.safetensors lora sd1 [] float16 demo-hollow",
    ]
    assert len(checked) == 1  # no issue
    assert checked[0].startswith("True ['files', 'format', ")
    find, check, _ = pages.blocks(GUIDE, "sh")
    assert "demo-edges" in run(studio, find.splitlines()[0])
    assert "demo-hollow" in run(studio, find.splitlines()[1])
    for line in check.splitlines():
        assert "passed" in run(studio, line)


def test_the_settings_are_ones_that_could_be() -> None:
    scan, models = (tomllib.loads(block) for block in pages.blocks(GUIDE, "toml"))
    assert CatalogueSettings.model_validate(scan).hub.cache
    assert ModelSettings.model_validate(models["old-model"]).config == "sd2-base"
