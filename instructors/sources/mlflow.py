"""Models of an MLflow server, over its REST API.

Its own client would bring some thirty packages, wait as long as it likes, and make another model of what it downloads.
"""

import base64
import json
import math
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from instructors.models import FILES_MAX
from instructors.sources import Broken, Source, SourceFile, Told
from protocol.errors import Forbidden, InvalidRequest, ModelInvalid, NotFound, Unavailable
from protocol.limits import MIB

URI = re.compile(r"models:/(?P<name>[^/@]{1,200})(?:@(?P<alias>[\w.-]{1,200})|/(?P<version>[\w.-]{1,64}))")
STAGES = ("None", "Staging", "Production", "Archived")
PROXIED = "mlflow-artifacts"  # files that the server itself hands out
JSON_BYTES_MAX = 8 * MIB
PIECE_BYTES = 1 * MIB
ANSWER_S = 30.0  # without a byte
WORDS_MAX = 64  # metrics, or tags
TEXT_MAX = 200  # characters of one
NO_MLFLOW = "What answers there is no MLflow server."
STAGES_WARNING = "MLflow's stages are deprecated: name the version or an alias (models:/{name}@{stage})."


class MlflowSource:
    """`models:/name@alias`, `models:/name/version`, or, with a warning, `models:/name/Stage`."""

    resumes = False  # the server hands out whole files only

    def __init__(self, uri: str, server: str | None, open_url: Callable[[str], Source]) -> None:
        """`server`: its address; `open_url` opens a place where it keeps files that it does not hand out itself.

        Raises InvalidRequest and Unavailable (no server is configured).
        """
        match = URI.fullmatch(uri)
        if match is None:
            raise InvalidRequest("A model of MLflow is models:/name@alias or models:/name/version.")
        self._name, self._alias, self._version = match["name"], match["alias"], match["version"]
        server = server or os.environ.get("MLFLOW_TRACKING_URI")
        if not server or urlsplit(server).scheme not in ("http", "https"):
            raise Unavailable("This worker knows no MLflow server: set MLFLOW_TRACKING_URI to its http address.")
        self._server = _Server(server)
        self._open_url = open_url
        self._elsewhere: Source | None = None
        self.told = Told()

    def files(self) -> Sequence[SourceFile]:
        try:
            return self._files()
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Unavailable(NO_MLFLOW) from None

    def _files(self) -> Sequence[SourceFile]:
        version = self._find()
        self._tell(version)
        named = {"name": self._name, "version": version["version"]}
        uri = str(self._server.get("mlflow/model-versions/get-download-uri", named).get("artifact_uri"))
        if urlsplit(uri).scheme == PROXIED:
            return self._listed(urlsplit(uri).path.strip("/"))
        self._elsewhere = self._open_url(uri if "://" in uri else f"file://{uri.removeprefix('file:')}")
        self.resumes = self._elsewhere.resumes
        return self._elsewhere.files()

    def read(self, file: SourceFile, begin: int) -> Iterator[bytes]:
        if self._elsewhere is not None:
            yield from self._elsewhere.read(file, begin)
        else:
            yield from self._server.read(f"mlflow-artifacts/artifacts/{quote(file.key)}")

    def _find(self) -> Mapping[str, Any]:
        if self._alias is not None:
            answer = self._server.get("mlflow/registered-models/alias", {"name": self._name, "alias": self._alias})
        elif self._version in STAGES:
            self.told.warnings = [STAGES_WARNING.format(name=self._name, stage=self._version.lower())]
            wanted = {"name": self._name, "stages": [self._version]}
            newest = self._server.post("mlflow/registered-models/get-latest-versions", wanted).get("model_versions")
            answer = {"model_version": newest[0] if newest else None}
        else:
            answer = self._server.get("mlflow/model-versions/get", {"name": self._name, "version": self._version})
        version = answer.get("model_version")
        if not isinstance(version, dict):
            raise NotFound("MLflow has no such model, version, alias or stage.")
        return version

    def _tell(self, version: Mapping[str, Any]) -> None:
        run_id = version.get("run_id") or None
        self.told.run_id, self.told.tags = run_id, {}
        if run_id is not None:
            data = self._server.get("mlflow/runs/get", {"run_id": run_id}).get("run", {}).get("data", {})
            self.told.metrics = dict(_numbers(data.get("metrics", ())))
            self.told.tags = {key: text for key, text in _texts(data.get("tags", ())) if not key.startswith("mlflow.")}
        self.told.tags.update(_texts(version.get("tags", ())))

    def _listed(self, top: str) -> list[SourceFile]:
        found: list[SourceFile] = []
        folders = [""]
        while folders:
            folder = folders.pop()
            answer = self._server.get("mlflow-artifacts/artifacts", {"path": f"{top}/{folder}".rstrip("/")})
            for entry in answer.get("files", ()):
                path = f"{folder}/{str(entry['path']).rsplit('/', 1)[-1]}".lstrip("/")
                if entry.get("is_dir"):
                    folders.append(path)
                else:
                    found.append(SourceFile(path, int(entry["file_size"]), f"{top}/{path}"))
            if len(found) + len(folders) > FILES_MAX:
                raise ModelInvalid(f"The model has more than {FILES_MAX} files.")
        return found


