"""A small hub on loopback: answers for repositories as the hub does, and can fail in its ways."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".onnx", ".bin")  # kept by their SHA-256, the others by git's own


@dataclass
class HubServer:
    """`folders`: repository -> its files here. `breaks`: how many answers are cut short; `refuse`: answer all with this
    status; `tamper`: change each file's last byte; `ranges`: whether parts are sent where asked for."""

    folders: dict[str, Path]
    url: str = ""
    breaks: int = 0
    refuse: int = 0
    tamper: bool = False
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (path, range)

    def listing(self, repository: str) -> bytes:
        folder = self.folders[repository]
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        entries = [self._entry(file, file.relative_to(folder).as_posix()) for file in files]
        told = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": entries, "private": False,
                "downloads": 0, "likes": 0, "tags": []}  # fmt: skip
        return json.dumps(told).encode()

    @staticmethod
    def _entry(file: Path, name: str) -> dict[str, object]:
        raw = file.read_bytes()
        entry: dict[str, object] = {"rfilename": name, "size": len(raw)}
        entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
        if file.suffix in LARGE:
            digest = hashlib.sha256(raw).hexdigest()
            entry["lfs"] = {"sha256": digest, "oid": digest, "size": len(raw), "pointerSize": 130}
        return entry


@contextmanager
def hub_server(folders: dict[str, Path]) -> Iterator[HubServer]:
    hub = HubServer(folders)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.asked.append((path, self.headers.get("Range")))
            if hub.refuse:
                self._say(hub.refuse, b"{}")
                return
            parts = path.split("/")
            if parts[:2] == ["api", "models"]:
                known = "/".join(parts[2:4]) in hub.folders and parts[4:] in ([], ["revision", COMMIT])
                self._say(200 if known else 404, hub.listing("/".join(parts[2:4])) if known else b"{}")
                return
            assert parts[2:4] == ["resolve", COMMIT]
            self._file((hub.folders["/".join(parts[:2])] / "/".join(parts[4:])).read_bytes())

        def _file(self, raw: bytes) -> None:
            raw = raw[:-1] + bytes([raw[-1] ^ 1]) if hub.tamper else raw
            asked, status = self.headers.get("Range"), 200
            if asked and hub.ranges:
                raw, status = raw[int(asked.removeprefix("bytes=").rstrip("-")) :], 206
            cut = len(raw) // 2 if hub.breaks and len(raw) > 1000 else len(raw)
            hub.breaks -= cut < len(raw)
            self._say(status, raw, cut)

        def _say(self, status: int, raw: bytes, cut: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw[:cut])
            self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
