"""`atelier predict`: what it sends, and what it makes of the answers, beside a server that a test scripts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from orchestrator.cli import cli
from protocol.schemas import validate_data
from protocol.schemas.predict import check_tensors
from tests.cli.test_pictures import Desk, png
from tests.client.scripted import Received, ScriptedServer

ROWS = np.array([[1, np.nan], [0.5, -np.inf]], np.float32)
TOLD = {"model_id": "mlp:2", "model_version": "2", "inference_time_ms": 0.25, "cached": False, "batch_size": 8,
        "device": "cpu", "predictions": [{"label": "cät"}, {"label": None}]}  # fmt: skip
OUTPUTS = [
    {"name": "y", "dtype": "float32", "shape": [2, 2], "attachment": 0},
    {"name": "../y", "dtype": "string", "shape": [1], "data": b"\2\0\0\0ab"},
    {"name": ".._y", "dtype": "int8", "shape": [500], "data": bytes(500)},
]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", ROWS)
    Path("cat.png").write_bytes(png())
    with ScriptedServer() as server:
        yield Desk(server, tmp_path)


def predict(desk: Desk, *arguments: str) -> tuple[Received, Result]:
    def script(received: Received) -> None:
        received.respond({**TOLD, "outputs": OUTPUTS}, [ROWS.tobytes()], job_id="j", status="completed", worker_id="w")

    received, done = desk.call("predict", *arguments, script=script)
    assert done.exit_code == 0, done.output
    check_tensors(validate_data("inference.predict", received.request.data), [len(blob) for blob in received.blobs])
    return received, done


def test_a_file_a_text_and_options(desk: Desk) -> None:
    received, _ = predict(
        desk, "mlp:2", "--input", "x=rows.npy", "--input", "input:0=[[1, 2]]", "--input", "n:float32=[1]",
        "--parameter", "k=3", "--parameter", "kind=all", "--parameter", "of=[1, 2.5]", "--only", "y", "--no-cache",
        "--routing-key", "u", "--session", "s", "--priority", "7",
    )  # fmt: skip
    data = received.request.data
    tensors = {entry["name"]: (entry["dtype"], entry["shape"], entry["data"]) for entry in data.pop("inputs")}
    assert tensors == {
        "x": ("float32", [2, 2], ROWS.tobytes()), "input:0": ("int64", [1, 2], bytes([1, *[0] * 7, 2, *[0] * 7])),
        "n": ("float32", [1], b"\0\0\x80\x3f"),
    }  # fmt: skip
    assert data == {"model_id": "mlp:2", "parameters": {"k": 3, "kind": "all", "of": [1, 2.5]}, "outputs": ["y"],
                    "cache": False, "routing_key": "u"}  # fmt: skip
    assert (received.request.session_id, received.request.priority) == ("s", 7)


def test_pictures(desk: Desk) -> None:
    received, _ = predict(desk, "classifier", "--image", "cat.png", "--image", "cat.png")
    assert received.request.data == {"model_id": "classifier", "images": [{"attachment": 0}, {"attachment": 1}]}
    assert received.blobs == [png(), png()]


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float16", "float16"), ("bfloat16", "bfloat16"), ("uint8", "uint8"), ("string", "string")]
)
def test_a_file_in_another_type(desk: Desk, dtype: str, expected: str) -> None:
    np.save("bits.npy", np.array([1, 2], np.uint16))
    received, _ = predict(desk, "mlp", "--input", f"x:{dtype}=bits.npy")
    (tensor,) = received.request.data["inputs"]
    assert (tensor["dtype"], tensor["shape"]) == (expected, [2])


def test_what_people_see(desk: Desk) -> None:
    _, done = predict(desk, "mlp", "--input", "x=[1]")
    lines = dict(line.split("  ", 1) for line in done.output.splitlines() if "  " in line)
    assert lines["model"].strip() == "mlp:2"
    assert json.loads(lines["prediction 0"]) == {"label": "cät"}
    assert lines["output y"].split("  ")[-2:] == ["float32 [2, 2]", "[[1.0, null], [0.5, null]]"]
    assert len(lines["output .._y"]) < 250
    assert lines["output .._y"].endswith("…")


@pytest.mark.parametrize(("corners", "shown"), [(8, [[0, 0]] * 8), (65, [[0, 0], "… 64 more"])])
def test_a_polygon_does_not_hide_the_rest(desk: Desk, corners: int, shown: list[Any]) -> None:
    area = {"type": "Polygon", "coordinates": [[[0, 0]] * corners]}
    boxes = [{"box": [0, 0, 1, 1]}] * 20

    def script(received: Received) -> None:
        told = {**TOLD, "outputs": [], "predictions": [{"polygon": area, "detections": boxes}]}
        received.respond(told, job_id="j", status="completed", worker_id="w")

    _, done = desk.call("predict", "mlp", "--input", "x=[1]", script=script)
    (line,) = [line for line in done.output.splitlines() if line.startswith("prediction 0")]
    told = json.loads(line.removeprefix("prediction 0"))
    assert told == {"polygon": {"type": "Polygon", "coordinates": [shown]}, "detections": boxes}


def test_what_scripts_see(desk: Desk) -> None:
    _, done = predict(desk, "mlp", "--input", "x=[1]", "--json")
    told = json.loads(done.output)
    assert told["outputs"]["y"] == {"dtype": "float32", "shape": [2, 2], "values": [[1, None], [0.5, None]]}
    assert told["outputs"]["../y"]["values"] == ["ab"]
    assert (told["job_id"], told["worker_id"], told["model_version"], told["cached"]) == ("j", "w", "2", False)
    assert told["predictions"] == TOLD["predictions"]


def test_outputs_become_files_within_the_folder(desk: Desk) -> None:
    """Names are the model's own: none leads out, and no two share a file."""
    _, done = predict(desk, "mlp", "--input", "x=[1]", "--output-dir", "out/new", "--json")
    told = json.loads(done.output)["outputs"]
    paths = {name: desk.folder / entry["path"] for name, entry in told.items()}
    assert {path.parent for path in paths.values()} == {desk.folder / "out/new"}
    assert len(set(paths.values())) == 3
    assert not any(path.name.startswith(".") for path in paths.values())
    np.testing.assert_array_equal(np.load(paths["y"]), ROWS)
    assert np.load(paths["../y"]).tolist() == ["ab"]
    assert np.load(paths[".._y"]).tolist() == [0] * 500
    _, done = predict(desk, "mlp", "--input", "x=[1]", "--output-dir", "out")
    assert f"float32 [2, 2]  {Path('out/y.npy')}" in done.output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "Nothing to predict from"),
        (["--input", "x"], "is not NAME=VALUE"),
        (["--input", "=[1]"], "is not NAME=VALUE"),
        (["--input", "x=none.npy"], "No such file"),
        (["--input", "x=[1"], "neither a file NAME.npy nor JSON"),
        (["--input", "x=[[1], [2, 3]]"], "not all of one length"),
        (["--input", "x:uint8=[256]"], "not all uint8"),
        (["--input", "x=pickle.npy"], "pickle"),
        (["--input", "x=text.npy"], "x:"),
        (["--input", "x=cut.npy"], "could only read"),
        (["--input", "x=lying.npy"], "x:"),
        (["--input", "x=nonsense.npy"], "x:"),
        (["--input", "x=large.npy"], "no plain file of at most 256 MiB"),
        (["--input", "x=zip.npy"], "x:"),
        (["--image", "none.png"], "does not exist"),
        (["--input", "x=[1]", "--parameter", "k"], "is not NAME=VALUE"),
        (["--input", "x=[1]", "--output-dir", "rows.npy"], "is a file"),
        (["--input", "x=[1]", "--output-dir", "rows.npy/deeper"], "directory"),
    ],
)  # fmt: skip
def test_wrong_usage_is_told_before_anything_is_sent(desk: Desk, arguments: list[str], problem: str) -> None:
    np.save("pickle.npy", np.array([{"a": 1}], object), allow_pickle=True)
    Path("text.npy").write_text("no array")
    whole = Path("rows.npy").read_bytes()
    Path("cut.npy").write_bytes(whole[:-1])
    Path("lying.npy").write_bytes(whole.replace(b"(2, 2)", b"(9" + b"0" * 18 + b",)"))
    Path("nonsense.npy").write_bytes(whole.replace(b"{'descr", b"{({[('d"))
    with Path("large.npy").open("wb") as stream:
        stream.truncate(2**28 + 1)
    with Path("zip.npy").open("wb") as stream:
        np.savez(stream, ROWS)
    done = CliRunner().invoke(cli, ["predict", "mlp", *arguments, "--connect", desk.server.endpoint])
    assert done.exit_code == 2, done.output
    assert problem in " ".join(done.output.split())
    assert desk.server.silent()


def test_a_refusal_is_one_line(desk: Desk) -> None:
    def script(received: Received) -> None:
        fields: list[Any] = [{"field": "inputs.0", "problem": "the model has no such input", "nearest": "image"}]
        received.fail("invalid_request", details={"fields": fields})

    _, done = desk.call("predict", "mlp", "--input", "x=[1]", script=script)
    assert done.exit_code == 1
    assert "Did you mean image?" in done.output
