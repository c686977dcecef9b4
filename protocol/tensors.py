"""Tensors on the wire: little-endian, the last axis fastest, with the type names of the Open Inference Protocol v2.

Nothing here needs numpy but `to_numpy` and `from_numpy`: the base install has none. bfloat16 is its 16 bits. Strings
are a 4-byte length and UTF-8 bytes each, one after another.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from protocol.codec import Buffer
from protocol.errors import InvalidRequest
from protocol.limits import DEFAULT_LIMITS

if TYPE_CHECKING:
    from numpy import ndarray

Dtype = Literal[
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float16", "float32", "float64", "bfloat16", "string",
]  # fmt: skip
ITEMSIZES: dict[str, int] = {
    "bool": 1, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "float16": 2, "float32": 4, "float64": 8, "bfloat16": 2,
}  # fmt: skip
CODES = dict(zip(ITEMSIZES, "?BHIQbhiqefdH", strict=True))  # of `struct`
NUMPY_NAMES = {
    "b1": "bool", "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64", "i1": "int8", "i2": "int16",
    "i4": "int32", "i8": "int64", "f2": "float16", "f4": "float32", "f8": "float64",
}  # fmt: skip
"""What numpy calls them without the byte order: asking an array for the long name takes ten times as long."""
LENGTH_BYTES = 4  # before each string
TENSOR_BYTES_MAX = DEFAULT_LIMITS.frame_bytes_max
RANK_MAX = 16
MEDIA_TYPE = "application/octet-stream"


class Tensor(NamedTuple):
    """A tensor as it stands on the wire. `data` are its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: Buffer

    def tolist(self) -> Any:
        """Its values as nested lists, a scalar as itself. Raises InvalidRequest where the bytes are not its."""
        check_nbytes(self.dtype, self.shape, memoryview(self.data).nbytes)
        flat: Sequence[Any]
        if self.dtype == "string":
            flat = split_strings(self.data, math.prod(self.shape))
        else:
            flat = struct.unpack(f"<{math.prod(self.shape)}{CODES[self.dtype]}", self.data)
            flat = [_widened(bits) for bits in flat] if self.dtype == "bfloat16" else flat
        return _nested(flat, self.shape)


def nbytes_of(dtype: str, shape: Iterable[int]) -> int:
    """How many bytes a tensor has; of strings, how many at the least."""
    return math.prod(shape) * ITEMSIZES.get(dtype, LENGTH_BYTES)


def size_problem(dtype: str, shape: Sequence[int], nbytes: int) -> str | None:
    """What is wrong with a tensor of so many bytes; None: nothing."""
    expected = nbytes_of(dtype, shape)
    if nbytes == expected or (dtype == "string" and nbytes > expected > 0):
        return None
    least = "at least " if dtype == "string" else ""
    return f"has {nbytes} bytes; {dtype} of shape {list(shape)} has {least}{expected}"


def check_nbytes(dtype: str, shape: Sequence[int], nbytes: int) -> None:
    """Raises InvalidRequest where a tensor has not as many bytes as its shape says."""
    if (problem := size_problem(dtype, shape, nbytes)) is not None:
        raise InvalidRequest(f"A tensor {problem}.")


def join_strings(items: Iterable[str | bytes]) -> bytes:
    """The bytes of a tensor of strings."""
    raw = [item.encode() if isinstance(item, str) else item for item in items]
    return b"".join(piece for item in raw for piece in (len(item).to_bytes(LENGTH_BYTES, "little"), item))


def split_strings(data: Buffer, count: int) -> list[str]:
    """The strings of a tensor that has so many. Raises InvalidRequest where they are fewer, more, or not UTF-8."""
    view, start = memoryview(data), 0
    found: list[str] = []
    try:
        while start < view.nbytes and len(found) < count:
            (length,) = struct.unpack_from("<I", view, start)
            end = start + LENGTH_BYTES + length
            found.append(str(view[start + LENGTH_BYTES : end], "utf-8"))
            start = end
    except (struct.error, UnicodeDecodeError):
        raise InvalidRequest("A tensor's strings are no lengths of 4 bytes, each with so much UTF-8.") from None
    if start != view.nbytes or len(found) != count:
        raise InvalidRequest(f"A tensor's bytes are not its {count} strings.")
    return found


