"""The device thread: takes jobs from the mailbox, and runs quantum after quantum of those it has begun."""

import math
import os
import threading
import time
from bisect import insort, insort_left
from collections.abc import Callable

import structlog

from instructors.task import Lane, Place, step_units
from protocol.enums import HeldState
from protocol.limits import PRIORITY_MAX
from worker.engine.planner import ALONE, Planner, Waiting, lane_of
from worker.engine.running import Running
from worker.engine.workplace import WorkerPlace, Workplace
from worker.jobs import Job

IDLE_S = 2.0  # how often an idle device's free memory is measured
CRASHED = 1  # exit code

log = structlog.get_logger("worker.engine")


class Engine(threading.Thread):
    """Runs until `stop`, or until the end of the mailbox after `finish`."""

    def __init__(self, place: Workplace, warm_up: Callable[[Place], None]) -> None:
        """`warm_up` imports what is slow to import, and loads what is to stay loaded; all jobs wait for it."""
        super().__init__(name="device", daemon=True)
        self._place = place
        self._warm_up = warm_up
        self._mailbox = place.mailbox
        self._sharing: list[Job] = []  # not begun, the most urgent first: those that may share quanta
        self._plain: list[Job] = []  # and those that share nothing
        self._running: list[Running] = []
        self._away: list[Waiting] = []  # units of those whose quantum goes on elsewhere
        self._rest_s = 0.0  # nothing is to be done so long, if nothing comes
        self._planner = Planner(place.quantum_s)
        self._begun = 0
        self._finishing = self._stopping = False
        self._crowded: Job | None = None  # it waits for memory that the running ones hold
        self._beginning = threading.Lock()  # either the device thread begins a job, or it is withdrawn
        self._measured_at = 0.0
        self.room = threading.Event()  # cleared while too many results wait for their acknowledgement
        self.room.set()
        self.memory_free = place.device.memory_free()  # as last measured: asking a hung driver would hang the asker

    # For the socket thread

    def assign(self, job: Job) -> None:
        self._mailbox.put(job)

    def cancel(self, job: Job) -> bool:
        """Have the device thread leave a job at its next quantum. True: it had not begun it, and will not."""
        with self._beginning:
            job.cancelled = True
            self._mailbox.wake()
            return job.state is HeldState.ASSIGNED

    def finish(self) -> None:
        """End after the jobs assigned so far."""
        self._finishing = True
        self._mailbox.put(None)

    def stop(self) -> None:
        """End after the jobs that were begun; the others stay assigned."""
        self._stopping = True
        self.room.set()
        self._mailbox.put(None)

    # The device thread

    def run(self) -> None:
        try:
            place = WorkerPlace(self._place)
            with self._place.pulse.loading():
                self._warm_up(place)
            place.close()
            self._place.pulse.ready()
            while not self.over:
                self.turn()
        except BaseException:
            log.critical("the device thread failed", exc_info=True)
            os._exit(CRASHED)

    @property
    def over(self) -> bool:
        """Is there nothing left to do, now or ever?"""
        if self._running:
            return False
        return self._stopping or (self._finishing and not self._sharing and not self._plain and self._mailbox.empty)

    def turn(self) -> None:
        """One quantum, and what is due before and after it. Waits at the mailbox where there is nothing to do."""
        self._take_in()
        self._leave_cancelled()
        self._begin_jobs()
        self._quantum()
        self._settle()  # not within the quantum: its variables would hold what an error's traceback holds

    def _take_in(self) -> None:
        """What has come to the mailbox; wait at it where there is nothing to do."""
        rest_s = self._rest_s if self._running or self._sharing or self._plain else IDLE_S
        if rest_s > 0:
            self._place.pulse.idle()
            self._measure(time.monotonic())
        self._rest_s = 0.0
        self._mailbox.wait(min(rest_s, IDLE_S))
        for letter in self._mailbox.take():
            if callable(letter):
                letter()
            else:
                self._admit(letter)
        if self._away:
            self._welcome_back()

    def _welcome_back(self) -> None:
        """Those whose quantum has ended elsewhere."""
        back = [entry for entry in self._away if entry.owner.over or not entry.unit.away]
        if back:
            now = time.monotonic()
            self._away = [entry for entry in self._away if entry.unit.away and not entry.owner.over]
            for entry in back:
                entry.since = now
            self._look_at(back)

    def _admit(self, job: Job | None) -> None:
        if job is not None:
            insort(self._pending(job), job, key=_urgent_first)  # after its equals

    def _pending(self, job: Job) -> list[Job]:
        return self._sharing if self._place.registry.shares(job.assign.action) else self._plain

    def _measure(self, now: float) -> None:
        if now - self._measured_at > IDLE_S:
            self.memory_free = self._place.device.memory_free()
            self._measured_at = now

    def _begin_jobs(self) -> None:
        while (self._sharing or self._plain) and not self._stopping:
            if not self.room.is_set():
                if not self._running:
                    self._place.pulse.idle()
                    self.room.wait(IDLE_S)
                return
            pending = self._next()
            if pending is None:
                return
            self._begin(pending.pop(0))
            self._take_in()  # what came meanwhile may be more urgent

    def _next(self) -> list[Job] | None:
        """Where the next job to begin is the first. What may share quanta begins at once; what shares nothing waits
        for its like, unless it is more urgent. While a job of the highest priority runs, only its like begin: loading
        would slow it."""
        crowded = self._crowded
        floor, plain = -1 if crowded is None or crowded.cancelled else crowded.assign.priority, -1
        for running in self._running:
            if running.priority == PRIORITY_MAX:
                floor = max(floor, PRIORITY_MAX - 1)
            if running.is_plain:
                plain = max(plain, running.priority)
        sharing = self._sharing[0].assign.priority if self._sharing else -1
        alone = self._plain[0].assign.priority if self._plain else -1
        if sharing > floor and (sharing >= alone or alone <= plain):
            return self._sharing
        return self._plain if alone > max(floor, plain) else None

    def _begin(self, job: Job) -> None:
        with self._beginning:
            if job.cancelled:
                return
            job.state = HeldState.RUNNING
        self._begun += 1
        running = Running(self._place, job, self._begun)
        self._place.pulse.beat()
        running.begin()
        self._running.append(running)
        if running.over:
            self._settle()

    def _put_back(self, job: Job) -> bool:
        """Its model does not fit beside those in use: it begins when one of the running jobs has ended. Until then
        only what is more urgent may try. False: the job was cancelled meanwhile, and is to be answered."""
        with self._beginning:
            if job.cancelled:
                return False
            job.state = HeldState.ASSIGNED
        log.info("waiting for memory", job_id=job.assign.job_id)
        self._crowded = job
        insort_left(self._pending(job), job, key=_urgent_first)  # before its equals, as it was
        return True

    def _leave_cancelled(self) -> None:
        cancelled = [running for running in self._running if running.job.cancelled]
        for running in cancelled:
            running.cancel()
        if cancelled:
            self._settle()

    def _quantum(self) -> None:
        self._rest_s = 0.0
        going_on = [running for running in self._running if not running.over]  # not those whose last unit came back
        waiting = [entry for running in going_on for entry in running.waiting if not entry.unit.away]
        begun = time.monotonic()
        if len(waiting) > 1 or (waiting and waiting[0].unit.lane is not None):
            waiting = self._due(waiting, begun)
        elif not waiting and self._running:
            self._rest_s = IDLE_S  # all are away
        if not waiting:
            return
        chosen = self._planner.choose(waiting, begun)
        lane = lane_of(chosen[0])
        self._place.pulse.beat()
        if lane is ALONE and len(waiting) == 1:  # nobody else wanted this time, so it is not counted
            self._step(chosen)
        else:
            rows = sum(entry.unit.rows for entry in chosen)
            self._step(chosen)
            ended = time.monotonic()
            self._planner.ran(lane, rows, ended - begun)
            for entry in chosen:
                entry.since = ended
        self._away += [entry for entry in chosen if entry.unit.away]
        self._look_at(chosen)
        self._measure(begun)

    def _due(self, waiting: list[Waiting], now: float) -> list[Waiting]:
        """Those whose lane wants a quantum now. If there are none, it is noted when one will."""
        lanes: dict[Lane | None, list[Waiting]] = {}
        for entry in waiting:
            lanes.setdefault(entry.unit.lane, []).append(entry)
        due, soonest = [], math.inf
        for lane, entries in lanes.items():
            at = 0.0
            if lane is not None:
                urgent = any(entry.priority == PRIORITY_MAX for entry in entries)
                at = lane.due([entry.unit for entry in entries], urgent)
            if at <= now:
                due += entries
            else:
                soonest = min(soonest, at)
        if not due:
            self._rest_s = soonest - now
        return due

    def _look_at(self, entries: list[Waiting]) -> None:
        for owner in dict.fromkeys(entry.owner for entry in entries):
            if not owner.over:
                owner.look()

    def _step(self, chosen: list[Waiting]) -> None:
        if lane_of(chosen[0]) is ALONE:
            with chosen[0].owner.named:
                chosen[0].unit.step()
        else:
            step_units([entry.unit for entry in chosen])

    def _settle(self) -> None:
        """Send the results of what is over."""
        for running in list(self._running):
            if running.out_of_memory:
                running.try_again()
            if running.over:
                self._running.remove(running)
                self._crowded, self._rest_s = None, 0.0  # another may begin
                if not (running.no_room and self._running and self._put_back(running.job)):
                    running.deliver()


def _urgent_first(job: Job) -> int:
    return -job.assign.priority
