"""Named tensors as bytes, for the cache of results: a small header, then each tensor's bytes. No pickle."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgpack

from protocol.codec import Buffer
from protocol.errors import InvalidRequest
from protocol.tensors import Tensor, from_numpy, to_numpy

if TYPE_CHECKING:
    from numpy import ndarray

Arrays = Mapping[str, "ndarray[Any, Any]"]

ALIGNMENT = 64  # of each tensor, so that what is read back computes as fast as what was written
LENGTH_BYTES = 4  # of the header


def pack(arrays: Arrays, facts: Mapping[str, Any]) -> bytes:
    """The arrays as bytes, with a few plain values beside them (how long they took, say)."""
    tensors = [from_numpy(array) for array in arrays.values()]
    bodies = [memoryview(tensor.data) for tensor in tensors]
    header = msgpack.packb([dict(facts), [*map(_described, arrays, tensors)]])
    parts: list[Buffer] = [len(header).to_bytes(LENGTH_BYTES, "little"), header]
    at = LENGTH_BYTES + len(header)
    for body in bodies:
        gap = -at % ALIGNMENT
        parts += [bytes(gap), body]
        at += gap + body.nbytes
    return b"".join(parts)


def unpack(data: bytes) -> "tuple[dict[str, ndarray[Any, Any]], dict[str, Any]]":
    """The arrays of a `pack`, which read `data` where it lies and cannot be written to, and the values beside them.

    Raises ValueError for other bytes.
    """
    arrays = {}
    try:
        at = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
        facts, described = msgpack.unpackb(data[LENGTH_BYTES:at])
        for name, dtype, shape, nbytes in described:
            begin = at + -at % ALIGNMENT
            at = begin + nbytes
            arrays[name] = to_numpy(Tensor(dtype, shape, memoryview(data)[begin:at]))
    except (msgpack.UnpackException, InvalidRequest, TypeError, ValueError, KeyError):
        raise ValueError("these bytes are no tensors") from None
    if at != len(data) or type(facts) is not dict:
        raise ValueError("these bytes are no tensors, or not all of them")
    return arrays, facts


def key_of(content_hash: str, inputs: Arrays, outputs: Sequence[str] | None, parameters: Mapping[str, Any]) -> bytes:
    """What names a result: SHA-256 over all that it depends on. The model stands in it by its content, so no name that
    moves and no file that is replaced makes an old result answer for a new model.

    `inputs` are those of the model itself, after the steps before it; `outputs` None: all. Their order does not count.
    """
    tensors = {name: from_numpy(inputs[name]) for name in sorted(inputs)}
    asked = None if outputs is None else sorted(outputs)
    described = [*map(_described, tensors, tensors.values())]
    digest = hashlib.sha256(msgpack.packb([content_hash, described, asked, sorted(parameters.items())]))
    for tensor in tensors.values():
        digest.update(tensor.data)
    return digest.digest()


def _described(name: str, tensor: Tensor) -> list[Any]:
    return [name, tensor.dtype, list(tensor.shape), memoryview(tensor.data).nbytes]
