"""The cases of the golden vectors that are about files of models: what lies there, whether it is sound, other forms."""

from typing import Any

from scripts.vector_cases import Vector, from_orchestrator, request, response, vector

DISCOVER, VALIDATE, CONVERT = "model.discover", "model.validate", "model.convert"


def requests() -> list[Vector]:
    """Requests that are taken."""
    full = {"folders": ["models", "webui", "hub"], "types": ["lora", "vae"], "families": ["sdxl"],
            "after": "models/loras/line.safetensors", "limit": 500}  # fmt: skip
    return [
        vector("model_discover", "What lies in the folders of some worker?", request(DISCOVER)),
        vector("model_discover_full", "The second page of two folders' LoRAs and VAEs.",
               request(DISCOVER, full, worker_id="worker-0")),
        vector("model_validate", "Is this model sound?", request(VALIDATE, {"model_id": "demo"})),
        vector("model_validate_deep", "Does this one run? NaN is not looked for.",
               request(VALIDATE, {"model_id": "localisation:2", "deep": True, "values": False})),
        vector("model_validate_name", "A file by its name.",
               request(VALIDATE, {"name": "webui/Lora/line.safetensors"})),
        vector("model_convert", "The model in ONNX, as the next version of its new name.",
               request(CONVERT, {"source": "demo", "name": "demo-onnx"})),
        vector("model_convert_full", "Every field of it.",
               request(CONVERT, {"source": "topics:2", "to": "onnx", "precision": "int8", "name": "topics-small",
                                 "version": "2.1"}, worker_id="worker-0")),
        vector("model_convert_diffusers", "A single file as a folder.",
               request(CONVERT, {"source": "old", "to": "diffusers", "precision": "float16", "name": "new"})),
    ]  # fmt: skip


def answers() -> list[Vector]:
    """Results that have a shape of their own."""
    line = {"name": "models/loras/line.safetensors", "type": "lora", "family": "sdxl", "variants": [],
            "format": "safetensors", "dtype": "float16", "class_name": None, "nbytes": 200_000, "facts": {"rank": 16},
            "id": "line", "problem": None, "remedy": None}  # fmt: skip
    pickle = {**line, "name": "webui/Stable-diffusion/old.ckpt", "type": "pickle", "family": None, "format": "pickle",
              "dtype": None, "facts": {}, "id": None, "problem": "It is a pickle, and those run code.",
              "remedy": "Convert it to safetensors elsewhere."}  # fmt: skip
    page = {"total": 700, "next": pickle["name"], "complete": True,
            "changes": {"added": 1, "changed": 0, "renamed": 0, "removed": 2}}  # fmt: skip
    issue = {"severity": "error", "code": "tensor_bounds", "message": "'x.safetensors': a tensor ends after the file.",
             "remedy": "Get the file anew."}  # fmt: skip
    checks = {"files": {"status": "passed", "count": 1, "nbytes": 90}, "format": {"status": "failed"},
              "deep": {"status": "skipped", "reason": "the files are not sound"}}  # fmt: skip
    told = {
        "name": "models/broken",
        "type": "pipeline",
        "is_valid": False,
        "validation_details": checks,
        "issues": [issue],
    }
    difference = {"max_abs_error": 0.00002, "max_rel_error": 0.000001, "tolerance": 0.0001}
    converted = {"model_id": "topics-onnx:1", "to": "onnx", "precision": "float32",
                 "files": [{"name": "config.json", "nbytes": 700}, {"name": "model.onnx", "nbytes": 60_000}],
                 "nbytes": 60_700, "components": {"model": difference}, "seconds": 9.5}  # fmt: skip
    say = from_orchestrator
    return [
        say("answer_model_discover", "A page, with a file that cannot be used.",
            response(data={"models": [line, pickle], **page})),
        say("answer_model_validate", "A model that is not sound: that is an answer, not an error.",
            response(data=told)),
        say("answer_model_convert", "The new model, and how far it is from its source.", response(data=converted)),
    ]  # fmt: skip


def refused() -> list[Vector]:
    """Data that its schema refuses."""

    def data(name: str, description: str, action: str, fields: dict[str, Any]) -> Vector:
        return vector(name, description, request(action, fields), refuse="invalid_request")

    return [
        data("model_discover_limit_501", "Larger pages than there are.", DISCOVER, {"limit": 501}),
        data("model_discover_limit_0", "An empty page.", DISCOVER, {"limit": 0}),
        data("model_discover_no_folders", "No folders at all.", DISCOVER, {"folders": []}),
        data("model_discover_type", "A type that there is not.", DISCOVER, {"types": ["model"]}),
        data("model_discover_path", "A path has no field.", DISCOVER, {"path": "/etc"}),
        data("model_validate_missing", "No name.", VALIDATE, {}),
        data("model_validate_both", "A model, and a file.", VALIDATE, {"model_id": "demo", "name": "models/demo"}),
        data("model_validate_empty", "An empty name.", VALIDATE, {"model_id": ""}),
        data("model_validate_deep_word", "A word is no truth value.", VALIDATE, {"model_id": "demo", "deep": "yes"}),
        data("model_convert_nameless", "The new model needs a name.", CONVERT, {"source": "demo"}),
        data("model_convert_path", "A name is no path.", CONVERT, {"source": "demo", "name": "../demo"}),
        data("model_convert_version", "Nor is a version.", CONVERT, {"source": "demo", "name": "x", "version": "a/b"}),
        data("model_convert_precision", "A precision that there is not.", CONVERT,
             {"source": "demo", "name": "x", "precision": "int4"}),
        data("model_convert_to", "A form that there is not.", CONVERT, {"source": "demo", "name": "x", "to": "gguf"}),
    ]  # fmt: skip
