"""Run by the tests with MLflow's own client, in its environment: registers models, and prints what it was told."""

import hashlib
import json
import sys
from typing import Any

import mlflow
import mlflow.onnx
import mlflow.sklearn
from onnx import TensorProto, helper
from sklearn.linear_model import LinearRegression


def network(name: str) -> Any:
    shapes = [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["batch", 2]) for tensor in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], name, shapes[:1], shapes[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def main(server: str) -> None:
    mlflow.set_tracking_uri(server)
    client = mlflow.MlflowClient()
    told: dict[str, Any] = {}
    for version, rmse_m in (("1", 12.5), ("2", 9.25)):
        made = network(f"version {version}")
        with mlflow.start_run() as run:
            mlflow.log_metric("rmse_m", rmse_m)
            mlflow.set_tag("site", "north")
            mlflow.onnx.log_model(made, name="net", registered_model_name="net", pip_requirements=[])
        client.set_model_version_tag("net", version, "checked", "yes")
        digest = hashlib.sha256(made.SerializeToString()).hexdigest()
        told[version] = {"run_id": run.info.run_id, "rmse_m": rmse_m, "sha256": digest}
    client.set_registered_model_alias("net", "champion", "1")
    client.transition_model_version_stage("net", "2", "Staging")
    with mlflow.start_run():
        fitted = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
        mlflow.sklearn.log_model(
            fitted, name="pickled", registered_model_name="pickled", serialization_format="pickle", pip_requirements=[]
        )
    client.create_registered_model("elsewhere")
    client.create_model_version("elsewhere", source="s3://models/elsewhere")
    print(json.dumps(told))


main(sys.argv[1])
