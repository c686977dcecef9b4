"""Pictures that come with a request, as attachments and as artifacts, through the real server and worker."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.client import Blob, Client
from protocol.errors import InvalidRequest, NotFound, RequestConflict
from protocol.ids import new_id
from tests.e2e.house import ROOT, House

PROMPT = "a red circle on a white background"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with House() as house:
        house.start_orchestrator()
        house.start_worker("w", "--models", str(ROOT / "models"))
        house.wait_for_workers("w")
        with house.client() as client:
            yield client


@pytest.fixture(scope="module")
def picture(client: Client) -> bytes:
    """A blue square, as PNG."""
    image = Image.new("RGB", (64, 64), "white")
    image.paste((40, 60, 220), (18, 18, 46, 46))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def change(client: Client, image: Any, **more: Any) -> np.ndarray:
    data = {"prompt": PROMPT, "image": image, "strength": 0.5, "steps": 6, "seed": 5, "guidance_scale": 4.0}
    result = client.submit("inference.img2img", data, **more).result(60)
    return np.asarray(Image.open(io.BytesIO(result.attachments[0].content)).convert("RGB")).astype(int)


def test_an_artifact_stands_for_an_attachment(client: Client, picture: bytes) -> None:
    attached = change(client, {"attachment": 0}, attachments=[Blob(picture)])
    info = client.artifacts.put(picture, "image/png")
    for wait in (True, False):
        stored = change(client, {"artifact_id": info.artifact_id}, wait=wait)
        assert (stored == attached).all()
    assert (change(client, picture) == attached).all()  # inline, in the data


def test_a_picture_of_a_result_is_changed_again(client: Client) -> None:
    done = client.submit("inference.text2img", {"prompt": PROMPT, "steps": 4, "seed": 1}, wait=False).result(60)
    artifact = client.artifacts.put(done.attachments[0].content, "image/png")
    attached = change(client, {"attachment": 0}, attachments=done.attachments)
    assert (change(client, {"artifact_id": artifact.artifact_id}) == attached).all()


def test_the_same_request_with_an_artifact_is_the_same_job(client: Client, picture: bytes) -> None:
    info = client.artifacts.put(picture, "image/png")
    request_id = new_id()
    first = change(client, {"artifact_id": info.artifact_id}, request_id=request_id)
    assert (change(client, {"artifact_id": info.artifact_id}, request_id=request_id) == first).all()
    other = client.artifacts.put(picture, "image/png")
    with pytest.raises(RequestConflict):
        change(client, {"artifact_id": other.artifact_id}, request_id=request_id)


def test_what_is_not_there_is_told(client: Client, picture: bytes) -> None:
    with pytest.raises(NotFound, match="artifact"):
        change(client, {"artifact_id": new_id()})
    with pytest.raises(InvalidRequest, match="no attachment 1"):
        change(client, {"attachment": 1}, attachments=[Blob(picture)])
    with pytest.raises(InvalidRequest, match="no attachment 0"):
        change(client, {"attachment": 0})
