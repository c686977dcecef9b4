"""What must always hold inside the core. `validate` reads its private parts: it is the core's own conscience."""

from collections import Counter

from orchestrator.core.core import Core
from orchestrator.core.fleet import Room, Worker
from orchestrator.core.lifecycle import RECORD_NBYTES
from orchestrator.core.model import Job
from orchestrator.core.states import TERMINAL, JobState
from orchestrator.core.workers import UNREAD_MS
from protocol.limits import PRIORITY_MAX


class Violation(AssertionError):
    """Something that must never happen has happened."""


def check(truth: object, what: str, *facts: object) -> None:
    if not truth:
        raise Violation(f"{what}: {', '.join(map(str, facts))}" if facts else what)


def validate(core: Core) -> None:
    """Raise Violation if the core contradicts itself. To be called between events."""
    live = [job for job in core.jobs.values() if job.state not in TERMINAL]
    _check_jobs(core, live)
    _check_queue(core, [job for job in live if job.ticket])
    _check_fleet(core)
    _check_placement(core)
    _check_askers(core)
    _check_sessions(core, live)
    _check_timers(core, live)


def _check_jobs(core: Core, live: list[Job]) -> None:
    check(len(core.jobs) == len(core.jobs_by_request), "indexes differ")
    for job in core.jobs.values():
        check(core.jobs_by_request.get(job.key) is job, "job not found by its request", job.job_id)
        check((job.state in TERMINAL) <= (job.outcome is not None), "ended without an outcome", job.job_id)
        check(job.state is not JobState.SETTLING or job.durable, "settling in memory", job.job_id)
    check(core.payload_nbytes == sum(job.payload_nbytes for job in core.jobs.values()), "payload_nbytes drifts")
    kept = core.lifecycle._kept
    ended = sum(job.state in TERMINAL for job in core.jobs.values())
    check(len(kept) == ended, "ended jobs are not those kept", len(kept), ended)
    kept_nbytes = sum(job.outcome.nbytes + RECORD_NBYTES for _, job in kept if job.outcome)
    check(core.lifecycle._kept_nbytes == kept_nbytes, "kept bytes drift")
    check(core.lifecycle._accepting == sum(job.state is JobState.ACCEPTING for job in live), "accepting drifts")
    if not core.draining:
        check(core.unsettled.keys() == {job.job_id for job in live}, "unsettled are not the live jobs")


def _check_queue(core: Core, waiting: list[Job]) -> None:
    queue = core.queue
    for job in waiting:
        check(job.state is JobState.QUEUED, "in the queue but not queued", job.job_id, job.state)
    if not core.draining:
        queued = sum(job.state is JobState.QUEUED for job in core.jobs.values())
        check(queued == len(waiting), "queued but not in the queue", queued, len(waiting))
    check(queue.size == len(waiting), "queue size drifts", queue.size, len(waiting))
    check(Counter(job.tenant for job in waiting) == Counter(queue._tenant_sizes), "tenant sizes drift")
    check(queue._turns.keys() <= queue._tenant_sizes.keys(), "turns of absent tenants")
    backlog = Counter[tuple[bool, int]]()
    for job in waiting:
        backlog[job.requirement.light, job.priority] += job.estimate_ms
    for light, levels in queue._backlog_ms.items():
        check(all(backlog[light, level] == known for level, known in enumerate(levels)), "backlog drifts")
    lines = [(section, need, line) for section, lines in queue._lines.items() for need, line in lines.items()]
    check(sum(line.size for _, _, line in lines) == queue.size, "lines do not add up")
    for section, need, line in lines:
        check(section == (need.worker_pin, need.light), "a line in the wrong section", need)
        entries = [entry for ring in line.rings.values() for jobs in ring.tenants.values() for entry in jobs]
        alive = [entry.job for entry in entries if entry.waiting]
        check(line.size == len(alive) > 0, "line size drifts", need)
        check(all(job.requirement == need for job in alive), "job in the wrong line", need)


def _check_fleet(core: Core) -> None:
    fleet = core.fleet
    workers = fleet.by_id.values()
    check({worker.peer for worker in workers} == fleet.by_peer.keys(), "peers and workers differ")
    check(fleet.slots.count == sum(worker.slots for worker in workers), "slots drift")
    check(fleet.light_slots.count == sum(worker.light_slots for worker in workers), "light slots drift")
    held = [slot for worker in workers for slot in worker.jobs.values()]
    for light, places in ((False, fleet.slots), (True, fleet.light_slots)):
        estimates = sum(slot.estimate_ms for slot in held if slot.light is light)
        check(places.running_ms == estimates, "running_ms drifts", light, places.running_ms, estimates)
    for worker in workers:
        check(worker.light == sum(slot.light for slot in worker.jobs.values()), "light drifts")
        check(worker.exclusive == sum(slot.exclusive for slot in worker.jobs.values()), "exclusive drifts")
        _check_listing(core, worker)
    for room, pools in fleet._pools.items():
        check(sum(map(len, pools.values())) == sum(worker.has(room) for worker in workers), "ghosts in pools", room)
    for job in core.jobs.values():
        holders = [
            worker.worker_id
            for worker in workers
            if (slot := worker.jobs.get(job.job_id)) is not None
            and (slot.attempt, worker.worker_id) == (job.attempt, job.worker_id)
        ]
        check(len(holders) <= 1, "one attempt on two workers", job.job_id)
        check(job.state is not JobState.PROCESSING or holders, "processing without a slot", job.job_id, job.worker_id)


