"""What `model.fetch` refuses to bring into the model folder, and how it goes on where a connection broke."""

import hashlib
import io
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from instructors.models import ModelFolder
from instructors.sources import Broken, Source, SourceFile, Told, download
from instructors.sources.bring import bring
from instructors.sources.folder import FolderSource
from instructors.sources.remote import open_url
from instructors.sources.upload import UploadSource
from protocol.errors import (
    AtelierError,
    Forbidden,
    InvalidRequest,
    ModelInvalid,
    NotFound,
    PayloadTooLarge,
    RequestConflict,
    Unavailable,
)
from tests.instructors.fetching import onnx_bytes
from tests.instructors.onnx_models import affine

PICKLE = b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07example\x94."


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    (path / ".staging" / "place").mkdir(parents=True)
    return path


def bring_from(source: Source, root: Path) -> dict[str, Any]:
    """Without a process of its own."""
    return bring(source, root, root / ".staging" / "place", "found", "1", lambda done, total: None)


def upload(files: Sequence[tuple[str, bytes]]) -> UploadSource:
    sizes = [(path, len(data)) for path, data in files]
    return UploadSource(sizes, io.BytesIO(b"".join(data for _, data in files)))


class Flaky:
    """A place whose connections break after so many bytes, as the test says; it notes where each began."""

    def __init__(self, data: bytes, breaks: Sequence[int], resumes: bool = True) -> None:
        self._data, self._breaks = data, list(breaks)
        self.resumes = resumes
        self.told = Told()
        self.begun: list[int] = []

    def files(self) -> Sequence[SourceFile]:
        return [SourceFile("model.onnx", len(self._data))]

    def read(self, file: SourceFile, begin: int) -> Iterator[bytes]:
        self.begun.append(begin)
        left = self._breaks.pop(0) if self._breaks else len(self._data)
        for at in range(begin, min(begin + left, len(self._data)), 100):
            yield self._data[at : min(at + 100, begin + left)]
        if begin + left < len(self._data):
            raise Broken("gone")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSE_S", 0.001)


@pytest.mark.usefixtures("quick")
def test_a_broken_download_goes_on_where_it_broke(root: Path, tmp_path: Path) -> None:
    data = onnx_bytes(tmp_path)
    source = Flaky(data, [100, 0, 20, 0, 0, 0, 30])  # tries in a row without a byte are what is counted
    answer = bring_from(source, root)
    assert source.begun == [0, 100, 100, 120, 120, 120, 120, 150]
    assert answer["metadata"]["hashes"]["model.onnx"] == hashlib.sha256(data).hexdigest()
    assert (root / "found" / "1" / "model.onnx").read_bytes() == data


@pytest.mark.usefixtures("quick")
def test_where_nothing_can_be_resumed_a_file_begins_anew(root: Path, tmp_path: Path) -> None:
    data = onnx_bytes(tmp_path)
    source = Flaky(data, [100, 120], resumes=False)
    answer = bring_from(source, root)
    assert source.begun == [0, 0, 0]
    assert answer["metadata"]["hashes"]["model.onnx"] == hashlib.sha256(data).hexdigest()
    assert (root / "found" / "1" / "model.onnx").read_bytes() == data


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("resumes", [True, False])
def test_a_place_that_goes_on_failing_is_unavailable(resumes: bool, root: Path, tmp_path: Path) -> None:
    source = Flaky(onnx_bytes(tmp_path), [100] + [0] * 50, resumes)
    with pytest.raises(Unavailable, match="gone"):
        bring_from(source, root)
    assert len(source.begun) <= download.TRIES + 1


@pytest.mark.usefixtures("quick")
def test_a_connection_that_ends_early_without_a_word_is_noticed(root: Path, tmp_path: Path) -> None:
    class Ending(Flaky):
        def read(self, file: SourceFile, begin: int) -> Iterator[bytes]:
            with suppress(Broken):
                yield from super().read(file, begin)

    data = onnx_bytes(tmp_path)
    source = Ending(data, [100])
    bring_from(source, root)
    assert source.begun == [0, 100]
    assert (root / "found" / "1" / "model.onnx").read_bytes() == data


