"""The life of a job, as one literal table. Everything that may change a job's state stands here.

A durable job (`wait: false`) is ACCEPTING until it is on disk, and SETTLING while its outcome is on its way there;
nobody is told of either before the disk has it. A job that lives in memory (`wait: true`) skips both. Whatever
happens to a worker, the job goes back to QUEUED (nothing was lost by the job's own doing) or to BACKOFF (it was),
and ADOPT gives it back to a worker that turns out to hold it still.
"""

from enum import StrEnum

from protocol.enums import Status


class JobState(StrEnum):
    ACCEPTING = "accepting"  # durable, being written; its asker has no answer yet
    QUEUED = "queued"
    BACKOFF = "backoff"  # lost or failed for a passing reason; queued again later
    PROCESSING = "processing"  # one worker holds the attempt
    ADOPTING = "adopting"  # was processing when the orchestrator ended; its worker may still hold it
    SETTLING = "settling"  # the outcome is known and being written
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Trigger(StrEnum):
    SAVED = "saved"  # the durable job is on disk
    SAVE_FAILED = "save_failed"  # the disk refused it; the asker hears `unavailable`
    ASSIGN = "assign"
    RETURN = "return"  # the worker did not begin, left on purpose, or did not come back in time
    LOSE = "lose"  # the worker vanished, or failed for a passing reason
    RETRY = "retry"  # the back-off is over
    ADOPT = "adopt"  # a worker says that it holds this attempt
    SETTLE = "settle"  # a durable job's outcome is known
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"


S, T = JobState, Trigger

TRANSITIONS: dict[tuple[JobState, Trigger], JobState] = {
    (S.ACCEPTING, T.SAVED): S.QUEUED,
    (S.ACCEPTING, T.SAVE_FAILED): S.FAILED,
    (S.QUEUED, T.ASSIGN): S.PROCESSING,
    (S.QUEUED, T.ADOPT): S.PROCESSING,
    (S.QUEUED, T.SETTLE): S.SETTLING,
    (S.QUEUED, T.COMPLETE): S.COMPLETED,
    (S.QUEUED, T.FAIL): S.FAILED,
    (S.QUEUED, T.CANCEL): S.CANCELLED,
    (S.BACKOFF, T.RETRY): S.QUEUED,
    (S.BACKOFF, T.ADOPT): S.PROCESSING,
    (S.BACKOFF, T.SETTLE): S.SETTLING,
    (S.BACKOFF, T.COMPLETE): S.COMPLETED,
    (S.BACKOFF, T.FAIL): S.FAILED,
    (S.BACKOFF, T.CANCEL): S.CANCELLED,
    (S.PROCESSING, T.RETURN): S.QUEUED,
    (S.PROCESSING, T.LOSE): S.BACKOFF,
    (S.PROCESSING, T.SETTLE): S.SETTLING,
    (S.PROCESSING, T.COMPLETE): S.COMPLETED,
    (S.PROCESSING, T.FAIL): S.FAILED,
    (S.PROCESSING, T.CANCEL): S.CANCELLED,
    (S.ADOPTING, T.ADOPT): S.PROCESSING,
    (S.ADOPTING, T.RETURN): S.QUEUED,
    (S.ADOPTING, T.SETTLE): S.SETTLING,
    (S.SETTLING, T.COMPLETE): S.COMPLETED,
    (S.SETTLING, T.FAIL): S.FAILED,
    (S.SETTLING, T.CANCEL): S.CANCELLED,
}

STATUS: dict[JobState, Status] = {
    S.ACCEPTING: Status.PENDING,
    S.QUEUED: Status.PENDING,
    S.BACKOFF: Status.PENDING,
    S.PROCESSING: Status.PROCESSING,
    S.ADOPTING: Status.PROCESSING,
    S.SETTLING: Status.PROCESSING,
    S.COMPLETED: Status.COMPLETED,
    S.FAILED: Status.FAILED,
    S.CANCELLED: Status.CANCELLED,
}

# What a client reads: plain strings, for the garbage collector looks into every map that holds an enum's member.
WORD: dict[JobState, str] = {state: status.value for state, status in STATUS.items()}

TERMINAL = frozenset({S.COMPLETED, S.FAILED, S.CANCELLED})
RECLAIMABLE = frozenset({S.QUEUED, S.BACKOFF, S.ADOPTING})  # a worker that still holds the attempt may go on with it
CLOSING: dict[Status, Trigger] = {
    Status.COMPLETED: T.COMPLETE,
    Status.FAILED: T.FAIL,
    Status.CANCELLED: T.CANCEL,
}


class IllegalTransition(Exception):
    """A bug in the core: this trigger is not allowed in this state. The state is unchanged."""


def next_state(state: JobState, trigger: Trigger) -> JobState:
    """The state after `trigger`. Raises IllegalTransition."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise IllegalTransition(f"{trigger} is not allowed in state {state}") from None


def mermaid() -> str:
    """The table as a Mermaid state diagram, for the docs."""
    edges: dict[tuple[JobState, JobState], list[str]] = {}
    for (before, trigger), after in TRANSITIONS.items():
        edges.setdefault((before, after), []).append(trigger.value)
    lines = ["stateDiagram-v2", "    [*] --> accepting: wait false", "    [*] --> queued: wait true"]
    lines += [f"    {before} --> {after}: {', '.join(names)}" for (before, after), names in edges.items()]
    lines += [f"    {state} --> [*]" for state in JobState if state in TERMINAL]
    return "\n".join(lines)
