"""Who asked what, who was told what, and whether that is what the contract promises."""

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from orchestrator.core import commands as c
from orchestrator.core.fleet import URGENT_SLOTS
from orchestrator.core.model import Job, Outcome
from protocol.enums import ErrorCode, Status
from protocol.limits import PRIORITY_MAX
from tests.simulation.checks import check

if TYPE_CHECKING:
    from tests.simulation.client import Ask
    from tests.simulation.world import World

LOSSES = ("worker crash", "worker and parent crash", "worker pause", "worker connection", "worker hands back")


class Ledger:
    def __init__(self, world: "World") -> None:
        self._world = world
        self._asked: Counter[tuple[object, str]] = Counter()  # by connection and request_id
        self._answered: Counter[tuple[object, str]] = Counter()
        self._seqs: dict[tuple[object, str, str], int] = {}
        self._runs: defaultdict[str, list[int]] = defaultdict(list)
        self._outcomes: dict[str, Outcome] = {}  # of this epoch, by job_id
        self._ended: dict[tuple[str, str], tuple[str, int]] = {}  # of this epoch: which job answered a request, when
        self._accepted: dict[str, str] = {}  # job_id -> request_id
        self._refusals: dict[str, ErrorCode] = {}
        self.asks: list[Ask] = []
        self.ends: Counter[str] = Counter()
        self.lights = 0  # attempts in light slots

    def new_epoch(self) -> None:
        """What lives in memory may come out differently in the orchestrator's next life."""
        self._outcomes.clear()
        self._ended.clear()

    def runs(self, job_id: str, attempt: int) -> int:
        """How many attempts of this job have run, this one among them."""
        attempts = self._runs[job_id]
        if attempt not in attempts:
            attempts.append(attempt)
        return attempts.index(attempt) + 1

    # --- while it runs ------------------------------------------------------------------------------------------

    def received(self, connection: str, request_id: str) -> None:
        self._asked[connection, request_id] += 1

    def refused(self, ask: "Ask", code: ErrorCode) -> None:
        self._refusals[ask.request_id] = code

    def responded(self, command: c.Answer | c.Accepted | c.Reply | c.Reject) -> None:
        key = command.connection, command.request_id
        self._answered[key] += 1
        check(self._answered[key] <= self._asked[key], "more answers than requests", *key)
        if isinstance(command, c.Accepted):
            job = command.job
            check(job.job_id in self._world.disk.jobs, "accepted, but not on the disk", job.job_id)
            self._accepted[job.job_id] = job.request_id
        if isinstance(command, c.Answer):
            if command.job.outcome is not None and command.job.status.terminal:
                self._ended_with(command.job, command.job.outcome)
            else:
                check(".r" in command.request_id, "an answer without an outcome", *key)

    def _ended_with(self, job: Job, outcome: Outcome) -> None:
        known = self._outcomes.setdefault(job.job_id, outcome)
        check(known is outcome, "two outcomes of one job", job.job_id, known, outcome)
        if job.durable:
            stored = self._world.disk.outcomes.get(job.job_id)
            check(stored is outcome, "told before it was on the disk", job.job_id)
        before, at_ms = self._ended.get(job.key, (job.job_id, 0))
        forgotten = self._world.now_ms - at_ms > self._world.shell.core.settings.result_keep_ms  # type: ignore[union-attr]
        check(before == job.job_id or forgotten, "one request ran as two jobs", *job.key)
        if before != job.job_id or not at_ms:
            self._ended[job.key] = job.job_id, self._world.now_ms
        if outcome.status is Status.COMPLETED:
            check(outcome.data["attempt"] == job.attempt, "a stale attempt's result", job.job_id, outcome.data)
            check(outcome.data["worker"] == job.worker_id, "another worker's result", job.job_id, outcome.data)

    def emitted(self, command: c.Emit) -> None:
        key = command.connection, command.request_id, command.job_id
        seq = command.record.seq
        check(seq >= self._seqs.get(key, 0), "events out of order", *key, seq)
        self._seqs[key] = seq

    def assigned(self, command: c.Assign) -> None:
        core = self._world.shell.core
        assert core is not None
        job, worker = command.job, core.fleet.by_peer[command.peer]
        check(worker.can_run(job.requirement), "assigned to a worker that cannot run it", job.job_id)
        light = worker.jobs[job.job_id].light
        self.lights += light
        beside = URGENT_SLOTS if job.priority == PRIORITY_MAX and worker.slots > 1 else 0
        room = worker.light_slots if light else worker.slots + beside
        taken = sum(slot.light is light for slot in worker.jobs.values())
        check(taken <= room, "more jobs than slots", worker.worker_id, taken, room)
        check(light <= job.requirement.light, "another job in a light slot", job.job_id)
        if job.requirement.exclusive:
            check(list(worker.jobs) == [job.job_id], "an exclusive job has company", job.job_id, list(worker.jobs))
            return
        level = min(PRIORITY_MAX, job.priority + (core.now_ms - job.queued_ms) // core.settings.aging_ms)
        for need in core.queue.all_requirements():
            fits = worker.can_run(need) and not need.exclusive and (need.light or not light)
            for other in core.queue.jobs_of(need) if fits else ():
                check(other.priority <= level, "a less urgent job went first", job.job_id, other.job_id)

    # --- at the end ---------------------------------------------------------------------------------------------

    def judge(self) -> None:
        disk = self._world.disk
        for job_id, request_id in self._accepted.items():
            check(job_id in disk.outcomes, "accepted, but never ended", job_id, request_id)
        for job_id in disk.jobs:
            check(job_id in disk.outcomes, "on the disk, but never ended", job_id)
        open_links = self._world.shell.open_links
        for (connection, request_id), count in self._asked.items():
            answered = self._answered[connection, request_id]
            check(connection not in open_links or answered == count, "unanswered", connection, request_id)
        for ask in self.asks:
            if ask.outcome is not None:
                code = (ask.outcome.error or {}).get("code")
                self.ends[code or ask.outcome.status.value] += 1
                check(self._legitimate(ask, code), "an end for no reason", ask.request_id, ask.work, code)
            elif ask.request_id in self._refusals:
                code = self._refusals[ask.request_id].value
                self.ends[f"refused {code}"] += 1
                pinned = ask.requirement.worker_pin is not None
                reason = pinned if code == ErrorCode.NO_CAPABLE_WORKER else code == ErrorCode.NOT_FOUND
                check(reason, "refused for no reason", ask.request_id, code)
            else:
                self.ends["client gone"] += 1
                check(ask.given_up, "never answered", ask.request_id)

    def _legitimate(self, ask: "Ask", code: str | None) -> bool:
        faults, fate = self._world.faults.counts, ask.work.fate
        lossy = any(faults[kind] for kind in LOSSES) or fate in ("crash", "hang")
        lossy = lossy or any(other.work.fate in ("crash", "hang") for other in self.asks)
        match code:
            case None:
                # Failures that pass are counted in memory: a restart gives a job that is on disk its attempts again.
                anew = fate == "passing" and ask.durable and faults["orchestrator crash"] > 0
                return fate != "error" and (anew or not (fate in ("passing", "crash") and ask.work.times > 3))
            case ErrorCode.INTERNAL:
                return fate == "error"
            case ErrorCode.UNAVAILABLE:  # a job taken over after a restart cannot be tried again
                return fate == "passing" and (ask.work.times > 3 or not ask.durable)
            case ErrorCode.CANCELLED:
                return ask.may_be_cancelled
            case ErrorCode.POISONED:
                return lossy
            case ErrorCode.WORKER_LOST:
                return lossy and not ask.durable
            case ErrorCode.DRAINING:
                return faults["orchestrator drain"] > 0 and not ask.durable
            case ErrorCode.NO_CAPABLE_WORKER:
                return ask.requirement.worker_pin is not None
            case _:
                return code in {
                    "queue_timeout_ms": (ErrorCode.TIMEOUT_QUEUE,),
                    "run_timeout_ms": (ErrorCode.TIMEOUT_RUN,),
                    "deadline_ms": (ErrorCode.DEADLINE_EXCEEDED,),
                }.get(next(iter(ask.limits), ""), ())
