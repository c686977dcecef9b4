"""Who wants to hear of which job, and what becomes of a job nobody waits for any more."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.core import commands as c
from orchestrator.core import events as e
from orchestrator.core.model import ALL_EVENTS, Asker, AskerKind, Connection, EventRecord, Fault, Job
from orchestrator.core.states import TERMINAL
from protocol.enums import ErrorCode

if TYPE_CHECKING:
    from orchestrator.core.core import Core


class Askers:
    def __init__(self, core: "Core") -> None:
        self._core = core
        self._open: dict[Connection, dict[Asker, Job]] = {}

    @property
    def connections(self) -> int:
        return len(self._open)

    def room(self, connection: Connection) -> bool:
        """May this connection have one more request in flight?"""
        return len(self._open.get(connection, ())) < self._core.settings.connection_requests_max

    def attach(self, job: Job, asker: Asker) -> None:
        job.askers.append(asker)
        self._open.setdefault(asker.connection, {})[asker] = job
        if asker.kind is AskerKind.REPLY:
            self._core.timers.cancel(job.grace_timer)
            job.grace_timer = None

    def detach(self, job: Job, asker: Asker) -> None:
        job.askers.remove(asker)
        self._core.timers.cancel(asker.timer)
        mine = self._open[asker.connection]
        del mine[asker]
        if not mine:
            del self._open[asker.connection]

    def waiting(self) -> Iterator[Connection]:
        """Connections with an open `wait: true` request that can be told that the server is alive."""
        for connection, mine in self._open.items():
            if any(asker.kind is AskerKind.REPLY and asker.probed for asker in mine):
                yield connection

    def emit(self, job: Job, record: EventRecord) -> None:
        for asker in job.askers:
            if record.name in asker.events:
                self._core.commands.append(c.Emit(asker.connection, asker.request_id, job.job_id, record))

    def answer_all(self, job: Job) -> None:
        """The job has ended: each asker gets its one answer; streams end with the terminal event already sent."""
        for asker in list(job.askers):
            self.detach(job, asker)
            if asker.kind is AskerKind.CANCEL:
                self._answer_cancel(job, asker)
            elif asker.kind is not AskerKind.STREAM:
                self._core.commands.append(c.Answer(asker.connection, asker.request_id, job))

    def ask_result(self, event: e.AskResult) -> None:
        job = self._core.jobs[event.job_id]
        if job.state in TERMINAL or event.wait_ms == 0:
            self._core.commands.append(c.Answer(event.connection, event.request_id, job))
        elif not self.room(event.connection):
            self.refuse(event.connection, event.request_id)
        else:
            asker = Asker(event.connection, event.request_id, AskerKind.RESULT)
            self.attach(job, asker)
            asker.timer = self._core.timers.add(self._core.now_ms + event.wait_ms, self._result_wait_over, job, asker)

    def _result_wait_over(self, job: Job, asker: Asker) -> None:
        self.detach(job, asker)
        self._core.commands.append(c.Answer(asker.connection, asker.request_id, job))

    def ask_cancelled(self, job: Job, connection: Connection, request_id: str) -> None:
        """Answer a `job.cancel` now if the job has ended, else when its end is safe."""
        asker = Asker(connection, request_id, AskerKind.CANCEL)
        if job.state in TERMINAL:
            self._answer_cancel(job, asker)
        elif self.room(connection):
            self.attach(job, asker)
        else:
            self.refuse(connection, request_id)

    def _answer_cancel(self, job: Job, asker: Asker) -> None:
        data = {"job_id": job.job_id, "status": job.status.value}
        self._core.commands.append(c.Reply(asker.connection, asker.request_id, data, job))

    def follow(self, event: e.FollowEvents) -> None:
        job = self._core.jobs[event.job_id]
        history = job.history()
        oldest = history[0].seq if history else job.seq + 1
        if job.state not in TERMINAL and not self.room(event.connection):
            self.refuse(event.connection, event.request_id)
            return
        data = {"oldest_seq": oldest, "status": job.status.value}
        self._core.commands.append(c.Reply(event.connection, event.request_id, data, job))
        for record in history:
            ends_it = record is history[-1] and job.state in TERMINAL  # always sent, or the asker would wait for it
            if record.seq > event.after_seq or ends_it:
                self._core.commands.append(c.Emit(event.connection, event.request_id, job.job_id, record))
        if job.state not in TERMINAL:
            self.attach(job, Asker(event.connection, event.request_id, AskerKind.STREAM, ALL_EVENTS))

    def refuse(self, connection: Connection, request_id: str) -> None:
        self._core.commands.append(c.Reject(connection, request_id, self.no_room()))

    def no_room(self) -> Fault:
        limit = self._core.settings.connection_requests_max
        return Fault(ErrorCode.QUEUE_FULL, f"This connection has {limit} requests in flight.", {"limit": limit}, 1000)

    def connection_gone(self, event: e.ConnectionGone) -> None:
        """Its accepted jobs go on; its waiting jobs have the grace to be asked for again."""
        for asker, job in list(self._open.get(event.connection, {}).items()):
            self.detach(job, asker)
            if asker.kind is AskerKind.REPLY:
                self.start_grace(job)

    def start_grace(self, job: Job) -> None:
        """Cancel a job that lives in memory unless somebody asks for it in time."""
        wanted = any(asker.kind is AskerKind.REPLY for asker in job.askers)
        if job.durable or job.state in TERMINAL or wanted or job.grace_timer is not None:
            return
        due_ms = self._core.now_ms + self._core.settings.reconnect_grace_ms
        job.grace_timer = self._core.timers.add(due_ms, self._core.lifecycle.abandon, job)
