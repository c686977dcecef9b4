"""Runs `model.convert` as a worker does, without one; and small sources for it."""

import selectors
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructors.convert import Convert
from instructors.sources.staging import FOLDER
from instructors.task import Source
from protocol.schemas.base import validate
from protocol.schemas.model_files import ModelConvert
from tests.instructors.conftest import Desk


class ConvertDesk(Desk):
    """A desk that hears what arrives at watched sources, while a test waits."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._selector = selectors.DefaultSelector()

    def watch(self, source: Source, arrived: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, arrived)

    def unwatch(self, source: Source) -> None:
        self._selector.unregister(source)

    def hear(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data()

    def begin(self, **data: Any) -> Convert:
        """The task; its process is started with the first step."""
        wanted = validate(ModelConvert, data)
        assert isinstance(wanted, ModelConvert)
        return Convert(wanted, self)

    def finish(self, task: Convert, within_s: float) -> dict[str, Any]:
        """What it answers. Raises what it ends with."""
        (unit,) = task.units
        until = time.monotonic() + within_s
        while not unit.done:
            assert time.monotonic() < until, "it does not end"
            self.hear(0.1)
        if unit.error is not None:
            raise unit.error
        return task.result().data

    def convert(self, within_s: float = 50, **data: Any) -> dict[str, Any]:
        task = self.begin(**data)
        if not task.units[0].done:
            begun = time.monotonic()
            task.step()
            assert time.monotonic() - begun < 2  # the device thread does not wait for it
        return self.finish(task, within_s)

    @property
    def staged(self) -> list[Path]:
        """What lies in the staging folder, once what was to be removed has had time to be."""
        assert self.models.root is not None
        folder, until = self.models.root / FOLDER, time.monotonic() + 10
        while folder.is_dir() and list(folder.iterdir()) and time.monotonic() < until:
            time.sleep(0.02)
        return list(folder.iterdir()) if folder.is_dir() else []


def classifier(folder: Path, seed: int = 0) -> Any:
    """A text classifier of a few thousand random weights, saved as transformers does."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, num_labels=3, initializer_range=0.5,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    return model
