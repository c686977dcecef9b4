"""Pictures and typed results."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image as PillowImage

from orchestrator.client import Blob, Image, Result
from orchestrator.client import results as results_module
from orchestrator.client.events import JobEvent
from protocol.errors import MalformedMessage, PayloadTooLarge
from protocol.messages import Attachment, Event, Response
from protocol.schemas.system import NoopResult


def png(width: int = 3, height: int = 2, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    PillowImage.new("RGB", (width, height), (255, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def result(data: dict[str, object], blobs: list[bytes]) -> Result:
    return Result(Response(success=True, data=data, job_id="j", attempt=2), [Blob(blob, "image/png") for blob in blobs])


def test_pictures_of_a_result(tmp_path: Path) -> None:
    entry = {"media_type": "image/png", "width": 3, "height": 2, "recipe": {"prompt": "x"}}
    images = [{**entry, "attachment": 1, "seed": 7}, {**entry, "attachment": 0, "seed": "18446744073709551615"}]
    first, second = result({"images": images}, [b"other", png()]).images
    assert (first.seed, first.recipe, first.bytes) == (7, {"prompt": "x"}, png())
    assert second.seed == 2**64 - 1
    assert first.pil.size == (3, 2)
    assert first.pil.getpixel((0, 0)) == (255, 0, 0)
    assert first.save(tmp_path / "out.png").read_bytes() == png()


def test_a_result_without_pictures_has_none_and_is_parsed_by_its_model() -> None:
    noop = result({"echo": [1]}, [])
    assert noop.images == []
    assert noop.parse(NoopResult).echo == [1]
    assert (noop.job_id, noop.attempt) == ("j", 2)
    with pytest.raises(MalformedMessage, match="Pictures"):
        result({"images": "none"}, []).images  # noqa: B018


@pytest.mark.parametrize("attachment", [None, 1, -1])
def test_a_picture_whose_bytes_are_missing_is_an_error(attachment: int | None) -> None:
    entry = {"media_type": "image/png", "width": 3, "height": 2, "recipe": {}, "seed": 7, "attachment": attachment}
    with pytest.raises(MalformedMessage, match="bytes"):
        result({"images": [entry]}, [png()]).images  # noqa: B018


def test_a_preview_is_a_picture() -> None:
    attachment = Attachment(media_type="image/png", nbytes=1)
    event = Event(request_id="r", job_id="j", seq=1, event="preview", data={"step": 5}, attachments=[attachment])
    preview = JobEvent.of(event, [png()]).image
    assert preview is not None
    assert (preview.seed, preview.recipe, preview.pil.size) == (None, None, (3, 2))


def test_a_picture_that_claims_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_module, "PIXELS_MAX", 5)
    with pytest.raises(PayloadTooLarge, match="3 x 2"):
        Image(png(), "image/png").pil  # noqa: B018


def test_only_the_formats_of_results_are_decoded() -> None:
    with pytest.raises(OSError, match="cannot identify"):
        Image(png(kind="GIF"), "image/gif").pil  # noqa: B018


def test_without_pillow_bytes_work_and_pil_names_the_extra() -> None:
    code = """
import sys
sys.modules["PIL"] = None
from orchestrator.client import Image
image = Image(b"x", "image/png")
assert image.bytes == b"x"
try:
    image.pil
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert 'pip install ".[images]"' in done.stdout, done.stderr