def _check_listing(core: Core, worker: Worker) -> None:
    key = worker.profile.device_kind, worker.site
    check(worker.pools.keys() == {room for room in Room if worker.has(room)}, "listed wrongly", worker.worker_id)
    for room, pools in core.fleet._pools.items():
        for its_key, pool in pools.items():
            mine = pool is worker.pools.get(room)
            check(mine == (room in worker.pools and its_key == key), "holds another pool", worker.worker_id)
            check((pool._all.get(worker.worker_id) is worker) == mine, "stands in another pool", worker.worker_id)
            for model_id, warm in pool._warm.items():
                expected = mine and model_id in worker.profile.resident
                check((worker.worker_id in warm) == expected, "loaded model listed wrongly", worker.worker_id, model_id)
    lease_ms = core.settings.lease_ms
    check(worker.lease is not None and worker.lease.callback is not None, "worker without a lease", worker.worker_id)
    worker_due_ms = worker.lease.due_ms if worker.lease is not None else 0
    overdue_ms = worker_due_ms - worker.last_seen_ms - lease_ms
    check(overdue_ms <= UNREAD_MS or worker_due_ms - core.now_ms <= UNREAD_MS, "worker outlives its lease", overdue_ms)


def _check_placement(core: Core) -> None:
    reserved = core.placement._reserved
    check(len(set(map(id, reserved.values()))) == len(reserved), "one worker is reserved twice")
    flagged = {worker.worker_id for worker in core.fleet.by_id.values() if worker.reserved}
    check(flagged == {worker.worker_id for worker in reserved.values()}, "reserved without a reason", flagged)
    for need in core.queue.all_requirements():
        for worker in core.fleet.by_id.values():
            check(not worker.takes(need), "a free worker beside a waiting job", worker.worker_id, need)
    for worker in core.fleet.by_id.values():
        if worker.has(Room.URGENT):
            needs = [line.requirement for line in core.queue.lines(worker.worker_id)]
            fitting = [need for need in needs if worker.can_run(need) and not need.exclusive]
            waits = [job.job_id for need in fitting for job in core.queue.jobs_of(need) if job.priority == PRIORITY_MAX]
            check(not waits, "an urgent job waits beside room for it", worker.worker_id, *waits)


def _check_askers(core: Core) -> None:
    known = [(asker, job) for mine in core.askers._open.values() for asker, job in mine.items()]
    check(all(core.askers._open.values()), "connection without askers")
    check(len(known) == sum(len(job.askers) for job in core.jobs.values()), "askers drift")
    for asker, job in known:
        check(asker in job.askers, "asker unknown to its job", asker.request_id)
        check(job.state not in TERMINAL, "asker of an ended job", asker.request_id)


def _check_sessions(core: Core, live: list[Job]) -> None:
    for session in core.sessions.by_id.values():
        mine = [job for job in live if job.session_id == session.session_id]
        check(session.live_jobs.keys() == {job.job_id for job in mine}, "session's live jobs", session.session_id)
        counted = Counter(job.status for job in mine)
        for status, count in session.counts.items():
            check(status.terminal or counted[status] == count, "session counts drift", session.session_id, status)
        progress = sum(job.progress for job in mine)
        check(abs(session.progress_sum - progress) < 1e-6, "session progress drifts", session.session_id)


def _check_timers(core: Core, live: list[Job]) -> None:
    askers = sum(asker.timer is not None for job in live for asker in job.askers)
    bound = 5 * len(live) + askers + len(core.fleet.by_id) + len(core.sessions.by_id) + 2
    check(len(core.timers) <= bound, "timers leak", len(core.timers), bound)
    due = core.timers.next_due()
    check(due is None or due > core.now_ms, "a timer is overdue")


def check_idle(core: Core) -> None:
    """Nothing is left when nobody wants anything any more and results have been forgotten."""
    check(not core.jobs, "jobs left", list(core.jobs))
    backlog = any(any(levels) for levels in core.queue._backlog_ms.values())
    check(core.queue.size == 0 and not core.queue._tenant_sizes and not backlog, "queue left")
    check(core.payload_nbytes == 0, "payload_nbytes left", core.payload_nbytes)
    check(core.askers.connections == 0, "askers left", core.askers.connections)
    check(not core.unsettled, "unsettled left")
    for worker in core.fleet.by_id.values():
        check(not worker.jobs, "slot leaked", worker.worker_id, list(worker.jobs))
        check(not worker.reserved, "reservation leaked", worker.worker_id)
        check(not worker.draining, "a worker that was to leave is still here", worker.worker_id)
    for places in (core.fleet.slots, core.fleet.light_slots):
        check(places.running_ms == 0, "running_ms left", places.running_ms)
    check(len(core.timers) <= len(core.fleet.by_id) + len(core.sessions.by_id) + 1, "timers left", len(core.timers))
