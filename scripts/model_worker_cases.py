"""The cases of the golden vectors that are about models in the memory of workers."""

from typing import Any

from scripts.vector_cases import Vector, from_orchestrator, request, response, vector

LOAD, UNLOAD, COMPONENTS, RELOAD = "model.load", "model.unload", "model.components", "model.reload"
BENCHMARK, BENCHMARKS = "model.benchmark", "model.benchmarks"
HASH = "b" * 64


def requests() -> list[Vector]:
    """Requests that are taken."""
    full = {"model_id": "detector:3", "batch_sizes": [1, 8, 64], "runs": 100, "warmup": 0, "axes": {"width": 640}}
    return [
        vector("model_load", "Load a model somewhere.", request(LOAD, {"model_id": "localisation:2"})),
        vector("model_load_keep", "Load it on this worker, and keep it.",
               request(LOAD, {"model_id": "localisation@default", "keep": True}, worker_id="worker-0")),
        vector("model_unload", "Let go of it.", request(UNLOAD, {"model_id": "localisation:2"}, worker_id="worker-0")),
        vector("model_components", "What is it made of?", request(COMPONENTS, {"model_id": "demo"})),
        vector("model_reload", "Look at the files of one.", request(RELOAD, {"model_id": "demo"})),
        vector("model_reload_all", "Look at the files of all.", request(RELOAD, worker_id="worker-0")),
        vector("model_benchmark", "Measure it as is usual.", request(BENCHMARK, {"model_id": "demo"})),
        vector("model_benchmark_full", "Measure this device with it.",
               request(BENCHMARK, full, device_id="cuda:1", events=["progress"])),
        vector("model_benchmark_pictures", "Pictures of a size of their own.",
               request(BENCHMARK, {"model_id": "demo", "width": 64, "height": 64, "steps": 8})),
        vector("model_benchmarks", "What was measured before?",
               request(BENCHMARKS, {"model_id": "demo", "limit": 2, "before": "01a1fc5c-4662-7000"})),
    ]  # fmt: skip


def answers() -> list[Vector]:
    """Results that have a shape of their own."""
    loaded = {"model_id": "localisation:2", "content_hash": HASH, "nbytes": 9_000_000, "load_ms": 412,
              "device": "cuda:0", "was_loaded": False, "kept": True}  # fmt: skip
    x = {"name": "x", "dtype": "float32", "shape": ["batch", 128]}
    graph = {"inputs": [x], "outputs": [{**x, "name": "y"}], "opset": 21, "elements": 70_000,
             "providers": ["CPUExecutionProvider"], "fell_back": True, "batched": True, "max_batch_size": 32,
             "instances": 1, "preprocess": ["iq_features"], "postprocess": []}  # fmt: skip
    about = {"content_hash": HASH, "device": "cuda:0", "loaded": True, "kept": False}
    unet = {"name": "unet", "class_name": "UNet2DConditionModel", "elements": 1000, "nbytes": 2000,
            "dtype": "float16", "where": "aside", "shared_with": ["demo-2"], "providers": None}  # fmt: skip
    error = {"code": "model_invalid", "message": "The ONNX file is empty.", "details": {}, "retryable": False,
             "retry_after_ms": None}  # fmt: skip
    batch = {"batch_size": 8, "runs": 50, "p50_ms": 1.25, "p95_ms": 1.5, "per_s": 6100.5, "peak_nbytes": 30_000_000}
    measured = {"model_id": "localisation:2", "content_hash": HASH, "family": "onnx", "device": "cpu",
                "device_kind": "cpu", "cold_load_ms": 310.5, "warm_load_ms": None, "nbytes": 9_000_000,
                "batches": [batch], "providers": ["CPUExecutionProvider"], "settings": {"axes": {"width": 640}},
                "versions": {"onnxruntime": "1.31.1"}}  # fmt: skip
    kept = {**measured, "job_id": "01a1fc5c-4662-7000", "at": "2026-11-21T04:00:00.000Z", "worker_id": "worker-0"}
    say = from_orchestrator
    return [
        say("answer_model_load", "It was not loaded, and is now kept.", response(data=loaded)),
        say("answer_model_unload", "A job uses it still.",
            response(data={"model_id": "localisation:2", "was_loaded": True, "in_use": True})),
        say("answer_model_components_graph", "An ONNX model that runs on less than it was asked for.",
            response(data={"model_id": "localisation:2", "family": "onnx", "nbytes": 9_000_000, **about,
                           "components": [], "graph": graph})),
        say("answer_model_components_pipeline", "A component that is set aside, and that another model shares.",
            response(data={"model_id": "demo", "family": "stable_diffusion", "nbytes": None, **about,
                           "components": [unet], "graph": None})),
        say("answer_model_reload", "One has changed, one has not, and one is broken: its old self goes on.",
            response(data={"reloaded": ["a:1"], "unchanged": ["b"],
                           "failed": [{"model_id": "c", "error": error}]})),
        say("answer_model_benchmark", "A job used it, so it was loaded once only.", response(data=measured)),
        say("answer_model_benchmarks", "One.", response(data={"benchmarks": [kept]})),
    ]  # fmt: skip


def refused() -> list[Vector]:
    """Data that its schema refuses."""

    def data(name: str, description: str, action: str, fields: dict[str, Any]) -> Vector:
        return vector(name, description, request(action, fields), refuse="invalid_request")

    demo = {"model_id": "demo"}
    return [
        data("model_load_missing", "No model.", LOAD, {}),
        data("model_load_keep_number", "A number is no truth value.", LOAD, {**demo, "keep": 1}),
        data("model_unload_keep", "A field that there is not.", UNLOAD, {**demo, "keep": False}),
        data("model_components_empty", "An empty name.", COMPONENTS, {"model_id": ""}),
        data("model_reload_list", "Models one by one, or all.", RELOAD, {"model_id": ["demo"]}),
        data("model_benchmark_no_sizes", "No batch sizes at all.", BENCHMARK, {**demo, "batch_sizes": []}),
        data("model_benchmark_size_0", "An empty batch.", BENCHMARK, {**demo, "batch_sizes": [0]}),
        data("model_benchmark_sizes_9", "More sizes than there may be.", BENCHMARK,
             {**demo, "batch_sizes": [1, 2, 3, 4, 5, 6, 7, 8, 9]}),
        data("model_benchmark_runs", "More runs than there may be.", BENCHMARK, {**demo, "runs": 1001}),
        data("model_benchmark_axis", "An axis of nothing.", BENCHMARK, {**demo, "axes": {"width": 0}}),
        data("model_benchmark_width", "Pictures' sides are multiples of 8.", BENCHMARK, {**demo, "width": 63}),
        data("model_benchmark_steps", "More steps than there may be.", BENCHMARK, {**demo, "steps": 101}),
        data("model_benchmarks_limit", "An empty page.", BENCHMARKS, {**demo, "limit": 0}),
    ]  # fmt: skip
