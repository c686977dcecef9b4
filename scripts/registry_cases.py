"""The cases of the golden vectors that are about the registry of models: versions, aliases, traffic, metadata."""

from typing import Any

from scripts.vector_cases import JOB, Vector, described, from_orchestrator, request, response, vector

ONNX = b"\x08\x09"  # stands for a model; no codec looks inside
ARTIFACT = {"artifact_id": "01934b2e-7c00-7000-8000-0000000000bb"}
TRAFFIC = {
    "splits": [{"version": "1", "weight": 90}, {"version": "2", "weight": 10}],
    "shadow": {"version": "3", "fraction": 0.1},
    "fallbacks": ["localisation@stable", "other"],
    "policy": {"latency_ms_max": 50, "devices": ["cuda"], "cost_max": 2.5},
}
METADATA = {
    "type": "onnx", "architecture": "mlp", "family": "onnx", "nbytes": 4096, "dtype": "float32", "tags": ["trained"],
    "license": "Apache-2.0", "trigger_words": [], "source": "s3://models/localisation", "hashes": {"sha256": "00ff"},
    "description": "Where a transmitter is.", "cost": 1.5, "user": {"team": {"name": "radio", "rooms": [1, 2]}},
}  # fmt: skip
NAMED = {"name": "localisation"}


def requests() -> list[Vector]:
    """Requests that are taken."""

    def model(name: str, description: str, operation: str, /, **data: Any) -> Vector:
        return vector(name, description, request(f"model.{operation}", data))

    sent = {**NAMED, "source": {"files": [{"path": "model.onnx", "parts": [{"attachment": 0}, ARTIFACT]}]}}
    header = request("model.register", sent, attachments=described(("application/octet-stream", ONNX)))
    forms = ["localisation:2", "localisation@stable", "models:/localisation@stable", "models:/localisation/2"]
    return [
        *(vector(f"predict_{index}_by_name", f"Ask {form}.",
                 request("inference.predict", {"model_id": form, "images": [ARTIFACT]}))
          for index, form in enumerate(forms)),
        model("model_info", "What is known of it?", "info", model_id="localisation@stable"),
        model("model_status", "Who has it loaded?", "status", model_id="localisation"),
        model("model_status_all", "Who has what?", "status"),
        vector("model_register", "A version whose files come with the request.", header, [ONNX]),
        model("model_register_full", "Every field of it.", "register", **NAMED, version="2.1",
              source={"url": "s3://models/localisation/2.1"}, metadata=METADATA, alias="stable", author="ada"),
        model("model_register_mlflow", "From MLflow.", "register", **NAMED,
              source={"mlflow": "models:/localisation@champion"}),
        model("model_register_folder", "From a folder of the worker's.", "register", **NAMED,
              source={"folder": "incoming/localisation"}),
        model("model_set_alias", "Move an alias.", "set_alias", **NAMED, alias="stable", version="2", author="ada"),
        model("model_set_alias_gone", "Take it away.", "set_alias", **NAMED, alias="stable", version=None),
        model("model_rollback", "Back to the version before.", "rollback", **NAMED),
        model("model_set_traffic", "Every field of it.", "set_traffic", **NAMED, **TRAFFIC, author="ada"),
        model("model_set_traffic_none", "As without traffic.", "set_traffic", **NAMED),
        model("model_get_metadata", "Of one version.", "get_metadata", **NAMED, version="2"),
        model("model_put_metadata", "Change every field, if nobody was first.", "put_metadata", **NAMED,
              metadata=METADATA, revision=4, author="ada"),
        model("model_put_metadata_away", "Take a field away.", "put_metadata", **NAMED, metadata={"license": None}),
        model("model_history", "The second page.", "history", **NAMED, limit=10, before=JOB),
        model("model_delete_version", "Take it out of the registry.", "delete_version", **NAMED, version="1"),
    ]  # fmt: skip


def answers() -> list[Vector]:
    """Results that have a shape of their own."""
    asked = {"job_id": None, "status": None}  # the orchestrator answers by itself
    version = {
        **NAMED, "version": "2", "model_id": "localisation:2", "created_at": "2026-11-21T04:00:00Z",
        "source": {"url": "s3://models/localisation/2"}, "content_hash": "00ff", "nbytes": 4096, "run_id": "a1b2",
        "metrics": {"error_m": 4.5}, "tags": {"stage": "tested"}, "aliases": ["stable"],
    }  # fmt: skip
    change = {"change_id": JOB, "at": "2026-11-21T04:00:00Z", "kind": "alias", "subject": "stable",
              "tenant": "default", "author": "ada", "before": "1", "after": "2"}  # fmt: skip
    loaded = {"model_id": "localisation:2", "resident": True, "kept": None, "loading": False, "problem": None}

    def say(name: str, description: str, data: dict[str, Any]) -> Vector:
        return from_orchestrator(name, description, response(**asked, data=data))

    return [
        say("answer_model_register", "The version is registered.", version),
        say("answer_model_set_alias", "The alias has moved.",
            {**NAMED, "alias": "stable", "version": "2", "before": "1", "loaded_on": ["worker-0"]}),
        say("answer_model_set_traffic", "The traffic as it is now.", {**NAMED, **TRAFFIC}),
        say("answer_model_metadata", "What is known of it.",
            {**NAMED, "version": None, "revision": 5, "metadata": METADATA}),
        say("answer_model_history", "One change.", {"changes": [change]}),
        say("answer_model_status", "One worker.",
            {"workers": [{"worker_id": "worker-0", "device_id": "cuda:0", "device_kind": "NVIDIA H200",
                          "models": [loaded]}]}),
    ]  # fmt: skip


def refused() -> list[Vector]:
    """Requests with a wrong field."""

    def wrong(name: str, description: str, operation: str, /, **data: Any) -> Vector:
        return vector(name, description, request(f"model.{operation}", {**NAMED, **data}), refuse="invalid_request")

    split = [{"version": "1", "weight": 90}, {"version": "2", "weight": 20}]
    return [
        wrong("model_traffic_sum", "Weights that do not sum to 100.", "set_traffic", splits=split),
        wrong("model_traffic_twice", "A version twice.", "set_traffic",
              splits=[{"version": "1", "weight": 50}, {"version": "1", "weight": 50}]),
        wrong("model_source_none", "No source.", "register", source={}),
        wrong("model_source_two", "Two sources.", "register", source={"folder": "a", "url": "b"}),
        wrong("model_version_path", "A version that is a path.", "set_alias", alias="stable", version="../2"),
        wrong("model_name_path", "A name that is a path.", "delete_version", name="../m", version="1"),
        wrong("model_metadata_bytes", "Bytes among the fields of one's own.", "put_metadata",
              metadata={"user": {"x": ONNX}}),
        wrong("model_metadata_unknown", "A field that is none.", "put_metadata", metadata={"licence": "MIT"}),
    ]  # fmt: skip
