from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from instructors.models import ModelFolder
from instructors.registry import Registry, load
from instructors.statistics import Statistics
from instructors.task import Blob, Padding, R, Result
from protocol.enums import EventName
from protocol.errors import Cancelled
from tests.instructors import tiny


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # diffusers 0.42 makes torch tensors of numpy's and back in ways that numpy 2 dislikes
        item.add_marker(pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"))
        item.add_marker(pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"))


class Desk:
    """A `Context` without a worker: keeps what is loaded, records events, cancels at the quantum it is told."""

    device = device_kind = "cpu"
    blobs: Sequence[Blob] = ()
    padding = Padding()
    cache_dir: Path | None = None

    def __init__(self, root: Path | None) -> None:
        self.models = ModelFolder(root)
        self.statistics = Statistics()
        self.events: list[tuple[EventName, dict[str, Any], Sequence[Blob]]] = []
        self.quanta = 0
        self.cancel_at: int | None = None
        self._loaded: dict[str, Any] = {}

    def quantum(self) -> None:
        self.quanta += 1
        if self.quanta == self.cancel_at:
            raise Cancelled

    def emit(self, event: EventName, data: dict[str, Any], blobs: Sequence[Blob] = ()) -> None:
        self.events.append((event, data, blobs))

    def resident(self, key: str, nbytes: int, load: Callable[[], R]) -> R:
        if key not in self._loaded:
            self._loaded[key] = load()
        return self._loaded[key]

    def part(self, key: str) -> Any:
        return next((value.parts[key] for value in self._loaded.values() if key in getattr(value, "parts", {})), None)

    def forget(self, key: str) -> bool:
        return self._loaded.pop(key, None) is not None

    def retire(self, key: str) -> None:
        self._loaded.pop(key, None)

    def keys_of(self, name: str) -> list[str]:
        return [key for key, value in self._loaded.items() if value.name == name]

    def is_kept(self, key: str) -> bool:
        return False

    def named(self, event: EventName) -> list[tuple[dict[str, Any], Sequence[Blob]]]:
        return [(data, blobs) for name, data, blobs in self.events if name is event]

    def reset(self) -> None:
        self.events.clear()
        self.quanta, self.cancel_at = 0, None


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that holds the model "tiny"."""
    root = tmp_path_factory.mktemp("models")
    tiny.build(root / "tiny")
    return root


@pytest.fixture(scope="session")
def registry() -> Registry:
    return load([])


@pytest.fixture(scope="session")
def shared_desk(tiny_root: Path) -> Desk:
    return Desk(tiny_root)


@pytest.fixture
def desk(shared_desk: Desk) -> Desk:
    """With the tiny model, which stays loaded from test to test."""
    shared_desk.reset()
    return shared_desk


@pytest.fixture
def generate(registry: Registry, desk: Desk) -> Callable[..., Result]:
    """Run `inference.text2img` to its end."""

    def run(**data: Any) -> Result:
        task = registry.make_task("inference.text2img", {"prompt": "a red circle", "steps": 3, **data}, desk)
        while (result := task.step()) is None:
            pass
        return result

    return run


def files(result: Result) -> list[bytes]:
    """The encoded pictures."""
    return [bytes(blob.data() if callable(blob.data) else blob.data) for blob in result.blobs]
