"""The commands of `docs/operations.md` that ask for models in memory, run as they stand there."""

from tests.docs import pages
from tests.docs.test_examples import Studio, run, studio

__all__ = ["studio"]
SAYS = {
    "status": "localisation:1",
    "load": "kept",
    "components": "unet",
    "reload": "unchanged localisation:1",
    "unload": "OUTCOME",
    "benchmark": "localisation:1",
}


def test_models_in_memory(studio: Studio) -> None:
    (block,) = pages.blocks(pages.section("docs/operations.md", "Models in memory"), "sh")
    told = {line.split()[2]: run(studio, line) for line in block.splitlines()}
    assert told.keys() == SAYS.keys()
    assert [verb for verb, words in SAYS.items() if words not in told[verb]] == []
    assert "localisation:1" in run(studio, "atelier models benchmark localisation --history")
