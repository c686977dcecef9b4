"""Depth and pose of a picture, by model files that the user supplies.

They lie in the model folder, under `preprocessors`: `depth.onnx`, or the folder `depth` with a depth model of
transformers (config.json, preprocessor_config.json, safetensors), and `pose.onnx`.

An ONNX file takes one picture, float32 [1, 3, height, width], with ImageNet's mean and deviation taken out. Where it
leaves height and width open, it gets multiples of 224 up to 896, which every usual patch divides. A depth file answers
[1, height, width] or [1, 1, height, width], larger is nearer (MiDaS, Depth Anything). A pose file answers the two
arrays of SimCC (RTMPose, DWPose): [1, points, k × width] and [1, points, k × height], of which the first 17 points are
COCO's body. It sees the whole picture as one person.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from instructors import skeleton
from instructors.memory import is_out_of_memory
from instructors.models import ModelFolder, check_weights, files_of, inside
from protocol.errors import AtelierError, Forbidden, InvalidRequest, ModelInvalid, OutOfMemory

FOLDER = "preprocessors"
PLACES = {
    "depth": f"{FOLDER}/depth.onnx, or a depth model of transformers in {FOLDER}/depth",
    "pose": f"{FOLDER}/pose.onnx",
}
NAMES = tuple(PLACES)
OPEN_SIDE_MULTIPLE, OPEN_SIDE_MAX = 224, 896  # pixels; attention's memory grows with the fourth power of a side
ONNX_SIDE_MAX = 4096  # pixels
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB from 0 to 1
FAR_IS_LARGE = ("depth_pro", "glpn", "zoedepth")  # model types of transformers that answer metres

Pixels = Any  # numpy array [height, width, 3] of uint8, RGB

log = structlog.get_logger("instructors.estimators")


@dataclass(frozen=True, slots=True)
class EstimatorFiles:
    """The checked files of an estimator. `version` changes with them; `nbytes` of all of them."""

    name: str
    path: Path
    version: str
    nbytes: int


@dataclass(slots=True)
class Estimator:
    """An estimator in memory. `name` and `nbytes` are for the worker's residency."""

    name: str
    nbytes: int
    estimate: Callable[[Pixels], Pixels]

    def __call__(self, pixels: Pixels) -> Pixels:
        """The control picture of a picture, both [height, width, 3] of uint8, of any sizes.

        Raises ModelInvalid where the model cannot take the picture or answers something else, and OutOfMemory.
        """
        with _blamed_on(self.name):
            return self.estimate(pixels)


def is_there(name: str, folder: ModelFolder) -> bool:
    """Whether there are files for the estimator; they may prove unusable."""
    return _place(name, folder) is not None


