"""`model.convert`: a model in another form or precision, made in a process of its own and put in place when it is good.

Until then it lies in the model folder's `.staging`, which no request reaches.
"""

import json
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructors import convert_source
from instructors.convert_source import RECORD, Source
from instructors.models import INDEX, SHELVES, ModelFolder
from instructors.registry import Registry
from instructors.sources.staging import Staging
from instructors.task import Context, Lane, Result, SharedTask
from protocol.enums import EventName
from protocol.errors import AtelierError, InvalidRequest, RequestConflict, Unavailable
from protocol.schemas import ACTIONS
from protocol.schemas.model_files import ModelConvert

if TYPE_CHECKING:
    from instructors.pipelines.convert.process import Process


class Convert(SharedTask):
    """One job: a process that works elsewhere, while the worker computes for others."""

    def __init__(self, data: ModelConvert, context: Context) -> None:
        self._data = data
        models = context.models
        if models.root is None or not models.root.is_dir():
            raise Unavailable("This worker has no model folder that a model could be put into.")
        if data.name in SHELVES or (models.root / data.name / INDEX).exists():
            problem = "is the name of a model without versions, or of a folder of other things; choose another"
            raise InvalidRequest(f"name: {problem}.", details={"fields": [{"field": "name", "problem": problem}]})
        source = convert_source.find(data, models)
        version = data.version or _version(data.name, source, models)
        self._target = models.path_of(f"{data.name}:{version}")
        self._conversion = Conversion(source, self._target, context)
        self.units = [self._conversion]

    def result(self) -> Result:
        target = self._target
        files = [
            {"name": file.relative_to(target).as_posix(), "nbytes": file.stat().st_size}
            for file in sorted(target.rglob("*"))
            if file.is_file()
        ]
        return Result(
            {
                "model_id": f"{target.parent.name}:{target.name}",
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

    def __init__(self, source: Source, target: Path, context: Context) -> None:
        """Raises RequestConflict where something else is there already. What an earlier attempt made of the same
        source in the same way counts as made now."""
        self.lane: Lane | None = None
        self.away = False
        self.rows = 1
        self.error: BaseException | None = None
        self.components: dict[str, dict[str, float]] = {}
        self.seconds = 0.0
        self._source, self._target = source, target
        self._context = context
        self._process: Process | None = None
        self._staging: Staging | None = None
        self.done = target.exists()
        if self.done:
            record = _record(target)
            if record.get("made_of") != source.to_wire():
                raise RequestConflict("This version of the model is there already; choose another.")
            self.components = record["components"]

    def step(self) -> None:
        """Start the process; the rest is done when it says something."""
        from instructors.pipelines.convert.order import Order
        from instructors.pipelines.convert.process import Process

        assert self._context.models.root is not None
        self._begun = time.monotonic()
        self._staging = Staging(self._context.models.root)
        self._process = Process(Order(self._source, self._staging.path, self._target))
        self._context.watch(self._process, self._read)
        self.away = True

    def close(self) -> None:
        """End the process, and leave nothing of what it was making. Called once more where the task is over."""
        self.away = False
        process, staging, self._process, self._staging = self._process, self._staging, None, None
        if process is not None:
            self._context.unwatch(process)
            process.kill()
        if staging is not None:
            threading.Thread(target=_tidy, args=[process, staging], name="tidy", daemon=True).start()

    def _read(self) -> None:
        assert self._process is not None
        try:
            for line in self._process.read():
                if "error" in line:
                    raise AtelierError.from_wire(line["error"])
                if "components" in line:
                    self.components = line["components"]
                    self._end(None)
                else:
                    self._context.emit(EventName.PROGRESS, {**line, "eta_ms": None})
        except AtelierError as error:
            self._end(error)

    def _end(self, error: AtelierError | None) -> None:
        self.seconds = time.monotonic() - self._begun
        self.error, self.done = error, True
        self.close()


def _tidy(process: "Process | None", staging: Staging) -> None:
    """Off the device thread: a disk may take long to remove large files."""
    if process is not None:
        process.close()
    staging.close()


def _version(name: str, source: Source, models: ModelFolder) -> str:
    """That of an equal conversion, else the next whole number."""
    versions = models.versions(name)
    for version in reversed(versions):
        if _record(models.path_of(f"{name}:{version}")).get("made_of") == source.to_wire():
            return version
    whole = [int(version) for version in versions if version.isdigit()]
    return str(max(whole, default=0) + 1)


def _record(folder: Path) -> dict[str, Any]:
    """What a conversion noted in its folder; empty where there is nothing of the kind."""
    with suppress(OSError, ValueError):
        record = json.loads((folder / RECORD).read_bytes())
        if isinstance(record, dict) and isinstance(record.get("components"), dict):
            return record
    return {}


def register(registry: Registry) -> None:
    """Adds nothing where the libraries that convert are not installed."""
    if all(find_spec(name) for name in ("torch", "diffusers", "onnxscript")):
        registry.add(ACTIONS["model.convert"], Convert, shares=True)
