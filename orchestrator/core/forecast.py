"""How a job would fare on each worker, were it submitted now. Predictions; nothing is changed by them."""

from typing import TYPE_CHECKING, NamedTuple

from orchestrator.core.fleet import Places, Worker
from orchestrator.core.model import Job
from protocol.limits import PRIORITY_MAX

if TYPE_CHECKING:
    from orchestrator.core.core import Core


class Forecast(NamedTuple):
    """Of one worker, from now: until it would begin the job, and how long it would load and run."""

    worker: Worker
    start_ms: int
    load_ms: int
    run_ms: int
    warm: bool  # nothing is to be loaded

    @property
    def rank(self) -> tuple[int, int]:
        """When it would end the job; of equals, the worker served longest ago."""
        return self.start_ms + self.load_ms + self.run_ms, self.worker.turn


def forecasts(core: "Core", job: Job, now_ms: int) -> list[Forecast]:
    """For each connected worker that could run the job, the one that would end it soonest first."""
    need, estimates, found = job.requirement, core.estimates, []
    waiting_ms, places = rivals(core, job)
    ahead_ms = waiting_ms // max(1, places.count)
    for worker in core.fleet.by_id.values():
        if worker.draining or not worker.can_run(need):
            continue
        device_kind = worker.profile.device_kind
        at_once = worker.takes(need, urgent=job.priority == PRIORITY_MAX)  # nothing that waits could run there
        start_ms = 0 if at_once else _free_ms(worker, need.light, now_ms) + ahead_ms
        warm = need.model_id is None or need.model_id in worker.profile.resident
        load_ms = 0 if warm else estimates.load_ms(device_kind, need.model_id or "")
        found.append(Forecast(worker, start_ms, load_ms, estimates.run_ms(job.cost, device_kind), warm))
    return sorted(found, key=lambda forecast: forecast.rank)


def rivals(core: "Core", job: Job) -> tuple[int, Places]:
    """The predicted run time of what waits for the same places, as urgent or more so, and those places.

    Where the fleet has light slots, light jobs and others do not wait for each other.
    """
    queue, fleet, light = core.queue, core.fleet, job.requirement.light
    if fleet.light_slots.count:
        return queue.backlog_ms(job.priority, light=light), fleet.light_slots if light else fleet.slots
    return sum(queue.backlog_ms(job.priority, light=kind) for kind in (False, True)), fleet.slots


def _free_ms(worker: Worker, light: bool, now_ms: int) -> int:
    """Until a place is free, by what the jobs there were predicted to take; at once where one is, but not for now."""
    ends_ms: dict[bool, list[int]] = {False: [], True: []}  # of those in slots, of those in light slots
    for slot in worker.jobs.values():
        ends_ms[slot.light].append(max(0, slot.since_ms + slot.estimate_ms - now_ms))
    if worker.exclusive or worker.reserved:
        return max((*ends_ms[False], *ends_ms[True]), default=0)
    free_ms = _place_free_ms(ends_ms[False], worker.slots)
    return min(free_ms, _place_free_ms(ends_ms[True], worker.light_slots)) if light and worker.light_slots else free_ms


def _place_free_ms(ends_ms: list[int], places: int) -> int:
    over = len(ends_ms) - places
    return sorted(ends_ms)[over] if over >= 0 else 0