def test_a_file_that_grows_meanwhile_is_refused(root: Path, tmp_path: Path) -> None:
    class Growing(Flaky):
        def files(self) -> Sequence[SourceFile]:
            return [SourceFile("model.onnx", 100)]

    with pytest.raises(ModelInvalid, match="grew"):
        bring_from(Growing(onnx_bytes(tmp_path), []), root)


def test_too_many_files_or_bytes_are_refused(root: Path) -> None:
    class Large(Flaky):
        def files(self) -> Sequence[SourceFile]:
            return [SourceFile("model.onnx", download.BYTES_MAX), SourceFile("more", 1)]

    with pytest.raises(ModelInvalid, match="more than 1000 files"):
        bring_from(upload([(f"file {number}", b"") for number in range(1001)]), root)
    place = root / ".staging" / "place" / "found"
    (place / "1").rmdir()
    place.rmdir()
    with pytest.raises(PayloadTooLarge):
        bring_from(Large(b"", []), root)


@pytest.mark.parametrize(
    "path",
    [
        "../x", "/etc/x", "a/../../x", "./x", "a/./x", "a//b", "a/", "", "a\\b", "a\0b", "a\nb", "c:x",
        "a/b/c/d/e/f/g/h/i", "x" * 201, "ä" * 128,
    ],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_is_refused(path: str, root: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidRequest, match="relative and plain"):
        bring_from(upload([("model.onnx", b"x"), (path, b"x")]), root)
    place = root / ".staging" / "place" / "found"
    assert sorted(tmp_path.rglob("*")) == sorted([*before, place, place / "1"])


@pytest.mark.parametrize("paths", [("model.onnx", "model.onnx"), ("a", "a/b"), ("a/b/c", "a")])
def test_paths_that_clash_are_refused(paths: tuple[str, str], root: Path) -> None:
    with pytest.raises(InvalidRequest, match="same path"):
        bring_from(upload([(path, b"x") for path in paths]), root)


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"model.onnx": b""}, "empty"),
        ({"model.onnx": b"not an onnx file"}, "ONNX"),
        ({"readme.md": b"# no model"}, "no model"),
        ({"model.onnx": None, "weights.pkl": PICKLE}, "pickle"),
        ({"model.onnx": None, "weights.bin": b"PK\x03\x04"}, "pickle"),
        ({"model.onnx": None, "weights.safetensors": b"\xff" * 20}, "safetensors"),
        ({"model.onnx": None, "model.toml": b"[onnx]\nthreads = 3"}, r"model\.toml"),
        ({"model_index.json": b"{"}, r"model_index\.json"),
    ],
)
def test_what_no_model_could_be_is_refused(
    files: dict[str, bytes | None], error: str, root: Path, tmp_path: Path
) -> None:
    sent = [(path, onnx_bytes(tmp_path) if data is None else data) for path, data in files.items()]
    with pytest.raises(ModelInvalid, match=error) as caught:
        bring_from(upload(sent), root)
    assert str(tmp_path) not in caught.value.message
    assert [path.name for path in root.iterdir()] == [".staging"]


@pytest.mark.parametrize("folder", ["../elsewhere", "/etc", ".", "link", "net/../..", "a\0b"])
def test_a_folder_outside_is_refused(folder: str, root: Path, tmp_path: Path) -> None:
    affine(tmp_path / "elsewhere" / "model.onnx", 2.0, 0.0)
    (root / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Forbidden):
        bring_from(FolderSource(folder, root, whole=False), root)
    assert ModelFolder(root).names() == []