def find(name: str, folder: ModelFolder) -> EstimatorFiles:
    """The checked files of `depth` or `pose`.

    Raises InvalidRequest that tells where files would have to be, Forbidden (a link out of the model folder) or
    ModelInvalid (a pickle, a damaged file).
    """
    path = _place(name, folder)
    if path is None or folder.root is None:
        problem = f"{name!r} needs a model file, and this worker has none; put {PLACES[name]} into its model folder"
        raise InvalidRequest(
            f"preprocessor: {problem}.", details={"fields": [{"field": "preprocessor", "problem": problem}]}
        )
    if not inside(path, folder.root):
        raise Forbidden(f"The files of the preprocessor {name!r} lead out of the model folder.")
    state, nbytes = hashlib.sha256(), 0
    try:
        for file in [path] if path.is_file() else files_of(path, folder.root):
            check_weights(file)
            status = file.stat()
            state.update(f"{file.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
            nbytes += status.st_size
    except OSError:
        problem = "cannot be read, or have changed just now"
        raise ModelInvalid(f"The files of the preprocessor {name!r} {problem}.") from None
    return EstimatorFiles(name, path, state.hexdigest(), nbytes)


def load(files: EstimatorFiles, device: str) -> Estimator:
    """The estimator in the memory of `device` ("cpu", "cuda:0"). Raises ModelInvalid or OutOfMemory."""
    label = f"preprocessor {files.name}"
    with _blamed_on(label):
        if files.name == "pose":
            estimate = _pose_by_onnx(_OnnxFile(files.path, device))
        elif files.path.is_file():
            estimate = _depth_by_onnx(_OnnxFile(files.path, device))
        else:
            estimate = _depth_by_transformers(files.path, device)
    return Estimator(label, files.nbytes, estimate)


class _OnnxFile:
    """A session on an ONNX file that takes one picture."""

    def __init__(self, path: Path, device: str) -> None:
        import onnxruntime

        kind, _, index = device.partition(":")
        providers: list[Any] = ["CPUExecutionProvider"]
        if kind == "cuda":
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(index or 0)}))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(shape) != 4 or shape[1] != 3:
            raise ModelInvalid("It must take one picture: float32 [1, 3, height, width].")
        self._name = inputs[0].name
        self.height, self.width = (_fixed(side) for side in shape[2:])

    def __call__(self, pixels: Pixels) -> list[Any]:
        """What the model answers to a picture of [height, width, 3] of uint8."""
        import numpy as np

        picture = (pixels / np.float32(255) - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
        answers = self._session.run(None, {self._name: picture.transpose(2, 0, 1)[None]})
        return [np.asarray(answer, np.float32) for answer in answers]


def _fixed(side: Any) -> int | None:
    """The pixels of a side that the file fixes; None where it leaves it open."""
    if isinstance(side, int) and not 1 <= side <= ONNX_SIDE_MAX:
        raise ModelInvalid(f"It takes pictures of a side of {side} pixels; at most {ONNX_SIDE_MAX} are possible.")
    return side if isinstance(side, int) else None


def _depth_by_onnx(model: _OnnxFile) -> Callable[[Pixels], Pixels]:
    def estimate(pixels: Pixels) -> Pixels:
        size = model.width or _open_side(pixels.shape[1]), model.height or _open_side(pixels.shape[0])
        return _depth_picture(model(_resized(pixels, size))[0])

    return estimate


def _open_side(pixels: int) -> int:
    return min(max(1, round(pixels / OPEN_SIDE_MULTIPLE)) * OPEN_SIDE_MULTIPLE, OPEN_SIDE_MAX)


def _depth_by_transformers(path: Path, device: str) -> Callable[[Pixels], Pixels]:
    import torch
    import transformers
    from PIL import Image

    transformers.utils.logging.disable_progress_bar()
    options = {"local_files_only": True, "trust_remote_code": False}
    prepare = transformers.AutoImageProcessor.from_pretrained(path, **options)
    model, report = transformers.AutoModelForDepthEstimation.from_pretrained(
        path, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
    )
    if report["missing_keys"]:
        raise ModelInvalid(f"Weights are missing, {min(report['missing_keys'])!r} among them.")
    model = model.to(device).eval()
    config = model.config
    metres = config.model_type in FAR_IS_LARGE or getattr(config, "depth_estimation_type", None) == "metric"

    def estimate(pixels: Pixels) -> Pixels:
        inputs = prepare(images=Image.fromarray(pixels), return_tensors="pt").to(device)
        with torch.inference_mode():
            depth = model(**inputs).predicted_depth.cpu().numpy()
        return _depth_picture(-depth if metres else depth)

    return estimate


def _depth_picture(depth: Any) -> Pixels:
    """From [1, height, width] or [1, 1, height, width] to a picture: nearest white, farthest black, all one: black."""
    import numpy as np

    while depth.ndim > 2 and depth.shape[0] == 1:
        depth = depth[0]
    if depth.ndim != 2 or not depth.size or not np.isfinite(depth).all():
        raise ModelInvalid("It answers no depth: [1, height, width] of finite numbers.")
    farthest, nearest = float(depth.min()), float(depth.max())
    scaled = (depth - farthest) * (255 / (nearest - farthest) if nearest > farthest else 0)
    return scaled.round().astype(np.uint8)[:, :, None].repeat(3, axis=2)


def _pose_by_onnx(model: _OnnxFile) -> Callable[[Pixels], Pixels]:
    if model.width is None or model.height is None:
        raise ModelInvalid("It leaves the picture's size open; a pose model of SimCC fixes it.")
    width, height = model.width, model.height

    def estimate(pixels: Pixels) -> Pixels:
        import numpy as np

        answers = model(_fitted(pixels, width, height))
        if [answer.ndim for answer in answers[:2]] != [3, 3] or answers[0].shape[1] < skeleton.COCO_POINTS:
            raise ModelInvalid("It answers no SimCC: two arrays of [1, points, places].")
        across, down = (answer[0, : skeleton.COCO_POINTS] for answer in answers[:2])
        scale, left, top = _fit(pixels.shape[1], pixels.shape[0], width, height)
        x = across.argmax(axis=1) * (width / across.shape[1]) - left
        y = down.argmax(axis=1) * (height / down.shape[1]) - top
        scores = np.minimum(across.max(axis=1), down.max(axis=1))
        return skeleton.draw(np.stack([x, y], axis=1) / scale, scores, pixels.shape[1], pixels.shape[0])

    return estimate


def _fit(width: int, height: int, into_width: int, into_height: int) -> tuple[float, float, float]:
    """How a picture is put, whole and centred, into another: its scale, and where its left and top side come."""
    scale = min(into_width / width, into_height / height)
    return scale, (into_width - width * scale) / 2, (into_height - height * scale) / 2


def _fitted(pixels: Pixels, width: int, height: int) -> Pixels:
    import cv2
    import numpy as np

    scale, left, top = _fit(pixels.shape[1], pixels.shape[0], width, height)
    place = np.array([[scale, 0, left], [0, scale, top]], np.float64)
    return cv2.warpAffine(pixels, place, (width, height), flags=cv2.INTER_LINEAR)


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    import cv2

    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if size[0] < pixels.shape[1] else cv2.INTER_LINEAR)


def _place(name: str, folder: ModelFolder) -> Path | None:
    if folder.root is None:
        return None
    file, inner = folder.root / FOLDER / f"{name}.onnx", folder.root / FOLDER / name
    if file.is_file():
        return file
    return inner if name == "depth" and inner.is_dir() else None


@contextmanager
def _blamed_on(label: str) -> Iterator[None]:
    """Whatever the libraries raise of a model file is the file's fault, except where memory ran out."""
    try:
        yield
    except ModelInvalid as error:
        raise ModelInvalid(f"The model file of the {label} cannot be used. {error.message}") from None
    except AtelierError:
        raise
    except Exception as error:  # each library has exceptions of its own
        if is_out_of_memory(error):
            raise
        log.warning("not usable", estimator=label, problem=f"{type(error).__name__}: {error}")
        if "allocate memory" in str(error):  # as onnxruntime says it
            raise OutOfMemory(f"The {label} needs more memory than there is.") from None
        raise ModelInvalid(f"The model file of the {label} cannot be used.") from None
