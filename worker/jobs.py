"""The jobs a worker holds: in the mailbox, running, or done with a result that is not yet acknowledged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from instructors.task import Blob
from protocol.codec import Buffer
from protocol.enums import HeldState
from protocol.limits import MIB
from protocol.messages import Assign, HeldJob

RESULTS_MAX = 1024
RESULT_BYTES_MAX = 512 * MIB
ASSIGNED_SLACK = 64  # a cancelled job's slot may be given away before the device has left it


@dataclass(slots=True, eq=False)
class Job:
    """One attempt. Written by the socket thread, except `state`, which the device thread moves to RUNNING.

    `cancelled`: its result is of no interest any more; the device thread leaves it at its next quantum.
    """

    assign: Assign
    blobs: Sequence[Blob]
    state: HeldState = HeldState.ASSIGNED
    cancelled: bool = False
    result: list[Buffer] = field(default_factory=list)  # frames, once DONE
    nbytes: int = 0
    sent_at: float = 0.0  # when the result was last sent, monotonic seconds; 0: not yet
    encodes: bool = False  # its messages go through the encoder, in order

    @property
    def key(self) -> tuple[str, int]:
        return self.assign.job_id, self.assign.attempt

    def to_held(self) -> HeldJob:
        assign = self.assign
        return HeldJob(
            job_id=assign.job_id,
            attempt=assign.attempt,
            state=self.state,
            tenant=assign.tenant,
            request_id=assign.request_id,
            fingerprint=assign.fingerprint,
            action=assign.action,
            durable=assign.durable,
        )


class HeldJobs:
    """At most one attempt of each job; used by the socket thread only."""

    def __init__(self, slots: int) -> None:
        """`slots`: how many jobs it was said to take, light ones among them."""
        self._jobs: dict[str, Job] = {}
        self._unfinished_max = slots + ASSIGNED_SLACK
        self._results = 0
        self._result_bytes = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def holds(self, job: Job) -> bool:
        return self._jobs.get(job.assign.job_id) is job

    def admit(self, job: Job) -> bool:
        """Hold a newly assigned job. False: it is doubled, stale, or one too many, and is to be ignored.

        An older attempt of the same job gives way.
        """
        held = self._jobs.get(job.assign.job_id)
        if held is not None:
            if held.assign.attempt >= job.assign.attempt:
                return False
            self._forget(held)
        if len(self._jobs) - self._results >= self._unfinished_max:
            return False
        self._jobs[job.assign.job_id] = job
        return True

    def finish(self, job: Job, frames: list[Buffer]) -> None:
        """Keep the result of a held job until it is acknowledged."""
        job.state, job.result = HeldState.DONE, frames
        job.nbytes = sum(memoryview(frame).nbytes for frame in frames)
        self._results += 1
        self._result_bytes += job.nbytes

    def acknowledge(self, job_id: str, attempt: int) -> None:
        """Forget a result that is safe elsewhere."""
        job = self._jobs.get(job_id)
        if job is not None and job.state is HeldState.DONE and job.assign.attempt == attempt:
            self._forget(job)

    def cancel(self, job_id: str, attempt: int) -> Job | None:
        """Forget the result of this attempt or an older one. One that has no result yet is returned, to be stopped."""
        job = self._jobs.get(job_id)
        if job is None or job.assign.attempt > attempt:
            return None
        if job.state is not HeldState.DONE:
            return job
        self._forget(job)
        return None

    @property
    def full(self) -> bool:
        """Whether so many results wait that no further job should begin."""
        return self._results >= RESULTS_MAX or self._result_bytes >= RESULT_BYTES_MAX

    def _forget(self, job: Job) -> None:
        job.cancelled = True
        if job.state is HeldState.DONE:
            self._results -= 1
            self._result_bytes -= job.nbytes
        del self._jobs[job.assign.job_id]
