"""Models that `models.toml` wants loaded and kept: from the start on, and as it says whenever it is read again."""

import structlog

from instructors.models import ONNX
from instructors.task import Place
from protocol.errors import AtelierError, ModelInvalid

log = structlog.get_logger("instructors.keeping")


class Keeping:
    """Used on the device thread."""

    def __init__(self) -> None:
        self._names: set[str] = set()  # that were kept because the file said so

    def apply(self, place: Place) -> None:
        """Load what is to be kept, and let others be evicted again. Models that predict come when they are loaded."""
        try:
            names = set(place.models.kept())
        except ModelInvalid as error:
            log.error("what is kept stays", problem=error.message)
            return
        for name in sorted(self._names - names):
            for key in place.keys_of(name):
                place.keep(key, False)
        for name in sorted(names):
            try:
                self._keep(name, place)
            except Exception as error:  # libraries raise of every kind; others are loaded all the same
                _failed(name, error)
        self._names = names

    def _keep(self, name: str, place: Place) -> None:
        if place.models.find(name).family != ONNX:
            from instructors.pipelines import loading

            loading.resident(name, place)
        elif not place.keys_of(name):
            lasting = place.lasting

            def ready(problem: Exception | None) -> None:
                if problem is None:
                    self._keep_latest(name, lasting)
                else:
                    _failed(name, problem)

            lasting.loader.serving(name, lasting, ready)
            return
        self._keep_latest(name, place)

    def _keep_latest(self, name: str, place: Place) -> None:
        for key in place.keys_of(name)[-1:]:
            place.keep(key)


def _failed(name: str, error: Exception) -> None:
    problem = error.message if isinstance(error, AtelierError) else repr(error)
    log.error("a model that is to be kept cannot be loaded", model_id=name, problem=problem)
