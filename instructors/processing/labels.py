"""Names of classes, as a manifest lists them or as a file of the model's folder does."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from instructors.models import inside
from instructors.processing import Params
from protocol.errors import Forbidden, ModelInvalid
from protocol.limits import MIB

FILE_BYTES_MAX = 4 * MIB
LABELS_MAX = 100_000

Label = Annotated[str, Field(max_length=1000)]
Labels = (
    Annotated[list[Label], Field(max_length=LABELS_MAX)] | Annotated[str, Field(min_length=1, max_length=200)] | None
)


class Labelled(Params):
    """Base of the parameters of steps that name classes.

    `labels`: a list; or a file in the model's folder: text with one a line, or JSON (a list, a map from numbers, or the
    `id2label` of a config).
    """

    labels: Labels = None

    def names(self) -> list[str] | None:
        """The name of each class; None where none are known. Raises ModelInvalid or Forbidden."""
        if not isinstance(self.labels, str):
            return self.labels
        file = self.folder / self.labels
        if not inside(file, self.folder):
            raise Forbidden("The manifest names labels outside of the model's folder.")
        try:
            status = file.stat()
        except OSError:
            raise ModelInvalid("The manifest names a file of labels that is not there.") from None
        return _read(file, status.st_mtime_ns, status.st_size)


def label(names: list[str] | None, index: int) -> str | None:
    """The name of a class; None where none are known. Raises ModelInvalid where there are too few."""
    if names is None:
        return None
    if index >= len(names):
        raise ModelInvalid(f"The model has a class {index}, and there are {len(names)} labels.")
    return names[index]


@lru_cache(64)
def _read(file: Path, mtime_ns: int, nbytes: int) -> list[str]:
    """Kept while the file's time and size stay the same."""
    try:
        if nbytes > FILE_BYTES_MAX:
            raise ValueError("too large")
        text = file.read_text("utf-8")
        names = _listed(json.loads(text)) if file.suffix.lower() == ".json" else text.splitlines()
        if not 1 <= len(names) <= LABELS_MAX or not all(type(name) is str for name in names):
            raise ValueError("no labels")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ModelInvalid("The model's file of labels cannot be read as such.") from None
    return names


def _listed(value: object) -> list[str]:
    if isinstance(value, dict):
        value = value.get("id2label", value)
    if isinstance(value, dict):
        value = [value[str(index)] for index in range(len(value))]
    if not isinstance(value, list):
        raise ValueError("no list")
    return value
