"""The transition table: every pair that it does not hold is refused, and changes nothing."""

import itertools
import re

import pytest

from orchestrator.core import events as e
from orchestrator.core.model import Outcome
from orchestrator.core.states import (
    CLOSING,
    RECLAIMABLE,
    STATUS,
    TERMINAL,
    TRANSITIONS,
    IllegalTransition,
    JobState,
    Trigger,
    mermaid,
    next_state,
)
from protocol.enums import Status
from tests.core.kit import Lab, restored

PAIRS = list(itertools.product(JobState, Trigger))


@pytest.mark.parametrize(("state", "trigger"), PAIRS)
def test_a_pair_leads_on_or_is_refused_and_changes_nothing(state: JobState, trigger: Trigger) -> None:
    lab = Lab()
    job = restored(1, state)
    if (state, trigger) in TRANSITIONS:
        lab.core.lifecycle._change(job, trigger)
        assert job.state is TRANSITIONS[state, trigger] is next_state(state, trigger)
        return
    with pytest.raises(IllegalTransition, match=f"{trigger} is not allowed in state {state}"):
        lab.core.lifecycle._change(job, trigger)
    assert job.state is state


def test_every_state_is_reached_and_every_trigger_used() -> None:
    born = {JobState.ACCEPTING, JobState.QUEUED, JobState.ADOPTING}
    assert born | set(TRANSITIONS.values()) == set(JobState)
    assert {trigger for _, trigger in TRANSITIONS} == set(Trigger)


def test_what_has_ended_stays_ended_and_all_else_can_end() -> None:
    assert not any(state in TERMINAL for state, _ in TRANSITIONS)
    assert {state for state in JobState if STATUS[state].terminal} == TERMINAL
    assert {CLOSING[status] for status in Status if status.terminal} == {Trigger.COMPLETE, Trigger.FAIL, Trigger.CANCEL}
    for state in set(JobState) - TERMINAL:
        reached, frontier = {state}, {state}
        while frontier:
            frontier = {after for (before, _), after in TRANSITIONS.items() if before in frontier} - reached
            reached |= frontier
        assert reached & TERMINAL, state


def test_whatever_is_reclaimable_can_be_adopted() -> None:
    assert {state for state, trigger in TRANSITIONS if trigger is Trigger.ADOPT} == RECLAIMABLE


def test_the_diagram_shows_the_whole_table() -> None:
    shown = set()
    for before, after, names in re.findall(r"^    (\w+) --> (\w+): (.*)$", mermaid(), re.MULTILINE):
        shown |= {(JobState(before), Trigger(name), JobState(after)) for name in names.split(", ")}
    assert shown == {(before, trigger, after) for (before, trigger), after in TRANSITIONS.items()}
    assert set(re.findall(r"(\w+) --> \[\*\]", mermaid())) == {state.value for state in TERMINAL}


@pytest.mark.parametrize("event", [e.Saved("j1"), e.Settled("j1")])
def test_an_event_out_of_turn_raises_and_changes_nothing(event: e.Event) -> None:
    lab = Lab()
    lab.accept(1)
    lab.hello("w")
    with pytest.raises(IllegalTransition):
        lab.core.handle(lab.now_ms, event)
    assert lab.job(1).state is JobState.PROCESSING
    assert lab.job(1).outcome is None


def test_a_job_cannot_end_twice() -> None:
    lab = Lab()
    lab.submit(1)
    lab.hello("w")
    lab.result("w", "j1/1")
    job = lab.job(1)
    lab.core.lifecycle.end(job, Outcome(Status.FAILED))
    assert job.outcome is not None
    assert job.outcome.status is Status.COMPLETED
