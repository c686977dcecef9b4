"""Anything a peer can say, at any time, in any order: the core neither raises nor contradicts itself."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import events as e
from orchestrator.core.states import TERMINAL, JobState
from protocol.enums import ErrorCode
from tests.core.kit import FAULT, Lab

JOBS, WORKERS, PEERS = st.integers(1, 5), st.sampled_from("uvw"), st.sampled_from(("p1", "p2", "p3", "p4"))
ATTEMPTS = st.integers(0, 4)
CONNECTIONS = st.sampled_from("abc")
HELD = st.lists(
    st.builds("j{}/{}{}".format, JOBS, ATTEMPTS, st.sampled_from(("", " done", " durable", " light", " r2"))),
    max_size=4,
)
CODES = st.sampled_from((None, ErrorCode.CANCELLED, ErrorCode.UNAVAILABLE, ErrorCode.INTERNAL))
STEPS = st.one_of(
    st.tuples(
        st.just("submit"), JOBS, CONNECTIONS, st.booleans(), st.sampled_from((None, "m", "n")), PEERS, st.booleans()
    ),
    st.tuples(
        st.just("hello"),
        WORKERS,
        PEERS,
        st.sampled_from(("i1", "i2")),
        HELD,
        st.integers(1, 3),
        st.integers(0, 2),
        st.booleans(),
    ),
    st.tuples(st.just("beat"), PEERS, HELD, st.sampled_from((frozenset[str](), frozenset(("m",))))),
    st.tuples(st.just("result"), PEERS, JOBS, ATTEMPTS, CODES),
    st.tuples(st.just("event"), PEERS, JOBS, ATTEMPTS),
    st.tuples(st.just("leave"), PEERS, st.sampled_from((e.WorkerGoodbye, e.WorkerUnreachable))),
    st.tuples(st.just("unsent"), PEERS, JOBS, ATTEMPTS),
    st.tuples(st.just("disk"), JOBS, st.booleans()),
    st.tuples(st.just("job"), JOBS, st.sampled_from(("cancel", "result", "follow")), CONNECTIONS),
    st.tuples(st.just("gone"), CONNECTIONS),
    st.tuples(st.just("wait"), st.sampled_from((10, 600, 2_000, 7_000, 16_000))),
    st.tuples(st.just("drain"), WORKERS),
)


class Fuzz(Lab):
    def submit_any(
        self, number: int, connection: str, durable: bool, model_id: str | None, session_id: str, light: bool
    ) -> None:
        known = session_id if session_id in self.core.sessions.by_id else None
        self.submit(
            number, connection=connection, durable=durable, model_id=model_id, session_id=known,
            priority=number, job_id=f"j{number}" if f"j{number}" not in self.core.jobs else f"j{self.now_ms}",
            deadline_ms=30_000 if number == 3 else None, light=light,
        )  # fmt: skip
        self.now_ms += 1

    def hello_any(
        self, name: str, peer: str, instance_id: str, held: list[str], slots: int, light_slots: int, draining: bool
    ) -> None:
        about = {"peer": peer, "instance_id": instance_id, "draining": draining}
        self.hello(name, tuple(held), slots=slots, light_slots=light_slots, **about)

    def disk(self, number: int, works: bool) -> None:
        job = self.core.jobs.get(f"j{number}")
        if job is not None and job.state is JobState.ACCEPTING:
            self.feed(e.Saved(job.job_id) if works else e.SaveFailed(job.job_id, FAULT))
        elif job is not None and job.state is JobState.SETTLING:
            self.feed(e.Settled(job.job_id) if works else e.SettleFailed(job.job_id))

    def ask(self, number: int, what: str, connection: str) -> None:
        job_id = f"j{number}"
        if job_id in self.core.jobs:
            event: e.Event = e.CancelJob(job_id, connection, "x")
            if what == "result":
                event = e.AskResult(job_id, connection, "q", 3_000)
            elif what == "follow":
                event = e.FollowEvents(job_id, connection, "f", 1)
            self.feed(event)

    def step(self, kind: str, *words: Any) -> None:
        match kind:
            case "submit":
                self.submit_any(*words)
            case "hello":
                self.hello_any(*words)
            case "beat":
                self.beat(words[0], *words[1], resident=words[2])
            case "result":
                self.result(words[0], f"j{words[1]}/{words[2]}", words[3])
            case "event":
                self.event(words[0], f"j{words[1]}/{words[2]}", "progress", progress=0.5)
            case "leave":
                self.feed(words[1](words[0]))
            case "unsent":
                self.feed(e.AssignFailed(words[0], f"j{words[1]}", words[2]))
            case "disk":
                self.disk(*words)
            case "job":
                self.ask(*words)
            case "gone":
                self.feed(e.ConnectionGone(words[0]))
            case "wait":
                self.wait(words[0])
            case "drain" if words[0] in self.core.fleet.by_id:
                self.feed(e.DrainWorker(words[0]))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(STEPS, max_size=60))
def test_nothing_a_peer_says_confuses_the_core(steps: list[tuple[Any, ...]]) -> None:
    lab = Fuzz()
    for session_id in ("p1", "p2"):
        lab.session(session_id)
    for step in steps:
        lab.step(*step)
    for number in list(lab.core.jobs):  # and everything can still be ended
        if lab.core.jobs[number].state is JobState.ACCEPTING:
            lab.feed(e.Saved(number))
        lab.feed(e.CancelJob(number, "z", "z"))
        if lab.core.jobs[number].state is JobState.SETTLING:
            lab.feed(e.Settled(number))
    assert all(job.state in TERMINAL for job in lab.core.jobs.values())
    assert lab.core.queue.size == 0
