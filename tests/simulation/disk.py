"""The simulated store: holds exactly what was committed. Writes are grouped; what nobody waits for comes last."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.core.model import Cost, EventRecord, Job, Outcome, Requirement, Session
from orchestrator.core.states import JobState
from protocol.enums import Status
from tests.simulation.checks import check

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass
class StoredJob:
    """A row: what a restart needs."""

    job: dict[str, Any]
    status: Status
    attempt: int = 0
    losses: int = 0
    seq: int = 0


FIELDS = (
    *("job_id", "tenant", "request_id", "fingerprint", "cost", "priority", "created_ms", "session_id"),
    *("queue_timeout_ms", "run_timeout_ms", "deadline_ms", "payload", "payload_nbytes"),
)


class Disk:
    def __init__(self, world: "World") -> None:
        self._world = world
        self.jobs: dict[str, StoredJob] = {}
        self.by_request: dict[tuple[str, str], str] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.sessions: dict[str, Session] = {}
        self.failing = False
        self.delay_ms_max = 10
        self._queue: list[tuple[Callable[[], Any], Callable[[Any, bool], None] | None]] = []
        self._committing = False

    def put(self, write: Callable[[], Any], told: Callable[[Any, bool], None] | None = None) -> None:
        """Queue a write; `told(value, ok)` is called when it is on the disk, or was refused."""
        self._queue.append((write, told))
        if not self._committing:
            self._committing = True
            self._world.at(self._world.rng.randint(1, self.delay_ms_max), self._commit)

    def crash(self) -> None:
        """The process dies: a part of what was queued may be on the disk, and nobody was told."""
        written = self._world.rng.randint(0, len(self._queue)) if not self.failing else 0
        for write, _ in self._queue[:written]:
            write()
        self._queue.clear()

    def flush(self) -> None:
        """The process ends as it should: what is queued is written, if the disk works."""
        for write, _ in self._queue if not self.failing else ():
            write()
        self._queue.clear()

    def _commit(self) -> None:
        self._committing = False
        group, self._queue = self._queue, []
        for write, told in group:
            value = None if self.failing else write()
            if told is not None:
                self._world.at(self._world.rng.randint(0, 5), told, value, not self.failing)
            elif self.failing:
                self._queue.append((write, None))
        if self._queue:
            self._committing = True
            self._world.at(50, self._commit)

    # --- writes -------------------------------------------------------------------------------------------------

    def save_job(self, job: Job) -> Callable[[], str | None]:
        """Returns the id of another job of the same request, if there is one: then nothing is written."""
        stored = StoredJob({name: getattr(job, name) for name in FIELDS}, Status.PENDING)
        need = job.requirement._replace(exclusive=False)

        def write() -> str | None:
            owner = self.by_request.setdefault(job.key, stored.job["job_id"])
            if owner == stored.job["job_id"]:
                self.jobs[owner] = replace(stored, job={**stored.job, "requirement": need})
                return None
            return owner

        return write

    def save_outcome(self, job: Job, record: EventRecord) -> Callable[[], None]:
        outcome, job_id, attempt = job.outcome, job.job_id, job.attempt
        assert outcome is not None

        def write() -> None:
            check(job_id in self.jobs, "the outcome of a job that was never saved", job_id)
            known = self.outcomes.setdefault(job_id, outcome)
            check(known is outcome, "two outcomes on the disk", job_id, known, outcome)
            stored = self.jobs[job_id]
            stored.status, stored.attempt, stored.seq = outcome.status, attempt, record.seq

        return write

    def record(self, job: Job, record: EventRecord) -> Callable[[], None]:
        job_id, status, attempt, losses = job.job_id, job.status, job.attempt, job.losses

        def write() -> None:
            stored = self.jobs[job_id]
            stored.seq = max(stored.seq, record.seq)
            if job_id not in self.outcomes:
                stored.status, stored.attempt, stored.losses = status, attempt, losses

        return write

    def save_session(self, session: Session) -> Callable[[], None]:
        copy = replace(session, counts=dict.fromkeys(Status, 0), progress_sum=0.0, live_jobs={}, timer=None)
        return lambda: self.sessions.update({copy.session_id: copy})

    # --- after a restart ----------------------------------------------------------------------------------------

    def recover(self) -> tuple[list[Job], list[Session]]:
        jobs = []
        for job_id, stored in self.jobs.items():
            if job_id in self.outcomes:
                continue
            state = JobState.ADOPTING if stored.status is Status.PROCESSING else JobState.QUEUED
            job = Job(**stored.job, durable=True, state=state)
            assert isinstance(job.requirement, Requirement)
            assert isinstance(job.cost, Cost)
            job.attempt, job.losses, job.seq = stored.attempt, stored.losses, stored.seq
            jobs.append(job)
        sessions = [replace(session) for session in self.sessions.values() if session.status.value == "active"]
        for session in sessions:
            session.counts, session.live_jobs = dict.fromkeys(Status, 0), {}
        return jobs, sessions
