"""Optimised graphs on disk: taken when they fit, made again when they do not."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructors.pipelines.onnx import optimised
from instructors.pipelines.onnx.facts import Array
from instructors.pipelines.onnx.runner import Runner, RunnerSpec
from tests.instructors import onnx_models as models

X = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def answer(path: Path, kept: Path | None, x: Array = X, **settings: Any) -> tuple[bool, Array]:
    """Whether the graph of an earlier time was taken, and what the model answers."""
    runner = Runner.start(RunnerSpec(path, cache=kept, intra_op_threads=1, **settings))
    try:
        return runner.facts.from_cache, runner.run({"x": x})["y"]
    finally:
        runner.close()


def test_a_graph_is_kept_and_taken_again(tmp_path: Path, kept: Path) -> None:
    path = models.mlp(tmp_path / "model.onnx")
    _, plain = answer(path, None)
    for taken in (False, True, True):
        from_cache, y = answer(path, kept)
        assert from_cache is taken
        np.testing.assert_allclose(y, plain, rtol=1e-5, atol=1e-6)
    assert len(list(kept.iterdir())) == 1


def test_another_model_and_other_options_have_their_own(tmp_path: Path, kept: Path) -> None:
    path = models.mlp(tmp_path / "model.onnx")
    _, first = answer(path, kept)
    assert answer(path, kept, graph_optimization="basic")[0] is False
    assert answer(path, kept, graph_optimization="none")[0] is False
    models.mlp(path, seed=1)  # under the same name
    from_cache, second = answer(path, kept)
    assert from_cache is False
    assert np.abs(first - second).max() > 0.1
    assert len(list(kept.iterdir())) == 3


def test_the_same_model_elsewhere_takes_it(tmp_path: Path, kept: Path) -> None:
    answer(models.mlp(tmp_path / "a" / "model.onnx"), kept)
    assert answer(models.mlp(tmp_path / "b" / "model.onnx"), kept)[0] is True


@pytest.mark.parametrize("damage", ["changed", "cut", "emptied"])
def test_a_damaged_one_is_made_again(damage: str, tmp_path: Path, kept: Path) -> None:
    path = models.mlp(tmp_path / "model.onnx")
    _, plain = answer(path, kept)
    (file,) = kept.iterdir()
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0x40  # in the weights: onnxruntime would take it
    file.write_bytes({"changed": raw, "cut": raw[:1000], "emptied": b""}[damage])
    from_cache, y = answer(path, kept)
    assert from_cache is False
    np.testing.assert_array_equal(y, plain)
    assert answer(path, kept)[0] is True


def test_a_file_under_another_models_name_is_not_taken(tmp_path: Path, kept: Path) -> None:
    path, other = models.mlp(tmp_path / "a" / "model.onnx"), models.mlp(tmp_path / "b" / "model.onnx", seed=1)
    answer(path, kept)
    (file,) = kept.iterdir()
    answer(other, kept)
    (others,) = set(kept.iterdir()) - {file}
    shutil.copy(others, file)
    from_cache, y = answer(path, kept)
    assert from_cache is False
    np.testing.assert_array_equal(y, answer(path, None)[1])


def test_weights_beside_the_model_are_found_from_the_kept_graph(tmp_path: Path, kept: Path) -> None:
    path, x = models.external(tmp_path / "model.onnx"), np.ones((1, 64), np.float32)
    _, plain = answer(path, kept, x)
    from_cache, y = answer(path, kept, x)
    assert from_cache is True
    np.testing.assert_array_equal(y, plain)
    weights = np.zeros((64, 64), np.float32)
    (tmp_path / "weights.bin").write_bytes(weights.tobytes())
    from_cache, y = answer(path, kept, x)
    assert from_cache is False
    assert not y.any()


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    from_cache, y = answer(models.mlp(tmp_path / "model.onnx"), tmp_path / "kept" / "inner")
    assert from_cache is False
    assert y.shape == (4, 10)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_may_write_to_is_done_without(mode: int, tmp_path: Path, kept: Path) -> None:
    """Whoever can write there could put a graph under the model's key, and the digest of its own bytes."""
    path = models.mlp(tmp_path / "model.onnx")
    answer(path, kept)
    kept.chmod(mode)
    assert answer(path, kept)[0] is False
    kept.chmod(0o755)
    assert answer(path, kept)[0] is True


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_done_without(tmp_path: Path, kept: Path) -> None:
    path = models.mlp(tmp_path / "model.onnx")
    answer(path, kept)
    os.chown(kept, 65534, 65534)
    assert answer(path, kept)[0] is False


def test_a_full_disk_is_done_without(tmp_path: Path, kept: Path) -> None:
    """A file of the kept graph's name that swallows nothing: a link to the device that is always full."""
    path = models.affine(tmp_path / "model.onnx", 2, 0)
    graph = optimised.KeptGraph(kept, [path], [])

    def build(part: Path) -> str:
        with Path("/dev/full").open("wb", buffering=0) as stream:
            stream.write(path.read_bytes())
        return part.name

    assert graph.make(build) is None
    assert graph.find() is None
    assert list(kept.iterdir()) == []


def test_those_not_used_for_longest_go(kept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(optimised, "CACHE_BYTES_MAX", 250)
    places = [optimised.KeptGraph(kept, [], [number]) for number in range(3)]
    for place in places[:2]:
        place.make(lambda part: part.write_bytes(bytes(100)))
    assert places[0].find() is not None  # used again
    places[2].make(lambda part: part.write_bytes(bytes(100)))
    assert [place.find() is not None for place in places] == [True, False, True]
