"""The cases of the golden vectors that are about tensors and predictions."""

from typing import Any

from protocol.codec import pack
from protocol.tensors import RANK_MAX, from_list, join_strings
from scripts.vector_cases import PNG, Vector, described, from_orchestrator, request, response, vector

PREDICT, BATCH = "inference.predict", "predict.batch"
RAW = from_list([[1, 2], [0.5, -1]], "float32").data
KIND = "application/octet-stream"
ARTIFACT = {"artifact_id": "01934b2e-7c00-7000-8000-0000000000bb"}


def tensor(data: Any = RAW, dtype: str = "float32", shape: Any = (2, 2), name: str = "x") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape), "data": data}


def _of(*inputs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model_id": "mlp", "inputs": list(inputs), **fields}


def _every_type() -> list[dict[str, Any]]:
    sizes = {"bool": 1, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "int8": 1, "int16": 2, "int32": 4,
             "int64": 8, "float16": 2, "float32": 4, "float64": 8, "bfloat16": 2}  # fmt: skip
    numbers = [tensor(bytes(2 * size), dtype, [2], dtype) for dtype, size in sizes.items()]
    return [*numbers, tensor(join_strings(["ab", "é"]), "string", [2], "string")]


def requests() -> list[Vector]:
    """Requests that are taken."""
    attached = described((KIND, RAW))
    plain = {"k": 3, "threshold": 0.5, "labels": True, "kind": "all", "none": None, "of": [1, 2.5, "a"]}
    full = _of(tensor(), outputs=["y"], cache=False, routing_key="u-7", fallbacks=["mlp:1", "b"], parameters=plain)
    items = pack([{"inputs": [tensor()]}, {"inputs": [tensor()], "parameters": {"k": 1}}])
    return [
        vector("predict", "A tensor as an attachment.",
               request(PREDICT, _of(tensor({"attachment": 0})), attachments=attached), [RAW]),
        vector("predict_inline", "A small tensor inside data.", request(PREDICT, _of(tensor()))),
        vector("predict_artifact", "A tensor that is on the server.", request(PREDICT, _of(tensor(ARTIFACT)))),
        vector("predict_full", "Every field of it.", request(PREDICT, full)),
        vector("predict_types", "Every type, two numbers or strings of each.", request(PREDICT, _of(*_every_type()))),
        vector("predict_scalar", "A scalar has no axes.",
               request(PREDICT, _of(tensor(RAW[:4], shape=[]), tensor(RAW[:4], shape=[1.0], name="y")))),
        vector("predict_empty_axis", "An axis other than the first may be empty.",
               request(PREDICT, _of(tensor(b"", shape=[1, 0])))),
        vector("predict_rank_most", "As many axes as are allowed.",
               request(PREDICT, _of(tensor(RAW[:4], shape=[1] * RANK_MAX)))),
        vector("predict_nan", "Tensors may hold NaN.", request(PREDICT, _of(tensor(b"\0\0\xc0\x7f", shape=[1])))),
        vector("predict_images", "Pictures for a model whose first steps take them.",
               request(PREDICT, {"images": [{"attachment": 0}, PNG]}, attachments=described(("image/png", PNG))),
               [PNG]),
        vector("predict_batch", "Two requests in one.",
               request(BATCH, {"model_id": "mlp", "requests": [
                   {"inputs": [tensor({"attachment": 0})]}, {"inputs": [tensor()], "parameters": {"k": 1}}]},
                   attachments=attached), [RAW]),
        vector("predict_batch_items", "The same in an attachment.",
               request(BATCH, {"items": {"attachment": 0}}, attachments=described((KIND, items))), [items]),
    ]  # fmt: skip


def answers() -> list[Vector]:
    """What comes back."""
    ran = {"model_id": "mlp:2", "model_version": "2", "inference_time_ms": 0.4, "cached": False, "batch_size": 8,
           "device": "cpu"}  # fmt: skip
    output = {"name": "y", "dtype": "float32", "shape": [2, 2]}
    told = {**ran, "outputs": [{**output, "attachment": 0}], "predictions": [{"label": "cat"}, {"label": "dog"}]}
    entries = pack([{**ran, "outputs": [{**output, "data": RAW}], "predictions": []}, {"error": {
        "code": "invalid_request", "message": "x: has no such name.", "details": {}, "retryable": False,
        "retry_after_ms": None}}])  # fmt: skip
    return [
        from_orchestrator("predict", "A tensor, and a field for each of its two items.",
                          response(data=told, attachments=described((KIND, RAW))), [RAW]),
        from_orchestrator("predict_batch", "One of two requests went well.",
                          response(data={"results": 0, "count": 2, "failed": 1},
                                   attachments=described((KIND, entries))), [entries]),
    ]  # fmt: skip


def refused() -> list[Vector]:
    """Requests with a wrong field, or an attachment that is not what it says."""

    def wrong(name: str, description: str, data: dict[str, Any], action: str = PREDICT) -> Vector:
        return vector(name, description, request(action, data), refuse="invalid_request")

    def shaped(name: str, description: str, raw: bytes = RAW, /, **fields: Any) -> Vector:
        return wrong(f"tensor_{name}", description, _of({**tensor(raw), **fields}))

    short = RAW[:-1]
    return [
        shaped("short", "A byte less than the shape says.", short),
        shaped("long", "A byte more than the shape says.", RAW + b"\0"),
        vector("tensor_attachment_short", "The same in an attachment.",
               request(PREDICT, _of(tensor({"attachment": 0})), attachments=described((KIND, short))), [short],
               refuse="invalid_request"),
        vector("tensor_attachment_missing", "No such attachment came.",
               request(PREDICT, _of(tensor({"attachment": 1})), attachments=described((KIND, RAW))), [RAW],
               refuse="invalid_request"),
        shaped("2_gib", "2 GiB by its shape.", shape=[1024, 1024, 512]),
        shaped("dimensions_huge", "More bytes than any machine has.", shape=[2**31 - 1] * 16),
        shaped("dimension_too_large", "A dimension of 2^31.", shape=[2**31]),
        shaped("dimension_negative", "A dimension below 0.", shape=[-2, -2]),
        shaped("dimension_fraction", "A dimension of 1.5.", shape=[1.5]),
        shaped("rank_17", "An axis too many.", RAW[:4], shape=[1] * (RANK_MAX + 1)),
        shaped("zero_items", "No item at all.", b"", shape=[0, 4]),
        shaped("dtype_unknown", "A type that is none.", dtype="complex64"),
        shaped("dtype_upper", "The name in upper case.", dtype="FP32"),
        shaped("name_empty", "An input without a name.", name=""),
        shaped("list", "Numbers in place of bytes.", data=[1, 2, 0.5, -1]),
        shaped("strings_short", "Strings without room for their lengths.", b"\2\0\0\0", dtype="string", shape=[2]),
        shaped("field_unknown", "A field that a tensor has not.", strides=[8, 4]),
        wrong("predict_nothing", "Neither inputs nor images.", {"model_id": "mlp"}),
        wrong("predict_input_twice", "An input given twice.", _of(tensor(), tensor())),
        wrong("predict_inputs_65", "An input too many.", _of(*(tensor(name=f"x{index}") for index in range(65)))),
        wrong("predict_parameter_map", "A parameter that is a map.", _of(tensor(), parameters={"k": {"a": 1}})),
        wrong("predict_parameter_nested", "A list in a list.", _of(tensor(), parameters={"k": [[1]]})),
        wrong("predict_parameter_nan", "A parameter that is no number.", _of(tensor(), parameters={"k": float("nan")})),
        wrong("predict_outputs_empty", "No output asked for.", _of(tensor(), outputs=[])),
        wrong("batch_nothing", "Neither requests nor items.", {}, BATCH),
        wrong("batch_both", "Requests and items.", {"requests": [{"inputs": [tensor()]}], "items": b"\x90"}, BATCH),
        wrong("batch_tensor_short", "A wrong tensor in a batch.",
              {"requests": [{"inputs": [tensor()]}, {"inputs": [tensor(short)]}]}, BATCH),
    ]  # fmt: skip
