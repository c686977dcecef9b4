"""Sessions: defaults, counts and an end for jobs that belong together."""

from typing import TYPE_CHECKING

from orchestrator.core import commands as c
from orchestrator.core import events as e
from orchestrator.core.model import Fault, Job, Session, SessionStatus
from protocol.enums import ErrorCode, Status

if TYPE_CHECKING:
    from orchestrator.core.core import Core


class Sessions:
    def __init__(self, core: "Core") -> None:
        self._core = core
        self.by_id: dict[str, Session] = {}

    def full(self) -> bool:
        return len(self.by_id) >= self._core.settings.sessions_max

    def open(self, event: e.OpenSession) -> None:
        """Take in a new session, or one the store remembers."""
        session = event.session
        self.by_id[session.session_id] = session
        self._core.commands.append(c.SaveSession(session))
        self._watch(session)

    def restore(self, session: Session) -> None:
        self.by_id[session.session_id] = session
        self._watch(session)

    def cancel(self, event: e.CancelSession) -> None:
        session = self.by_id[event.session_id]
        jobs = [self._core.jobs[job_id] for job_id in list(session.live_jobs)]
        for job in jobs:
            self._core.lifecycle.end_cancelled(job, "Its session was cancelled.")
        self._close(session, SessionStatus.CANCELLED)
        data = {"session_id": session.session_id, "cancelled_jobs": len(jobs)}
        self._core.commands.append(c.Reply(event.connection, event.request_id, data))

    def refusal(self, tenant: str, session_id: str | None) -> Fault | None:
        """Why a job may not join this session; None when it may."""
        if session_id is None:
            return None
        session = self.by_id.get(session_id)
        if session is None or session.tenant != tenant or session.status is not SessionStatus.ACTIVE:
            return Fault(ErrorCode.NOT_FOUND, "There is no open session of this id.")
        return None

    def job_added(self, job: Job) -> None:
        session = self.by_id.get(job.session_id) if job.session_id else None
        if session is not None:
            session.counts[job.status] += 1
            session.live_jobs[job.job_id] = None
            session.progress_sum += job.progress
            session.touched_ms = self._core.now_ms

    def job_changed(self, job: Job, before: Status) -> None:
        session = self.by_id.get(job.session_id) if job.session_id else None
        if session is None or job.status is before:
            return
        session.counts[before] -= 1
        session.counts[job.status] += 1
        session.touched_ms = self._core.now_ms
        if job.status.terminal:
            session.live_jobs.pop(job.job_id, None)
            session.progress_sum -= job.progress

    def job_removed(self, job: Job) -> None:
        """The job never came to be: its write failed."""
        session = self.by_id.get(job.session_id) if job.session_id else None
        if session is not None:
            session.counts[job.status] -= 1
            session.live_jobs.pop(job.job_id, None)
        job.session_id = None

    def job_renamed(self, job: Job, job_id: str) -> None:
        session = self.by_id.get(job.session_id) if job.session_id else None
        if session is not None:
            session.live_jobs.pop(job.job_id, None)
            session.live_jobs[job_id] = None

    def progressed(self, job: Job, progress: float) -> None:
        session = self.by_id.get(job.session_id) if job.session_id else None
        if session is not None:
            session.progress_sum += progress - job.progress

    def _watch(self, session: Session) -> None:
        due_ms = session.touched_ms + session.idle_timeout_ms
        session.timer = self._core.timers.add(max(due_ms, self._core.now_ms + 1), self._check_idle, session)

    def _check_idle(self, session: Session) -> None:
        idle_ms = self._core.now_ms - session.touched_ms
        if session.status is not SessionStatus.ACTIVE:
            self.by_id.pop(session.session_id, None)
        elif session.live_jobs:
            session.touched_ms = self._core.now_ms
            self._watch(session)
        elif idle_ms >= session.idle_timeout_ms:
            self._close(session, SessionStatus.EXPIRED)
        else:
            self._watch(session)

    def _close(self, session: Session, status: SessionStatus) -> None:
        """End a session; it stays readable in memory for one more idle timeout."""
        if session.status is SessionStatus.ACTIVE:
            session.status = status
            session.touched_ms = self._core.now_ms
            self._core.commands.append(c.SaveSession(session))
            self._core.timers.cancel(session.timer)
            self._watch(session)
