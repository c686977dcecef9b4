"""Real safetensors files of any header: written byte by byte, so that they can be wrong."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructors.catalogue.header import BITS


def entries(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16") -> dict[str, Any]:
    """The header of tensors that lie one after another."""
    found, at = {}, 0
    for name, shape in shapes.items():
        nbytes = math.prod(shape) * BITS[dtype] // 8
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    return found


def write(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str = "F16",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """All numbers are zero."""
    header = entries(shapes, dtype)
    nbytes = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    return write_raw(path, {**({"__metadata__": dict(metadata)} if metadata else {}), **header}, nbytes)


def write_raw(path: Path, header: Any, nbytes: int) -> Path:
    """`header` as JSON, or as bytes that are none; then `nbytes` zeros."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(8 + len(raw) + nbytes)
    return path
