"""`artifact.*`: stored bytes, results and uploads."""

from protocol.schemas.base import Action, ActionData, ResultData
from protocol.schemas.job import Id


class ArtifactPut(ActionData):
    """Store this request's one attachment."""


class ArtifactRef(ActionData):
    artifact_id: Id


class ArtifactInfo(ResultData):
    """The answer to `artifact.get` carries the bytes as its one attachment."""

    artifact_id: str
    media_type: str
    nbytes: int
    sha256: str  # hex
    created_at: str


ACTIONS = [
    Action("artifact.put", "orchestrator", ArtifactPut, ArtifactInfo, "Store one attachment for 24 h."),
    Action("artifact.get", "orchestrator", ArtifactRef, ArtifactInfo, "Fetch a stored artifact."),
]
