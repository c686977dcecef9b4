"""What an MLflow server could answer that is wrong: a scripted HTTP server on loopback says it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from instructors.sources import Broken, Source
from instructors.sources.mlflow import MlflowSource
from protocol.codec import pack
from protocol.errors import AtelierError, Forbidden, ModelInvalid, NotFound, Unavailable

VERSION = {"model_version": {"name": "net", "version": "1"}}
LOCATION = {"artifact_uri": "mlflow-artifacts:/1/models/m-1/artifacts"}
ONE_FILE = {"files": [{"path": "model.onnx", "is_dir": False, "file_size": 5}]}


class Script(BaseHTTPRequestHandler):
    """Answers by the last part of the path: (status, body, more headers)."""

    answers: dict[str, tuple[int, Any, dict[str, str]]]
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append((self.path, self.headers.get("Authorization")))
        status, body, headers = next(answer for end, answer in self.answers.items() if path.endswith(end) or end == "*")
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests look at `asked`."""


@contextmanager
def serving(answers: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Its address, and what it was asked."""
    told = {end: answer if isinstance(answer, tuple) else (200, answer, {}) for end, answer in answers.items()}
    handler = type("Told", (Script,), {"answers": told, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def nowhere(url: str) -> Source:
    raise Forbidden(url)


USUAL = {"get-download-uri": LOCATION, "model-versions/get": VERSION, "artifacts": ONE_FILE}


def test_the_script_is_that_of_a_server() -> None:
    with serving({**USUAL, "model.onnx": b"12345"}) as (address, asked):
        source = MlflowSource("models:/net/1", address, nowhere)
        [file] = source.files()
        assert (file.path, file.nbytes) == ("model.onnx", 5)
        assert b"".join(source.read(file, 0)) == b"12345"
        assert asked[0][0] == "/api/2.0/mlflow/model-versions/get?name=net&version=1"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((200, b"<html>", {}), Broken),
        ((200, b"[1]", {}), Unavailable),
        ((200, {"model_version": None}, {}), NotFound),
        ((200, {"model_version": {}}, {}), Unavailable),
        ((401, {}, {}), Forbidden),
        ((403, {}, {}), Forbidden),
        ((404, {}, {}), NotFound),
        ((418, {}, {}), Unavailable),
        ((429, {}, {}), Broken),
        ((500, {}, {}), Broken),
        ((200, b"{}", {"Content-Length": "100", "Connection": "close"}), Broken),
        ((200, b'{"a": ' * 100_000, {}), Broken),
    ],
)
def test_a_wrong_answer_is_told_as_what_it_is(answer: Any, error: type[Exception]) -> None:
    with serving({"*": answer}) as (address, _), pytest.raises(error):
        MlflowSource("models:/net/1", address, nowhere).files()


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ([{"path": "model.onnx"}], Unavailable),
        ([{"file_size": 5}], Unavailable),
        ("files", Unavailable),
        ([{"path": f"{number}", "file_size": 1} for number in range(1001)], ModelInvalid),
        ([{"path": "a", "is_dir": True}, {"path": "b", "is_dir": True}], ModelInvalid),  # each holds two, for ever
    ],
)
def test_a_wrong_list_of_files_is_refused(files: Any, error: type[AtelierError]) -> None:
    answers = {"get-download-uri": LOCATION, "model-versions/get": VERSION, "*": {"files": files}}
    with serving(answers) as (address, _), pytest.raises(error):
        MlflowSource("models:/net/1", address, nowhere).files()


def test_credentials_go_to_the_server_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    with serving(USUAL) as (other, others):
        redirect = (302, b"", {"Location": f"{other}/api/2.0/mlflow/model-versions/get?name=net&version=1"})
        with serving({"*": redirect}) as (address, asked), pytest.raises(Unavailable, match="302"):
            MlflowSource("models:/net/1", address, nowhere).files()
        assert [header for _, header in asked] == ["Bearer secret"]
        assert others == []


def test_credentials_of_the_address_are_sent_and_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    with serving({"*": (500, {}, {})}) as (address, asked):
        known = address.replace("://", "://ada:secret@")
        with pytest.raises(Broken) as caught:
            MlflowSource("models:/net/1", known, nowhere).files()
        assert asked[0][1] == "Basic YWRhOnNlY3JldA=="
        assert "secret" not in repr(caught.value)


def test_tags_that_are_no_text_can_be_told() -> None:
    """JSON may hold half a character, which nothing that is sent may."""
    data = {"tags": [{"key": "a\ud800", "value": "\udfff"}], "metrics": [{"key": "\ud800", "value": 1}]}
    run, version = {"run": {"data": data}}, {"model_version": {**VERSION["model_version"], "run_id": "r"}}
    answers = {"model-versions/get": version, "get-download-uri": LOCATION, "runs/get": run, "artifacts": ONE_FILE}
    with serving(answers) as (address, _):
        source = MlflowSource("models:/net/1", address, nowhere)
        source.files()
    assert pack([source.told.tags, source.told.metrics])
    assert source.told.tags == {"a?": "?"}