class _Server:
    """The REST API. Redirects are not followed: they could lead anywhere, with the credentials."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/api/2.0/"
        self._headers = _credentials(parts.username, parts.password)
        self._opener = urllib.request.build_opener(_NoRedirect)

    def get(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        return self._json(urllib.request.Request(f"{self._base}{path}?{urlencode(query)}", headers=self._headers))

    def post(self, path: str, body: Any) -> dict[str, Any]:
        headers = {**self._headers, "Content-Type": "application/json"}
        return self._json(urllib.request.Request(f"{self._base}{path}", json.dumps(body).encode(), headers))

    def read(self, path: str) -> Iterator[bytes]:
        """The bytes of an answer. Raises as `_open` does."""
        with self._open(urllib.request.Request(f"{self._base}{path}", headers=self._headers)) as answer:
            try:
                while piece := answer.read(PIECE_BYTES):
                    yield piece
            except (OSError, HTTPException) as error:
                raise Broken(type(error).__name__) from error

    def _json(self, request: urllib.request.Request) -> dict[str, Any]:
        with self._open(request) as answer:
            try:
                raw = answer.read(JSON_BYTES_MAX + 1)
                value = json.loads(raw) if len(raw) <= JSON_BYTES_MAX else None
            except (OSError, HTTPException, ValueError, RecursionError) as error:
                raise Broken(type(error).__name__) from error
            if answer.length and value is not None:
                raise Broken("too few bytes")
        if type(value) is not dict:
            raise Unavailable(NO_MLFLOW)
        return value

    def _open(self, request: urllib.request.Request) -> HTTPResponse:
        try:
            answer: HTTPResponse = self._opener.open(request, timeout=ANSWER_S)
            return answer
        except urllib.error.HTTPError as error:
            with error:
                code = error.code
            if code in (400, 404):  # 400: an alias that is not there
                raise NotFound("MLflow has no such model, version, alias or file.") from None
            if code in (401, 403):
                raise Forbidden("MLflow refuses the worker's credentials.") from None
            if code < 500 and code not in (408, 425, 429):
                raise Unavailable(f"MLflow refuses the request with HTTP status {code}.") from None
            raise Broken(f"HTTP status {code}") from None
        except (OSError, HTTPException) as error:
            raise Broken(type(error).__name__) from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _credentials(user: str | None, password: str | None) -> dict[str, str]:
    """Those of the address, else of the environment, as MLflow's own client reads them."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user = user or os.environ.get("MLFLOW_TRACKING_USERNAME")
    if not user:
        return {}
    pair = f"{user}:{password or os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _numbers(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    for entry in entries[:WORDS_MAX]:
        value = entry.get("value")
        if isinstance(value, int | float) and math.isfinite(value):
            yield _text(entry.get("key")), float(value)


def _texts(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for entry in entries[:WORDS_MAX]:
        yield _text(entry.get("key")), _text(entry.get("value", ""))


def _text(value: Any) -> str:
    """Not too long, and such that it can be sent: JSON may hold half a character."""
    return str(value)[:TEXT_MAX].encode(errors="replace").decode()
