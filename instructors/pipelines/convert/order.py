"""What a conversion is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

Report = Callable[[float, str], None]  # (how far, 0 to 1; what is worked on)


@dataclass(frozen=True, slots=True)
class Order:
    """`kind`: "pipeline", "transformers" or "single_file". `target`: a folder that is there and empty."""

    kind: str
    source: Path
    target: Path
    precision: str = "float32"

    def to_wire(self) -> dict[str, str]:
        """For the process that converts."""
        return {name: str(getattr(self, name)) for name in self.__slots__}

    @staticmethod
    def from_wire(wire: Mapping[str, str]) -> "Order":
        """What `to_wire` gave."""
        return Order(wire["kind"], Path(wire["source"]), Path(wire["target"]), wire["precision"])