def from_list(value: Any, dtype: str | None = None) -> Tensor:
    """A tensor of nested lists, or of one value. Without a `dtype`: float32 where a number has a fraction, else int64,
    bool or string. Raises ValueError (ragged, of several kinds, out of range)."""
    shape = _shape(value)
    flat = _flat(value, shape)
    dtype = dtype or _dtype_of(flat)
    only = {"string": str, "bool": bool}.get(dtype, object)
    if not all(isinstance(item, only) for item in flat):
        raise ValueError(f"its values are not all {dtype}")
    if dtype == "string":
        return Tensor(dtype, shape, join_strings(flat))
    try:
        flat = [_narrowed(item) for item in flat] if dtype == "bfloat16" else flat
        return Tensor(dtype, shape, struct.pack(f"<{len(flat)}{CODES[dtype]}", *flat))
    except KeyError:
        raise ValueError(f"there is no dtype {dtype!r}; there are {', '.join(ITEMSIZES)} and string") from None
    except (struct.error, OverflowError, TypeError) as error:
        raise ValueError(f"its values are not all {dtype}: {error}") from None


def to_numpy(tensor: Tensor) -> "ndarray[Any, Any]":
    """An array that reads the tensor's bytes where they lie: read-only, bfloat16 as uint16, strings as objects.

    Raises InvalidRequest where the bytes are not the tensor's.
    """
    import numpy

    dtype, shape, data = tensor
    if dtype == "string":
        items = split_strings(data, math.prod(shape))
        strings = numpy.empty(len(items), object)
        strings[:] = items
        return _shaped(strings, shape)
    check_nbytes(dtype, shape, memoryview(data).nbytes)
    if dtype == "bool" and (numpy.frombuffer(data, "u1") > 1).any():
        raise InvalidRequest("A tensor's bools are bytes of 0 and 1 only.")
    array = _shaped(numpy.frombuffer(data, f"<{CODES[dtype]}"), shape)
    array.flags.writeable = False
    return array


def _shaped(flat: "ndarray[Any, Any]", shape: Sequence[int]) -> "ndarray[Any, Any]":
    try:
        return flat.reshape(shape)
    except ValueError:  # without items, but of sides whose product is beyond what numpy counts
        raise InvalidRequest("A tensor's shape is larger than any array can be.") from None


def from_numpy(array: "ndarray[Any, Any]", dtype: str | None = None) -> Tensor:
    """A tensor of an array; of one that is contiguous and little-endian without a copy.

    `dtype="bfloat16"`: the array holds the bits as uint16. Raises TypeError for what no tensor holds (complex numbers,
    dates, objects that are not strings).
    """
    import numpy

    if array.dtype.kind in "OUST":
        items = array.ravel().tolist()
        if not all(isinstance(item, str | bytes) for item in items):
            raise TypeError("An array of objects may hold strings only.")
        return Tensor("string", array.shape, join_strings(items))
    name = dtype or NUMPY_NAMES.get(array.dtype.str[1:], "")
    if name not in ITEMSIZES or array.dtype.itemsize != ITEMSIZES[name]:
        raise TypeError(f"No tensor holds {array.dtype}; there are {', '.join(ITEMSIZES)} and string.")
    if name == "bfloat16":
        array = array.view(numpy.uint16)
    plain = numpy.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return Tensor(name, array.shape, plain.reshape(-1).view(numpy.uint8).data)


def _shape(value: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(value, list | tuple):
        shape.append(len(value))
        value = value[0] if value else None
        if len(shape) > RANK_MAX:
            raise ValueError(f"a tensor has at most {RANK_MAX} axes")
    return tuple(shape)


def _flat(value: Any, shape: Sequence[int]) -> list[Any]:
    level = [value]
    for size in shape:
        if not all(isinstance(item, list | tuple) and len(item) == size for item in level):
            raise ValueError("its lists are not all of one length")
        level = [inner for item in level for inner in item]
    if not all(isinstance(item, bool | int | float | str) for item in level):
        raise ValueError("it holds something beside numbers, bools and strings, or its lists are not all as deep")
    return level


def _dtype_of(flat: Sequence[Any]) -> Dtype:
    kinds = {type(item) for item in flat}
    if kinds <= {str} and kinds:
        return "string"
    if kinds == {bool}:
        return "bool"
    if kinds <= {int, float}:
        return "int64" if kinds == {int} else "float32"
    raise ValueError("its values are of several kinds")


def _nested(flat: Sequence[Any], shape: Sequence[int]) -> Any:
    if len(shape) < 2:
        return list(flat) if shape else flat[0]
    step = math.prod(shape[1:])
    return [_nested(flat[index * step : (index + 1) * step], shape[1:]) for index in range(shape[0])]


def _widened(bits: int) -> float:
    number: float = struct.unpack("<f", struct.pack("<I", bits << 16))[0]
    return number


def _narrowed(number: float) -> int:
    """The bits of the nearest bfloat16, of two as near the even one."""
    bits: int = struct.unpack("<I", struct.pack("<f", number))[0]
    if number != number:
        return bits >> 16 | 0x40
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
