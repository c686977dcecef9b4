"""Headers of safetensors files: what is right, each way to be wrong, and two thousand mutations."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from instructors.catalogue import header
from instructors.catalogue.header import Damaged, Header
from instructors.models import check_weights
from protocol.errors import ModelInvalid
from tests.instructors.tensor_files import entries, write, write_raw

MUTATIONS = 2000
GOOD = entries({"a": (2, 3), "b": (4,), "c": ()})
NBYTES = 22


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    tensors = {
        "half": torch.zeros(2, 3, dtype=torch.float16),
        "small": torch.zeros(5, dtype=torch.float8_e4m3fn),
        "none": torch.zeros(0, 7),
        "number": torch.tensor(3),
    }
    save_file(tensors, file, {"told": "so"})
    found = header.read(file)
    assert found.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert (found.metadata, found.nbytes, found.elements) == ({"told": "so"}, file.stat().st_size, 6 + 5 + 0 + 1)
    assert found.dtype == "float16"


@pytest.mark.parametrize("dtype", header.BITS)
def test_every_dtype_has_its_size(tmp_path: Path, dtype: str) -> None:
    found = header.read(write(tmp_path / "x", {"a": (8, 4)}, dtype))
    assert found.tensors["a"].end == found.nbytes


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return {**GOOD, name: {**GOOD[name], **fields}}


WRONG = {
    "tensor_bounds": changed("c", shape=[2], data_offsets=[20, 24]),
    "tensor_overlap": changed("b", data_offsets=[10, 18]),
    "tensor_gap": {"a": GOOD["a"], "c": GOOD["c"]},
    "file_length": {"a": GOOD["a"], "b": GOOD["b"]},
    "tensor_size": changed("a", shape=[2, 4]),
    "tensor_offsets": changed("a", data_offsets=[12, 0]),
    "tensor_shape": changed("a", shape=[-2, -3]),
    "tensor_dtype": changed("a", dtype="F17"),
    "tensor_entry": changed("a", more=1),
    "metadata": {**GOOD, "__metadata__": {"a": 1}},
    "header_json": b"[1]",
    "duplicate_name": b'{"a": 1, "a": 2}',
}


@pytest.mark.parametrize("code", WRONG)
def test_each_way_to_be_wrong_is_told(tmp_path: Path, code: str) -> None:
    with pytest.raises(Damaged) as caught:
        header.read(write_raw(tmp_path / "x", WRONG[code], NBYTES))
    assert caught.value.code == code


@pytest.mark.parametrize("code", ["tensor_bounds", "tensor_overlap", "tensor_gap", "duplicate_name"])
def test_models_with_such_files_are_not_used(tmp_path: Path, code: str) -> None:
    file = write_raw(tmp_path / "x.safetensors", WRONG[code], NBYTES)
    with pytest.raises(ModelInvalid, match="not a whole safetensors file"):
        check_weights(file)


@pytest.mark.parametrize(
    "offsets", [[True, 12], [0.0, 12], ["0", 12], [0, 10**400], [0], [0, 12, 12], None, [[0], [12]], {"0": 1}]
)
def test_offsets_that_are_none(tmp_path: Path, offsets: Any) -> None:
    with pytest.raises(Damaged):
        header.read(write_raw(tmp_path / "x", changed("a", data_offsets=offsets), NBYTES))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "file_too_small"),
        (b"\x02\0\0\0", "file_too_small"),
        (b"\xff" * 8 + b"{}", "header_length"),
        (b"\x03\0\0\0\0\0\0\0{}", "header_length"),
        (b"\x02\0\0\0\0\0\0\0\xff\xfe", "header_json"),
        (b"\x00" * 8, "header_json"),
        ((40_000).to_bytes(8, "little") + b"[" * 40_000, "header_json"),
        ((header.HEADER_BYTES_MAX + 1).to_bytes(8, "little"), "header_length"),
    ],
)
def test_files_that_end_too_soon_or_are_something_else(tmp_path: Path, raw: bytes, code: str) -> None:
    file = tmp_path / "x"
    file.write_bytes(raw)
    with pytest.raises(Damaged) as caught:
        header.read(file)
    assert caught.value.code == code


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes((3 * 2**30).to_bytes(8, "little"))
    with file.open("r+b") as stream:
        stream.truncate(4 * 2**30)  # sparse: takes no disk
    with pytest.raises(Damaged, match="16 MiB"):
        header.read(file)


def test_mutated_headers_are_refused_or_describe_the_file(tmp_path: Path) -> None:
    """Seeded. What is taken, the library takes as well, and finds the same in it."""
    chance, file, taken = random.Random(7), tmp_path / "x.safetensors", 0
    names = {f"layer.{index}.weight": (chance.randrange(1, 5), chance.randrange(1, 5)) for index in range(8)}
    whole = write(file, names, metadata={"a": "b"}).read_bytes()
    for number in range(MUTATIONS):
        file.write_bytes(_mutate(whole, chance))
        try:
            found = header.read(file)
        except Damaged:
            continue
        taken += 1
        _assert_sound(found, file)
        with safe_open(file, "pt") as reader:
            assert set(reader.keys()) == set(found.tensors), number
    assert 10 < taken < MUTATIONS / 2  # both ends of the test are met


def test_what_the_library_refuses_is_refused(tmp_path: Path) -> None:
    """The other way round: a mutation of which the library says that it is wrong."""
    chance, file, refused = random.Random(8), tmp_path / "x.safetensors", 0
    whole = write(file, {"a": (3, 2), "b": (5,)}).read_bytes()
    for _ in range(300):
        file.write_bytes(_mutate(whole, chance))
        try:
            with safe_open(file, "pt") as reader:
                list(reader.keys())
        except (SafetensorError, UnicodeDecodeError):
            refused += 1
            with pytest.raises(Damaged):
                header.read(file)
    assert refused > 100


def _mutate(whole: bytes, chance: random.Random) -> bytes:
    length = int.from_bytes(whole[:8], "little")
    kind = chance.randrange(6)
    if kind == 0:  # a few bytes
        raw = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            raw[chance.randrange(8 + length)] = chance.randrange(256)
        return bytes(raw)
    if kind == 1:  # a digit
        digits = [index for index in range(8, 8 + length) if chr(whole[index]).isdigit()]
        at = chance.choice(digits)
        return whole[:at] + str(chance.randrange(10)).encode() + whole[at + 1 :]
    if kind == 2:  # cut, or longer
        return whole[: chance.randrange(len(whole))] if chance.random() < 0.7 else whole + bytes(chance.randrange(9))
    if kind == 3:  # another length of the header
        near = length + chance.randrange(-4, 5) if chance.random() < 0.5 else chance.randrange(2**64)
        return near.to_bytes(8, "little") + whole[8:]
    if kind == 4:  # a part twice, or gone
        begin = chance.randrange(8, 8 + length)
        end = min(begin + chance.randrange(1, 30), 8 + length)
        return whole[:end] + whole[begin:] if chance.random() < 0.5 else whole[:begin] + whole[end:]
    told = json.loads(whole[8 : 8 + length])  # another header of the right form
    names = [name for name in told if name != "__metadata__"]
    entry, other = told[chance.choice(names)], told[chance.choice(names)]
    field = chance.choice(["data_offsets", "shape", "dtype"])
    if chance.random() < 0.5:
        entry[field], other[field] = other[field], entry[field]
    elif field != "dtype":
        entry[field] = [number + chance.choice([-1, 1, 2**31, 2**63, 0]) for number in entry[field]]
    raw = json.dumps(told).encode()
    return len(raw).to_bytes(8, "little") + raw + whole[8 + length :]


def _assert_sound(found: Header, file: Path) -> None:
    size, at = file.stat().st_size, 8 + int.from_bytes(file.read_bytes()[:8], "little")
    for tensor in found.tensors.values():
        assert at == tensor.begin <= tensor.end <= size
        at = tensor.end
    assert at == size
