"""`model.validate`: whether a model's files are sound, in steps of milliseconds; and, if asked, whether it runs."""

import time
from collections.abc import Iterator
from importlib.util import find_spec

from instructors.catalogue import checks, target
from instructors.catalogue.report import Report
from instructors.discover import Usable
from instructors.registry import Registry
from instructors.task import Context, Result, Task
from protocol.errors import AtelierError
from protocol.schemas import ACTIONS
from protocol.schemas.model_files import ModelValidate

STEP_S = 0.02  # a step ends after so long, or after the part of a check at which it does


class Validate(Task):
    def __init__(self, data: ModelValidate, context: Context) -> None:
        self._data = data
        self._context = context
        self._target = target.find(data.model_id or data.name or "", context.models)
        self._report = Report()
        self._work = self._checks()

    def step(self) -> Result | None:
        until = time.monotonic() + STEP_S
        for _ in self._work:
            if time.monotonic() >= until:
                return None
        found = {"name": self._target.name, "type": self._target.content.type}
        return Result({**found, **self._report.to_wire()})

    def _checks(self) -> Iterator[None]:
        report = self._report
        yield from checks.run(self._target, self._context.models, report, self._data.values)
        if not self._data.deep:
            report.skipped("deep", "not asked for")
        elif not report.is_valid:
            report.skipped("deep", "the files are not sound")
        elif not (find_spec("torch") and find_spec("diffusers")):
            report.skipped("deep", "this worker has no libraries that compute")
        else:
            yield from self._deep(report)

    def _deep(self, report: Report) -> Iterator[None]:
        from instructors.pipelines import trial

        model_id = Usable(self._context.models).id_of(self._target.name, self._target.content)
        if model_id is None or not trial.can(self._target):
            report.skipped("deep", "only a model or a VAE in the model folder runs by itself")
            return
        with report.check("deep") as facts:
            try:
                yield from trial.run(self._target, model_id, self._context, facts)
            except AtelierError as error:
                remedy = "Its files are whole, but they do not work together: get the model anew."
                report.error(error.code.value, error.message, remedy)


def register(registry: Registry) -> None:
    registry.add(ACTIONS["model.validate"], Validate)
