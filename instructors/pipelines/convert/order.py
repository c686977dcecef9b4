"""What the process that converts is told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructors.convert_source import Source

Report = Callable[[float, str], None]  # (how far, 0 to 1; what is worked on)


@dataclass(frozen=True, slots=True)
class Order:
    """`staging`: an empty folder of this conversion's own; `target`: where the model is to be, a version's folder."""

    source: Source
    staging: Path
    target: Path

    @property
    def folder(self) -> Path:
        """Where the model is made: at the same name and version as it will have."""
        return self.staging / self.target.parent.name / self.target.name

    def to_wire(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"source": self.source.to_process(), "staging": str(self.staging), "target": str(self.target)}

    @staticmethod
    def from_wire(wire: Mapping[str, Any]) -> "Order":
        """What `to_wire` gave."""
        return Order(Source.from_process(wire["source"]), Path(wire["staging"]), Path(wire["target"]))
