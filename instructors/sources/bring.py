"""From a source into the model folder: fetched, checked, and put in place in one step."""

from pathlib import Path
from typing import Any

from instructors.manifest import EMPTY
from instructors.models import ONNX, Model, ModelFolder
from instructors.sources import Source
from instructors.sources.download import Tell, download
from instructors.sources.placing import put_in_place
from protocol.errors import ModelInvalid
from protocol.limits import NAME_LENGTH_MAX

HASHES_MAX = 64  # told, of the largest files


def bring(source: Source, root: Path, place: Path, name: str, version: str, tell: Tell) -> dict[str, Any]:
    """What the source holds becomes this version of a model in the model folder `root`; the result's data.

    `place` is an empty folder on the same file system. Raises as `download` does, ModelInvalid and Forbidden (what no
    model in the folder may be), RequestConflict (there is another version of this name, or a model without any), and
    OSError where the disk fails.
    """
    folder = place / name / version
    folder.mkdir(parents=True)
    digests = download(source, folder, tell)
    if len(digests) == 1 and next(iter(digests)).endswith(".onnx"):
        digests = _name_as_usual(folder, digests)
    model = _check(place, f"{name}:{version}")
    sizes = {path: (folder / path).stat().st_size for path in digests}
    put_in_place(model, root)
    return _result(model, source, digests, sizes)


def _name_as_usual(folder: Path, digests: dict[str, str]) -> dict[str, str]:
    """A single ONNX file may have any name."""
    ((path, digest),) = digests.items()
    (folder / path).rename(folder / EMPTY.onnx.file)
    return {EMPTY.onnx.file: digest}


def _check(place: Path, model_id: str) -> Model:
    """The model, judged as those in the model folder are. Raises what makes it unusable."""
    staged = ModelFolder(place)
    if not staged.names():
        raise ModelInvalid("These files are no model: it has a model_index.json, or an ONNX file (model.onnx).")
    model = staged.find(model_id)
    if model.family == ONNX:
        from instructors.pipelines.onnx import graph

        graph.inspect(model.path / model.manifest.onnx.file, model.path)
    return model


def _result(model: Model, source: Source, digests: dict[str, str], sizes: dict[str, int]) -> dict[str, Any]:
    """As `FetchResult`."""
    said, told = model.manifest, source.told
    largest = sorted(digests, key=lambda path: -sizes[path])[:HASHES_MAX]
    metadata = {
        "type": "onnx" if model.family == ONNX else "diffusion",
        "family": model.family,
        "nbytes": sum(sizes.values()),
        "hashes": {path: digests[path] for path in sorted(largest)},
        "description": said.description or None,
        "license": said.license[:NAME_LENGTH_MAX] or None,
        "tags": [word[:NAME_LENGTH_MAX] for word in said.tags] or None,
        "trigger_words": [word[:NAME_LENGTH_MAX] for word in said.trigger_words] or None,
    }
    return {
        "content_hash": model.content_hash,
        "nbytes": sum(sizes.values()),
        "files": len(digests),
        "metadata": {name: value for name, value in metadata.items() if value is not None},
        "run_id": told.run_id,
        "metrics": told.metrics,
        "tags": told.tags,
        "warnings": told.warnings,
    }
