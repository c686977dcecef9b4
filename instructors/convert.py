"""`model.convert`: a model in another form or precision, made in a process of its own and put in place when it is good.

Until then it lies in the model folder's `.staging`, which no request reaches.
"""

import os
import shutil
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from instructors import convert_source
from instructors.models import SHELVES, ModelFolder
from instructors.registry import Registry
from instructors.task import Context, Lane, Result, SharedTask
from protocol.enums import EventName
from protocol.errors import AtelierError, InvalidRequest, Unavailable
from protocol.schemas import ACTIONS
from protocol.schemas.model_files import ModelConvert

if TYPE_CHECKING:
    from instructors.pipelines.convert.process import Process

STAGING = ".staging"


class Convert(SharedTask):
    """One job: a process that works elsewhere, while the worker computes for others."""

    def __init__(self, data: ModelConvert, context: Context) -> None:
        self._target = _target(data, context.models)
        kind, source = convert_source.find(data, context.models)
        self._data = data
        self._conversion = Conversion(kind, source, self._target, data.precision, context)
        self.units = [self._conversion]

    def result(self) -> Result:
        files = [
            {"name": file.relative_to(self._target).as_posix(), "nbytes": file.stat().st_size}
            for file in sorted(self._target.rglob("*"))
            if file.is_file()
        ]
        return Result(
            {
                "model_id": f"{self._target.parent.name}:{self._target.name}",
                "to": self._data.to,
                "precision": self._data.precision,
                "files": files,
                "nbytes": sum(file["nbytes"] for file in files),
                "components": self._conversion.components,
                "seconds": round(self._conversion.seconds, 3),
            }
        )


class Conversion:
    """The one unit of the task: away while the process is at work, and told of by the process's lines."""

    def __init__(self, kind: str, source: Path, target: Path, precision: str, context: Context) -> None:
        self.lane: Lane | None = None
        self.away = self.done = False
        self.rows = 1
        self.error: BaseException | None = None
        self.components: dict[str, dict[str, float]] = {}
        self.seconds = 0.0
        self._order = kind, source, precision
        self._target = target
        self._context = context
        assert context.models.root is not None
        self._staged = context.models.root / STAGING / f"convert-{uuid4().hex}"
        self._process: Process | None = None

    def step(self) -> None:
        """Start the process."""
        from instructors.pipelines.convert.order import Order
        from instructors.pipelines.convert.process import Process

        self._begun = time.monotonic()
        kind, source, precision = self._order
        try:
            self._staged.mkdir(parents=True)
            self._process = Process(Order(kind, source, self._staged, precision))
        except OSError as error:
            self._end(convert_source.no_room(error))
            return
        self._context.watch(self._process, self._read)
        self.away = True

    def close(self) -> None:
        """Kill the process, and leave nothing of what it made."""
        self.away = False
        if self._process is not None:
            self._context.unwatch(self._process)
            self._process.close()
            self._process = None
        shutil.rmtree(self._staged, ignore_errors=True)

    def _read(self) -> None:
        assert self._process is not None
        try:
            for line in self._process.read():
                if "error" in line:
                    raise AtelierError.from_wire(line["error"])
                if "components" in line:
                    self.components = line["components"]
                    self._put_in_place()
                    self._end(None)
                else:
                    self._context.emit(EventName.PROGRESS, line)
        except OSError as error:
            self._end(convert_source.no_room(error))
        except AtelierError as error:
            self._end(error)

    def _put_in_place(self) -> None:
        """All at once. Raises InvalidRequest where another was quicker."""
        self._target.parent.mkdir(exist_ok=True)
        try:
            os.rename(self._staged, self._target)
        except OSError:
            if not self._target.exists():
                with suppress(OSError):
                    self._target.parent.rmdir()
                raise
            raise taken(self._target) from None

    def _end(self, error: AtelierError | None) -> None:
        self.seconds = time.monotonic() - self._begun
        self.error, self.done = error, error is None
        self.close()


def _target(data: ModelConvert, models: ModelFolder) -> Path:
    """Where the new model will lie. Raises InvalidRequest where there is one, and Unavailable without a folder."""
    if models.root is None or not models.root.is_dir():
        raise Unavailable("This worker has no model folder that a model could be put into.")
    if data.name in SHELVES or (models.root / data.name / "model_index.json").exists():
        raise _refused("name", "is the name of a model without versions, or of a folder of other things")
    versions = models.versions(data.name)
    whole = [int(version) for version in versions if version.isdigit()]
    version = data.version or str(max(whole, default=0) + 1)
    target = models.path_of(f"{data.name}:{version}")
    if target.exists():
        raise taken(target)
    return target


def taken(target: Path) -> InvalidRequest:
    return _refused("version", f"there is a {target.parent.name}:{target.name} already; give it another version")


def _refused(field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {problem}.", details={"fields": [{"field": field, "problem": problem}]})


def register(registry: Registry) -> None:
    """Adds nothing where the libraries that convert are not installed."""
    if all(find_spec(name) for name in ("torch", "diffusers", "onnxscript")):
        registry.add(ACTIONS["model.convert"], Convert, shares=True)
