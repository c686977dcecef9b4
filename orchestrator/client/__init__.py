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
    "Result",
    "ServerUnreachable",
    "StartFailed",
    "attach_pictures",
]