def test_a_link_within_a_folder_cannot_lead_out(root: Path, tmp_path: Path) -> None:
    affine(root / "incoming" / "model.onnx", 2.0, 0.0)
    (tmp_path / "secret").write_text("secret")
    (root / "incoming" / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(Forbidden):
        bring_from(FolderSource("incoming", root, whole=False), root)


def test_a_file_that_becomes_a_link_meanwhile_is_not_followed(root: Path, tmp_path: Path) -> None:
    file = affine(root / "incoming" / "model.onnx", 2.0, 0.0)
    affine(tmp_path / "secret.onnx", 3.0, 0.0)
    source = FolderSource("incoming", root, whole=False)
    [listed] = source.files()
    file.unlink()
    file.symlink_to(tmp_path / "secret.onnx")
    with pytest.raises(ModelInvalid, match="changed"):
        list(source.read(listed, 0))


def test_a_file_that_is_written_to_meanwhile_is_refused(root: Path) -> None:
    """Half of it before, half of it after: it would be neither."""
    file = affine(root / "incoming" / "model.onnx", 2.0, 0.0)
    os.utime(file, (0, 0))  # times are coarse: what is written at once may not change them
    source = FolderSource("incoming", root, whole=False)
    [listed] = source.files()
    pieces = source.read(listed, 0)
    next(pieces)
    with file.open("r+b") as stream:
        stream.write(b"\0")
    with pytest.raises(ModelInvalid, match="changed"):
        list(pieces)


def test_a_folder_that_leads_out_is_not_written_to(root: Path, tmp_path: Path) -> None:
    """An operator's link, or one from a copied folder, in the place of the model."""
    (tmp_path / "elsewhere").mkdir()
    (root / "found").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Forbidden):
        bring_from(upload([("model.onnx", onnx_bytes(tmp_path))]), root)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_in_the_place_of_the_models_folder_is_a_conflict(root: Path, tmp_path: Path) -> None:
    (root / "found").write_text("notes")
    with pytest.raises(RequestConflict):
        bring_from(upload([("model.onnx", onnx_bytes(tmp_path))]), root)


def test_a_folder_that_is_not_there_is_not_found(root: Path) -> None:
    with pytest.raises(NotFound):
        bring_from(FolderSource("incoming", root, whole=False), root)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("s3://other/net", Forbidden),
        ("s3://models-of-others/net", Forbidden),
        ("http://127.0.0.1/net", Forbidden),
        ("file:///etc", Forbidden),
        ("s3://models/../other/net", InvalidRequest),
        ("s3://models/%2e%2e/other", InvalidRequest),
        ("s3://models/net?versionId=1", InvalidRequest),
        ("s3://models/*", InvalidRequest),
        ("zip://model.onnx::s3://models/net.zip", InvalidRequest),
        ("models/net", InvalidRequest),
    ],
)
def test_only_urls_that_the_operator_allowed_are_opened(url: str, error: type[AtelierError]) -> None:
    with pytest.raises(error):
        open_url(url, ["s3://models/", "file:///srv/incoming/"])


@contextmanager
def serving(files: dict[str, bytes], moved: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """A web server on loopback: its address, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            data = files.get(self.path)
            self.send_response(302 if self.path in moved else 404 if data is None else 200)
            if self.path in moved:
                self.send_header("Location", moved[self.path])
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data or b"")

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_a_web_server_may_be_allowed_and_sends_nobody_elsewhere(root: Path, tmp_path: Path) -> None:
    """Redirected, the worker would ask its own machine, or the cloud's metadata service, on behalf of that server."""
    pytest.importorskip("aiohttp")
    data = onnx_bytes(tmp_path)
    with (
        serving({"/metadata": data}, {}) as (inner, asked),
        serving({"/models/net.onnx": data}, {"/models/moved.onnx": f"{inner}/metadata"}) as (outer, _),
    ):
        with pytest.raises(ModelInvalid, match="empty"):
            bring_from(open_url(f"{outer}/models/moved.onnx", [f"{outer}/models/"]), root)
        assert asked == []
        shutil.rmtree(root / ".staging/place/found")
        answer = bring_from(open_url(f"{outer}/models/net.onnx", [f"{outer}/models/"]), root)
    assert answer["nbytes"] == len(data)
