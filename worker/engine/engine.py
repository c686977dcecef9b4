"""The device thread: takes jobs from the mailbox, and runs quantum after quantum of those it has begun."""

import os
import queue
import threading
import time
from collections.abc import Callable

import structlog

from instructors.task import Unit, step_units
from protocol.enums import HeldState
from worker.engine.planner import ALONE, Planner, Waiting, lane_of
from worker.engine.running import Named, Running
from worker.engine.workplace import Workplace
from worker.jobs import Job

IDLE_S = 2.0  # how often an idle device's free memory is measured
CRASHED = 1  # exit code

log = structlog.get_logger("worker.engine")


class Engine(threading.Thread):
    """Runs until `stop`, or until the end of the mailbox after `finish`."""

    def __init__(self, place: Workplace, warm_up: Callable[[], None]) -> None:
        """`warm_up` imports what is slow to import; jobs that need none of it wait for it all the same."""
        super().__init__(name="device", daemon=True)
        self._place = place
        self._warm_up = warm_up
        self._mailbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._pending: list[Job] = []  # not begun, the most urgent first
        self._running: list[Running] = []
        self._planner = Planner(place.quantum_s)
        self._begun = 0
        self._finishing = self._stopping = False
        self._crowded = False  # a job waits for memory that the running ones hold
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
            with self._place.pulse.loading():
                self._warm_up()
            self._place.pulse.ready()
            while not self._over():
                self._take_in()
                self._begin_jobs()
                self._leave_cancelled()
                self._quantum()
        except BaseException:
            log.critical("the device thread failed", exc_info=True)
            os._exit(CRASHED)

    def _over(self) -> bool:
        if self._running:
            return False
        return self._stopping or (self._finishing and not self._pending and self._mailbox.empty())

    def _take_in(self) -> None:
        """Empty the mailbox; wait at it where there is nothing to do."""
        idle = not self._running and not self._pending
        if idle:
            self._place.pulse.idle()
            self._measure()
        try:
            while True:
                job = self._mailbox.get(timeout=IDLE_S) if idle else self._mailbox.get_nowait()
                idle = False
                if job is not None:
                    self._pending.append(job)
                    self._pending.sort(key=lambda job: -job.assign.priority)  # keeps the order of equals
        except queue.Empty:
            pass

    def _measure(self) -> None:
        now = time.monotonic()
        if now - self._measured_at > IDLE_S:
            self.memory_free = self._place.device.memory_free()
            self._measured_at = now

    def _begin_jobs(self) -> None:
        """Begin what may share quanta at once. What shares nothing waits for its like, unless it is more urgent."""
        if not self._pending or self._stopping or self._crowded:
            return
        if not self._running:
            self.room.wait()
        if not self.room.is_set() or self._stopping:
            return
        plain = max((one.job.assign.priority for one in self._running if one.is_plain), default=-1)
        for job in list(self._pending):
            if self._crowded:
                return
            shares = self._place.registry.shares(job.assign.action)
            if not shares and job.assign.priority <= plain:
                continue
            self._pending.remove(job)
            if self._begin(job):
                plain = plain if shares else job.assign.priority

    def _begin(self, job: Job) -> bool:
        with self._beginning:
            if job.cancelled:
                return False
            job.state = HeldState.RUNNING
        self._begun += 1
        running = Running(self._place, job, self._begun)
        self._place.pulse.beat()
        running.begin()
        if running.no_room and self._running:
            self._put_back(job)
            return False
        self._running.append(running)
        self._settle()
        return True

    def _put_back(self, job: Job) -> None:
        """Its model does not fit beside those in use: it begins when one of the running jobs has ended."""
        log.info("waiting for memory", job_id=job.assign.job_id)
        self._crowded = True
        with self._beginning:
            job.state = HeldState.ASSIGNED
        self._pending.insert(0, job)
        self._pending.sort(key=lambda job: -job.assign.priority)

    def _leave_cancelled(self) -> None:
        for running in self._running:
            if running.job.cancelled and not running.over:
                running.cancel()
        self._settle()

    def _quantum(self) -> None:
        waiting = [entry for running in self._running for entry in running.waiting]
        if not waiting:
            return
        now = time.monotonic()
        chosen = self._planner.choose(waiting, now)
        lane, rows = lane_of(chosen[0]), sum(entry.unit.rows for entry in chosen)
        self._place.pulse.beat()
        self._step(chosen)
        ended = time.monotonic()
        self._planner.ran(lane, rows, ended - now)
        for entry in chosen:
            entry.since = ended
        stepped = {id(entry) for entry in chosen}
        for running in self._running:
            if any(id(entry) in stepped for entry in running.waiting):
                running.look()
        self._settle()
        self._measure()

    def _step(self, chosen: list[Waiting]) -> None:
        units: list[Unit] = [entry.unit for entry in chosen]
        if lane_of(chosen[0]) is ALONE:
            with Named(self._owner(chosen[0]).job):
                step_units(units)
        else:
            step_units(units)

    def _owner(self, entry: Waiting) -> Running:
        return next(running for running in self._running if entry in running.waiting)

    def _settle(self) -> None:
        """Send the results of what is over."""
        for running in self._running:
            if running.out_of_memory:
                running.try_again()
            if running.over:
                running.deliver()
                self._crowded = False
        self._running = [running for running in self._running if not running.over]
