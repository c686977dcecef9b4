"""The scheduler as a pure state machine: `handle(now_ms, event) -> list[Command]` and `next_deadline()`.

No clock, no socket, no thread, no randomness: the shell hands in the time and carries the commands out, and the
simulation does the same with a virtual clock. An event that breaks a rule raises and changes nothing of the job's
state. Reading goes through `jobs`, `sessions` and `fleet`, which only the parts below change.
"""

from collections.abc import Callable
from typing import Any

from orchestrator.core import commands as c
from orchestrator.core import events as e
from orchestrator.core.askers import Askers
from orchestrator.core.estimates import Estimates
from orchestrator.core.fleet import Fleet
from orchestrator.core.lifecycle import Lifecycle
from orchestrator.core.model import Job, Session
from orchestrator.core.placement import Placement
from orchestrator.core.queue import Queue
from orchestrator.core.sessions import Sessions
from orchestrator.core.settings import CoreSettings
from orchestrator.core.timers import Timers
from orchestrator.core.workers import Workers


class Core:
    def __init__(self, settings: CoreSettings | None = None) -> None:
        self.settings = settings or CoreSettings()
        self.now_ms = 0
        self.draining = False
        self.trust_fleet_from_ms = 0  # before it, a worker that could run a job may still be on its way back
        self.commands: list[c.Command] = []
        self.timers = Timers()
        self.jobs: dict[str, Job] = {}
        self.jobs_by_request: dict[tuple[str, str], Job] = {}
        self.unsettled: dict[str, None] = {}  # jobs, in order, that a draining orchestrator waits for
        self.payload_nbytes = 0
        self.estimates = Estimates()
        self.queue = Queue(self.settings.aging_ms)
        self.fleet = Fleet(self.estimates)
        self.askers = Askers(self)
        self.sessions = Sessions(self)
        self.lifecycle = Lifecycle(self)
        self.placement = Placement(self)
        self.workers = Workers(self)
        self._handlers: dict[type, Callable[[Any], None]] = {
            e.Submit: self.lifecycle.submit,
            e.Saved: self.lifecycle.saved,
            e.SaveFailed: self.lifecycle.save_failed,
            e.Settled: self.lifecycle.settled,
            e.SettleFailed: self.lifecycle.settle_failed,
            e.CancelJob: self.lifecycle.cancel,
            e.Restore: self.lifecycle.restore,
            e.AskResult: self.askers.ask_result,
            e.FollowEvents: self.askers.follow,
            e.ConnectionGone: self.askers.connection_gone,
            e.OpenSession: self.sessions.open,
            e.CancelSession: self.sessions.cancel,
            e.WorkerHello: self.workers.hello,
            e.ModelCame: self.workers.model_came,
            e.WorkerHeartbeat: self.workers.heartbeat,
            e.WorkerEvent: self.workers.event,
            e.WorkerResult: self.workers.result,
            e.WorkerGoodbye: self.workers.goodbye,
            e.WorkerUnreachable: self.workers.unreachable,
            e.AssignFailed: self.workers.assign_failed,
            e.PayloadLost: self.lifecycle.payload_lost,
            e.DrainWorker: self.workers.drain,
            e.Drain: self._drain,
            e.Tick: lambda _: None,
        }

    def handle(self, now_ms: int, event: e.Event) -> list[c.Command]:
        """Take in one event at this time; the commands are to be carried out in order.

        What was said comes before what is due: a caller that looked something up finds it still there, and a busy
        caller does not take late reading for silence.
        """
        self.now_ms = max(self.now_ms, now_ms)
        self._handlers[type(event)](event)
        while (timer := self.timers.pop_due(self.now_ms)) is not None:
            timer.callback(*timer.args)
        self.placement.run()
        if self.draining and not self.unsettled:
            self.commands.append(c.Drained())
        done, self.commands = self.commands, []
        return done

    def next_deadline(self) -> int | None:
        """When the core wants a Tick at the latest, in the clock of `now_ms`; None: no need."""
        return self.timers.next_due()

    def job(self, tenant: str, job_id: str) -> Job | None:
        """The tenant's job of this id, if the core remembers it."""
        job = self.jobs.get(job_id)
        return job if job is not None and job.tenant == tenant else None

    def session(self, tenant: str, session_id: str) -> Session | None:
        session = self.sessions.by_id.get(session_id)
        return session if session is not None and session.tenant == tenant else None

    def _drain(self, event: e.Drain) -> None:
        self.draining = True
        self.lifecycle.drain_waiting()
