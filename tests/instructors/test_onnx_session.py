"""What onnxruntime says becomes an error of ours, which tells no paths."""

from pathlib import Path

import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException

from instructors.pipelines.onnx.facts import RunnerSpec
from instructors.pipelines.onnx.session import DeviceFailed, Session, blamed, reason
from protocol.errors import InternalError, InvalidRequest, ModelInvalid, OutOfMemory
from tests.instructors import onnx_models as models

MULTIPLY = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Mul node. "
    "Name:'/layer/Mul' Status Message: /onnxruntime_src/onnxruntime/core/element_wise_ops.h:583 "
    "void onnxruntime::BroadcastIterator::Append(ptrdiff_t, ptrdiff_t) axis == 1 was false. 2 by 3\n"
)
CUDA = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:129 std::conditional_t<THRW, void, Status> "
    "onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError; bool THRW = true] "
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (MULTIPLY, "Non-zero status code returned while running Mul node. "
                   "Name:'…' Status Message: axis == 1 was false. 2 by 3"),
        (CUDA + "CUDA failure 2: out of memory", "CUDA failure 2: out of memory"),
        ("Load model from /home/me/models/a/model.onnx failed:Protobuf parsing failed.",
         "Load model from … failed:Protobuf parsing failed."),
        (r"Load model from C:\models\a.onnx failed", "Load model from … failed"),
        ("x" * 500, "x" * 300 + "…"),
    ],
)  # fmt: skip
def test_a_reason_has_no_paths(text: str, told: str) -> None:
    assert reason(text) == told


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (RuntimeException(MULTIPLY), InvalidRequest),
        (ValueError("Required inputs (['b']) are missing"), InvalidRequest),
        (Fail("Failed to allocate memory for requested buffer of size 1600000000"), OutOfMemory),
        (RuntimeException("std::bad_alloc"), OutOfMemory),
        (RuntimeError("pthread_create failed, error code: 12 error msg: Cannot allocate memory"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (Fail(CUDA + "CUDA failure 2: out of memory"), OutOfMemory),
        (Fail(CUDA + "CUDA failure 700: an illegal memory access was encountered"), DeviceFailed),
        (KeyError("ours"), InternalError),
        (FileNotFoundError("gone"), FileNotFoundError),
    ],
)
def test_whose_fault_it_was(raised: Exception, becomes: type[Exception]) -> None:
    with pytest.raises(becomes), blamed(InvalidRequest):
        raise raised


def test_bfloat16_beside_strings_is_refused(tmp_path: Path) -> None:
    made = models.model(
        [models.helper.make_node("Identity", [at], [f"{at}_"]) for at in ("a", "b")],
        [models.value("a", "bfloat16", [1]), models.value("b", "string", [1])],
        [models.value("a_", "bfloat16", [1]), models.value("b_", "string", [1])],
    )
    path = models.save(made, tmp_path / "model.onnx")
    with pytest.raises(ModelInvalid, match="both bfloat16 and strings"):
        Session(RunnerSpec(path), [path])
