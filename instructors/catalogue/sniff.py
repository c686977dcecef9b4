"""What a file is, by its bytes: safetensors, ONNX, a pickle, or none of them."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from instructors.catalogue import header
from instructors.catalogue.header import Damaged, Header
from protocol.limits import KIB, MIB

SAFETENSORS, ONNX, PICKLE, UNKNOWN = "safetensors", "onnx", "pickle", "unknown"
NOT_EVEN_A_HEADER = ("file_too_small", "header_length", "header_json")
ZIP = b"PK\x03\x04"
ZIP_END = b"PK\x05\x06"
ZIP_HEAD_BYTES, ZIP_TAIL_BYTES = 4 * KIB, 4 * MIB  # where the first name stands, and the directory of all names
PICKLE_SUFFIXES = (b".pkl", b".pickle")
IR_VERSION_TAG, IR_VERSION_MAX = 0x08, 99
NEXT_TAGS = b"\x12\x1a\x22\x28\x32\x3a\x42\x72\xa2\xca"  # of the fields that may follow in an ONNX file
LAYERS = (
    "layers_per_block", "num_layers", "num_single_layers", "num_hidden_layers", "transformer_layers_per_block", "depth"
)  # fmt: skip
BLOCKS = ("block_out_channels", "down_block_types", "up_block_types")
LAYERS_MAX, BLOCKS_MAX = 200, 32
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")  # the name of a class, or of a component
REMEDY_PICKLE = "Convert it to safetensors on a machine where running its code is no danger."


@dataclass(frozen=True, slots=True)
class Sniffed:
    """`format` is one of the constants above; `damaged` says why a file that begins as safetensors is none."""

    format: str
    header: Header | None = None
    damaged: Damaged | None = None


def sniff(path: Path) -> Sniffed:
    """An ONNX file is told by its first fields only. Raises OSError."""
    with path.open("rb") as stream:
        start = stream.read(9)
        if _is_pickle(start, stream):
            return Sniffed(PICKLE)
        if _begins_as_onnx(start):
            return Sniffed(ONNX)
        if start[8:9] != b"{":
            return Sniffed(UNKNOWN)
        stream.seek(0)
        try:
            return Sniffed(SAFETENSORS, header.read_from(stream))
        except Damaged as damaged:
            if path.suffix.lower() == ".safetensors" or damaged.code not in NOT_EVEN_A_HEADER:
                return Sniffed(SAFETENSORS, damaged=damaged)
            return Sniffed(UNKNOWN)


def _begins_as_onnx(start: bytes) -> bool:
    """With the version of the format and one of the fields that come after it."""
    return len(start) > 2 and start[0] == IR_VERSION_TAG and 0 < start[1] <= IR_VERSION_MAX and start[2] in NEXT_TAGS


def _is_pickle(start: bytes, stream: BinaryIO) -> bool:
    """A pickle's own mark; or a zip with a pickle in it, as torch writes them, or one that was cut off. The directory
    of a zip is not parsed: it may be made to take gigabytes."""
    if len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return True
    if not start.startswith(ZIP):
        return False
    stream.seek(0)
    told = stream.read(ZIP_HEAD_BYTES)
    stream.seek(max(stream.seek(0, os.SEEK_END) - ZIP_TAIL_BYTES, 0))
    told += stream.read(ZIP_TAIL_BYTES)
    return ZIP_END not in told or any(suffix in told for suffix in PICKLE_SUFFIXES)


def read_json(path: Path, bytes_max: int = MIB) -> dict[str, Any] | None:
    """A JSON object from a small file; None where it is none, or not there."""
    try:
        if path.stat().st_size > bytes_max:
            return None
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if type(found) is dict else None


def class_of(config: Mapping[str, object]) -> str | None:
    """The class that a config of diffusers or transformers names. What is no name of one is not passed on."""
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    told = config.get("_class_name") or named
    return told if type(told) is str and IDENTIFIER.fullmatch(told) else None


def is_too_deep(config: Mapping[str, Any]) -> bool:
    """Whether a component of this config would have so many layers that making it takes minutes."""
    for name in (*LAYERS, *BLOCKS):
        value = config.get(name)
        numbers = value if isinstance(value, list) else [value]
        numbers = [number for entry in numbers for number in (entry if isinstance(entry, list) else [entry])]
        if len(numbers) > BLOCKS_MAX and name in BLOCKS:
            return True
        if name in LAYERS and any(isinstance(number, int | float) and number > LAYERS_MAX for number in numbers):
            return True
    return False
