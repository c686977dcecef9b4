"""NaN and infinity in the weights: every number of a safetensors file, some megabytes at a time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from instructors.catalogue.header import Header
from protocol.limits import MIB

SLICE_BYTES = 4 * MIB
NOT_FINITE = {  # dtype -> numpy's type for its bits, which of them are looked at, and how they are if it is no number
    "F64": ("<u8", 0x7FF0000000000000, 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000, 0x7F800000),
    "C64": ("<u4", 0x7F800000, 0x7F800000),  # two F32
    "F16": ("<u2", 0x7C00, 0x7C00),
    "BF16": ("<u2", 0x7F80, 0x7F80),
    "F8_E5M2": ("u1", 0x7C, 0x7C),
    "F8_E4M3": ("u1", 0x7F, 0x7F),  # has no infinity
    "F8_E4M3FNUZ": ("u1", 0xFF, 0x80),
    "F8_E5M2FNUZ": ("u1", 0xFF, 0x80),
    "F8_E8M0": ("u1", 0xFF, 0xFF),
}


def count_not_finite(path: Path, header: Header) -> Iterator[tuple[str, int]]:
    """(tensor's name, how many of its numbers are NaN or infinite) for each slice of each tensor of a float dtype.

    Raises OSError, also where the file has become shorter. The file is read and not mapped: of a mapped file that is
    cut short meanwhile, the next look would kill the process.
    """
    buffer = bytearray(SLICE_BYTES)
    with path.open("rb", buffering=0) as stream:
        for name, tensor in header.tensors.items():
            if tensor.dtype not in NOT_FINITE:
                continue
            dtype, mask, mark = NOT_FINITE[tensor.dtype]
            at = tensor.begin
            stream.seek(at)
            while at < tensor.end:
                wanted = memoryview(buffer)[: min(SLICE_BYTES, tensor.end - at)]
                if stream.readinto(wanted) != len(wanted):
                    raise OSError("the file became shorter")
                bits = np.frombuffer(wanted, dtype)
                yield name, int(np.count_nonzero((bits & bits.dtype.type(mask)) == mark))
                at += len(wanted)
