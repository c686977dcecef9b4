"""The client library: `Client`, `AsyncClient`, and `LocalServer` for a server inside a program.

Errors a server answers are the classes of `protocol.errors`, one per code.
"""

from orchestrator.client.aio import AsyncClient, AsyncJob
from orchestrator.client.core import DEFAULT_ENDPOINT
from orchestrator.client.errors import ClientClosed, ServerUnreachable
from orchestrator.client.events import JobEvent
from orchestrator.client.job import Job
from orchestrator.client.local import LocalServer, StartFailed
from orchestrator.client.pictures import attach_pictures
from orchestrator.client.results import Blob, Image, Result
from orchestrator.client.sync import Client
from orchestrator.client.tensors import Prediction, attach_inputs, attach_requests, prediction_of, predictions_of
from protocol.tensors import Tensor

__all__ = [
    "DEFAULT_ENDPOINT",
    "AsyncClient",
    "AsyncJob",
    "Blob",
    "Client",
    "ClientClosed",
    "Image",
    "Job",
    "JobEvent",
    "LocalServer",
    "Prediction",
    "Result",
    "ServerUnreachable",
    "StartFailed",
    "Tensor",
    "attach_inputs",
    "attach_pictures",
    "attach_requests",
    "prediction_of",
    "predictions_of",
]
