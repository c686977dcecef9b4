"""Where the files of a model are, as `model.register` wants to be told."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.client.results import Blob
from protocol.errors import PayloadTooLarge
from protocol.limits import DEFAULT_LIMITS, MIB

Source = str | Path | Mapping[str, Any]
MLFLOW = ("models:/", "runs:/")
MEDIA_TYPE = "application/octet-stream"


def source_of(source: Source) -> tuple[dict[str, Any], list[Blob]]:
    """`source` for the wire, and the files that go with it.

    A Path is a file or folder here, which is sent. A text is what MLFlow calls a model (`models:/name@alias`,
    `runs:/id/model`), a URL (`s3://bucket/key`), or else a folder in the worker's model folder. A map is taken as it
    is. Raises OSError for a path that cannot be read, PayloadTooLarge for files that are too many or too large to send.
    """
    if isinstance(source, Path):
        return _sent(source)
    if isinstance(source, str):
        if source.startswith(MLFLOW):
            return {"mlflow": source}, []
        return ({"url": source} if "://" in source else {"folder": source}), []
    return dict(source), []


def _sent(path: Path) -> tuple[dict[str, Any], list[Blob]]:
    files: list[dict[str, Any]] = []
    blobs: list[Blob] = []
    paths = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    room = DEFAULT_LIMITS.attachment_bytes_max - sum(file.stat().st_size for file in paths)
    for file in paths if room >= 0 else ():
        parts = []
        for part in _parts(file.read_bytes()):
            parts.append({"attachment": len(blobs)})
            blobs.append(Blob(part, MEDIA_TYPE))
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        files.append({"path": name, "parts": parts})
    if room < 0 or len(blobs) > DEFAULT_LIMITS.attachments_max:
        most, room_mib = DEFAULT_LIMITS.attachments_max, DEFAULT_LIMITS.attachment_bytes_max // MIB
        raise PayloadTooLarge(f"At most {most} files of {room_mib} MiB together can be sent; register it from a URL.")
    return {"files": files}, blobs


def _parts(content: bytes) -> Iterator[bytes]:
    """As large as a frame may be; an empty file is one part."""
    size = DEFAULT_LIMITS.frame_bytes_max
    for start in range(0, max(1, len(content)), size):
        yield content[start : start + size]
