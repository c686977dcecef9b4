"""The header of a safetensors file, held against the format and the file: nothing in it is believed unchecked."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from protocol.limits import MIB

HEADER_BYTES_MAX = 16 * MIB  # names and metadata; the largest in use are about 2 MiB
DIMENSIONS_MAX = 32
SIZE_MAX = 2**62  # of one axis
NAME_LENGTH_MAX = 1000
BITS = {  # of one number
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
NAMES = {  # as torch calls them
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F4": "float4_e2m1fn_x2", "F6_E2M3": "float6_e2m3fn", "F6_E3M2": "float6_e3m2fn",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
}  # fmt: skip
ENTRY = {"dtype", "shape", "data_offsets"}


class Damaged(ValueError):
    """A file is not what the format asks for. `code` is for programs; the message names no path."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Tensor:
    """`begin` and `end` are bytes from the start of the file."""

    dtype: str  # a key of BITS
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """`tensors` are in the order of their data, which they cover without a gap."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    nbytes: int  # of the file

    @property
    def dtype(self) -> str | None:
        """What most of its bytes are, as torch calls it; None: it holds none."""
        nbytes: dict[str, int] = {}
        for tensor in self.tensors.values():
            nbytes[tensor.dtype] = nbytes.get(tensor.dtype, 0) + tensor.end - tensor.begin
        return NAMES[max(nbytes, key=nbytes.__getitem__)] if nbytes else None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def read(path: Path) -> Header:
    """Raises Damaged and OSError."""
    with path.open("rb") as stream:
        return read_from(stream)


def read_from(stream: BinaryIO) -> Header:
    """Of an open file at its start. Raises Damaged and OSError."""
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(8)
    length = int.from_bytes(start, "little")
    if size < 8 or len(start) < 8:
        raise Damaged("file_too_small", f"The file has {size} bytes; safetensors have at least 10.")
    if length > size - 8:
        raise Damaged("header_length", f"Its header is said to have {length} bytes, and the file has only {size}.")
    if length > HEADER_BYTES_MAX:
        raise Damaged("header_length", f"Its header has more than {HEADER_BYTES_MAX // MIB} MiB.")
    raw = stream.read(length)
    if len(raw) != length:
        raise Damaged("header_length", "The file became shorter while it was read.")
    return _parse(raw, size)


def _parse(raw: bytes, size: int) -> Header:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged("header_json", "Its header is not JSON in UTF-8.") from None
    if type(header) is not dict or not raw.startswith(b"{"):
        raise Damaged("header_json", "Its header is not a JSON object.")
    metadata = header.pop("__metadata__", None) or {}
    if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
        raise Damaged("metadata", "Its metadata is not a map of texts.")
    start = 8 + len(raw)
    tensors = {name: _tensor(name, entry, start) for name, entry in header.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_cover(ordered, start, size)
    return Header(ordered, metadata, size)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Damaged("duplicate_name", "A name stands twice in its header.")
    return found


def _tensor(name: str, entry: Any, start: int) -> Tensor:
    label = repr(name[:100])
    if len(name) > NAME_LENGTH_MAX:
        raise Damaged("tensor_entry", f"The name of the tensor {label} is longer than {NAME_LENGTH_MAX} letters.")
    if type(entry) is not dict or entry.keys() != ENTRY:
        raise Damaged("tensor_entry", f"The entry of the tensor {label} does not say dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in BITS:
        raise Damaged("tensor_dtype", f"The dtype of the tensor {label} is not known: {str(dtype)[:50]!r}.")
    if not _sizes(shape) or len(shape) > DIMENSIONS_MAX:
        raise Damaged("tensor_shape", f"The shape of the tensor {label} is none.")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Damaged("tensor_offsets", f"The offsets of the tensor {label} make no sense.")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
        raise Damaged("tensor_size", f"The tensor {label} has {end - begin} bytes, which its shape does not give.")
    return Tensor(dtype, tuple(shape), start + begin, start + end)


def _sizes(value: Any) -> bool:
    return type(value) is list and all(type(number) is int and 0 <= number <= SIZE_MAX for number in value)


def _check_cover(tensors: Mapping[str, Tensor], start: int, size: int) -> None:
    """In the order of their data: each begins where the one before ends, and the last ends with the file."""
    at = start
    for name, tensor in tensors.items():
        label = repr(name[:100])
        if tensor.end > size:
            raise Damaged("tensor_bounds", f"The tensor {label} ends {tensor.end - size} bytes after the file.")
        if tensor.begin < at:
            raise Damaged("tensor_overlap", f"The tensor {label} overlaps another.")
        if tensor.begin > at:
            raise Damaged("tensor_gap", f"{tensor.begin - at} bytes before the tensor {label} belong to none.")
        at = tensor.end
    if at != size:
        raise Damaged("file_length", f"The last {size - at} bytes of the file belong to no tensor.")
