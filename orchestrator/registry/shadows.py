"""Shadow traffic: copies of requests to another version, whose answers are compared and dropped.

A copy is made when its original has ended well, so it cannot delay or fail it, and only while nothing waits for a
worker. It runs at the lowest priority, and is given up as soon as other work waits.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.core.model import Job
from orchestrator.errands import Ended
from orchestrator.payload import Payload
from orchestrator.registry.comparing import Answer, compare
from protocol.enums import ErrorCode
from protocol.errors import QueueFull
from protocol.limits import MIB

if TYPE_CHECKING:
    from orchestrator.broker import Broker

COPIES_MAX = 64  # whose originals run, and
COPIES_BYTES_MAX = 64 * MIB  # of their attachments
RUNNING_MAX = 8
ORIGINAL_MS_MAX = 600_000  # for so long an original is waited for
START_MS_MAX, RUN_MS_MAX = 1_000, 60_000
STATS_MAX = 10_000  # versions that are counted
GIVEN_UP = frozenset(
    code.value for code in (ErrorCode.CANCELLED, ErrorCode.TIMEOUT_QUEUE, ErrorCode.QUEUE_FULL, ErrorCode.DRAINING)
)


@dataclass(slots=True)
class ShadowStats:
    """What came of the copies to one version, since the server's start."""

    compared: int = 0
    equal: int = 0
    failed: int = 0
    dropped: int = 0
    numbers: int = 0
    equal_numbers: int = 0
    max_abs_diff: float | None = None
    run_ms: int = 0  # of those compared

    def told(self, version: str) -> dict[str, Any]:
        """As `ShadowStats` of the wire."""
        return {
            "version": version,
            "compared": self.compared,
            "equal": self.equal,
            "differing": self.compared - self.equal,
            "failed": self.failed,
            "dropped": self.dropped,
            "max_abs_diff": self.max_abs_diff,
            "equal_share": self.equal_numbers / self.numbers if self.numbers else None,
            "avg_run_ms": self.run_ms / self.compared if self.compared else None,
        }


class Shadows:
    def __init__(self, broker: "Broker") -> None:
        self._broker = broker
        self._stats: dict[tuple[str, str], ShadowStats] = {}  # by tenant and model_id
        self._copies = 0
        self._copies_nbytes = 0
        self._running: dict[str, None] = {}  # job_ids

    def stats(self, tenant: str, model_id: str) -> ShadowStats | None:
        return self._stats.get((tenant, model_id))

    def follow(self, job: Job, model_id: str) -> None:
        """The core took in this job; when it has ended, ask the same of another model."""
        self.give_way()
        stats = self._stats_of(job.tenant, model_id)
        nbytes = sum(entry["nbytes"] for entry in job.payload.attachments)
        if self._copies >= COPIES_MAX or self._copies_nbytes + nbytes > COPIES_BYTES_MAX:
            stats.dropped += 1
            return
        payload: Payload = job.payload
        data = {**payload.data, "model_id": model_id}
        data.pop("fallbacks", None)
        copy = Payload(payload.action, data, payload.attachments, payload.frames, payload.artifact_ids)
        try:
            hear = partial(self._original_ended, job.tenant, copy, nbytes, stats)
            self._broker.errands.watch(job.job_id, hear, ORIGINAL_MS_MAX)
        except QueueFull:
            stats.dropped += 1
            return
        self._copies += 1
        self._copies_nbytes += nbytes

    def _original_ended(self, tenant: str, copy: Payload, nbytes: int, stats: ShadowStats, original: Ended) -> None:
        self._copies -= 1
        self._copies_nbytes -= nbytes
        if original.error is not None:
            return  # there is nothing to compare with
        if self._broker.core.queue.size or len(self._running) >= RUNNING_MAX:
            stats.dropped += 1
            return
        try:
            job_id = self._broker.errands.run(
                tenant,
                copy,
                lambda ended: self._ended(stats, original, ended),
                deadline_ms=RUN_MS_MAX,
                queue_timeout_ms=START_MS_MAX,
                priority=0,
            )
        except QueueFull:
            stats.dropped += 1
        else:
            self._running[job_id] = None

    def _ended(self, stats: ShadowStats, original: Ended, shadow: Ended) -> None:
        self._running.pop(shadow.job_id, None)
        if shadow.failed_as in GIVEN_UP:
            stats.dropped += 1
        elif shadow.error is not None:
            stats.failed += 1
        else:
            found = compare(Answer(original.data, original.frames), Answer(shadow.data, shadow.frames))
            stats.compared += 1
            stats.equal += found.equal
            stats.numbers += found.numbers
            stats.equal_numbers += found.equal_numbers
            stats.run_ms += shadow.running_ms
            if found.max_abs_diff is not None:
                stats.max_abs_diff = max(stats.max_abs_diff or 0.0, found.max_abs_diff)

    def give_way(self) -> None:
        """Other work waits: shadows that run are given up."""
        if self._running and self._broker.core.queue.size:
            for job_id in list(self._running):
                self._broker.errands.cancel(job_id)

    def _stats_of(self, tenant: str, model_id: str) -> ShadowStats:
        if len(self._stats) >= STATS_MAX and (tenant, model_id) not in self._stats:
            del self._stats[next(iter(self._stats))]
        return self._stats.setdefault((tenant, model_id), ShadowStats())
