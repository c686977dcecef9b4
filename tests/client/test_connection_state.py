"""The pure state of a connection: no socket, no thread, no clock."""

from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.client.calls import Answer, Call, ConnectionState, encode
from orchestrator.client.errors import ClientClosed, ServerUnreachable
from protocol.codec import pack, unpack_header
from protocol.errors import MalformedMessage, NotFound, PayloadTooLarge
from protocol.messages import Event, Request, Response


class Heard:
    """A sink that writes down what it is told."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    def answered(self, answer: Answer) -> None:
        self.log.append(("answered", answer.response.data.get("n")))

    def happened(self, event: Event, blobs: list[bytes]) -> None:
        self.log.append((event.event.value, event.seq))

    def ended(self) -> None:
        self.log.append("ended")

    def failed(self, error: Exception) -> None:
        self.log.append(type(error))


class Bench:
    def __init__(self, connect_timeout_s: float | None = 30.0) -> None:
        ids = (f"new-{n}" for n in range(100))
        self.closed: list[Call] = []
        self.state = ConnectionState(
            "ipc://x", lambda: next(ids), self.closed.append, connect_timeout_s, silence_s=10.0, now=0.0
        )

    def call(self, request_id: str, **fields: Any) -> Call:
        follows = not fields.get("wait", True)
        request = Request(request_id=request_id, action="system.noop", **fields)
        return Call(request, encode(request), Heard(), follows=follows)

    def open(self, request_id: str, now: float = 0.0, **fields: Any) -> Call:
        call = self.call(request_id, **fields)
        self.state.open(call, now)
        return call

    def respond(self, request_id: str, **fields: Any) -> list[Call]:
        return self.message(Response(request_id=request_id, **({"success": True} | fields)))

    def event(self, request_id: str, seq: int, kind: str = "progress", status: str = "", job: str = "j") -> list[Call]:
        data = {"status": status} if status else {}
        return self.message(Event(request_id=request_id, job_id=job, seq=seq, event=kind, data=data))

    def message(self, message: Response | Event, now: float = 1.0) -> list[Call]:
        return self.state.received([pack(message.to_wire())], now)


def log(call: Call) -> list[Any]:
    assert isinstance(call.sink, Heard)
    return call.sink.log


def test_nothing_is_sent_before_the_connection_is_there_and_all_of_it_then_in_order() -> None:
    bench = Bench()
    calls = [bench.open(name) for name in "abc"]
    assert bench.state.connected(1.0) == calls
    later = bench.call("d")
    assert bench.state.open(later, 2.0) == [later]


def test_after_a_loss_only_open_requests_are_sent_again() -> None:
    bench = Bench()
    a, b = bench.open("a"), bench.open("b")
    bench.state.connected(1.0)
    bench.respond("a", data={"n": 1})
    bench.state.disconnected(2.0)
    assert bench.state.connected(3.0) == [b]
    assert log(a) == [("answered", 1), "ended"]
    assert bench.closed == [a]


def test_second_late_and_foreign_answers_are_dropped() -> None:
    bench = Bench()
    call = bench.open("a")
    bench.state.connected(0.0)
    for number in (1, 2):
        bench.respond("a", data={"n": number})
    bench.respond("never-sent")
    assert log(call) == [("answered", 1), "ended"]
    assert bench.closed == [call]


def test_each_event_is_told_once_across_a_reattachment() -> None:
    bench = Bench()
    call = bench.open("a", events=["progress"])
    bench.state.connected(0.0)
    for seq in (1, 2, 4):
        bench.event("a", seq)
    bench.state.disconnected(1.0)
    bench.state.connected(2.0)
    for seq in (2, 4, 5):
        bench.event("a", seq)
    bench.respond("a", data={"n": 9})
    bench.event("a", 6)
    assert log(call) == [*(("progress", seq) for seq in (1, 2, 4, 5)), ("answered", 9), "ended"]


def test_a_job_begun_anew_by_a_server_that_lost_it_counts_from_the_start() -> None:
    bench = Bench()
    call = bench.open("a", events=["progress"])
    bench.state.connected(0.0)
    bench.event("a", 7, job="before")
    bench.event("a", 1, job="after")
    assert log(call) == [("progress", 7), ("progress", 1)]


def test_a_durable_stream_is_taken_up_by_job_events_from_the_last_seen() -> None:
    bench = Bench()
    call = bench.open("a", wait=False, events=["state"])
    bench.state.connected(0.0)
    bench.respond("a", job_id="j", data={"n": 0})
    bench.event("a", 1, "state", "pending")
    bench.state.disconnected(1.0)
    assert bench.state.connected(2.0) == [call]
    assert (call.request.request_id, call.request.action) == ("new-0", "job.events")
    assert unpack_header(call.frames[0])["data"] == {"job_id": "j", "after_seq": 1}
    bench.event("a", 2, "state", "processing")  # under the old id: no longer ours
    bench.respond("new-0", job_id="j", status="completed")
    bench.event("new-0", 1, "state", "pending")
    bench.event("new-0", 2, "state", "processing")
    bench.event("new-0", 3, "state", "completed")
    assert log(call) == [("answered", 0), ("state", 1), ("state", 2), ("state", 3), "ended"]
    assert bench.closed == [call]


def test_a_durable_submission_sent_twice_replays_what_happened_between() -> None:
    bench = Bench()
    call = bench.open("a", wait=False, events=["state"])
    bench.state.connected(0.0)
    bench.state.disconnected(1.0)  # the answer is lost
    assert bench.state.connected(2.0) == [call]
    assert bench.respond("a", job_id="j", data={"n": 0}) == [call]
    assert call.request.action == "job.events"
    bench.respond("new-0", job_id="j")
    bench.event("new-0", 1, "state", "pending")
    bench.event("new-0", 2, "state", "failed")
    assert log(call) == [("answered", 0), ("state", 1), ("state", 2), "ended"]


def test_a_stream_that_cannot_be_taken_up_fails_with_the_servers_error() -> None:
    bench = Bench()
    call = bench.open("a", wait=False, events=["state"])
    bench.state.connected(0.0)
    bench.respond("a", job_id="j")
    bench.state.disconnected(1.0)
    bench.state.connected(2.0)
    bench.respond("new-0", success=False, error={"code": "not_found"})
    assert log(call) == [("answered", None), NotFound]
    assert bench.closed == [call]


def test_a_replay_from_beyond_the_end_ends() -> None:
    bench = Bench()
    call = bench.call("a", events=["state"])
    call.follows, call.after_seq, call.job_id = True, 9, "j"
    bench.state.open(call, 0.0)
    bench.state.connected(0.0)
    bench.respond("a", job_id="j", status="completed")
    bench.event("a", 9, "state", "completed")
    assert log(call) == [("answered", None), "ended"]


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xc1"],
        [pack(["not", "a", "map"])],
        [pack({"kind": "alive"})],
        [pack({"kind": "weather", "request_id": "a"})],
        [pack({"request_id": 7, "kind": "response"})],
    ],
)
def test_messages_that_mean_nothing_change_nothing(frames: list[bytes]) -> None:
    bench = Bench()
    call = bench.open("a")
    bench.state.connected(0.0)
    assert bench.state.received(frames, 1.0) == []
    assert bench.state.is_open(call)
    assert log(call) == []


@pytest.mark.parametrize(
    ("header", "blobs"),
    [
        ({"kind": "response", "request_id": "a", "success": "yes"}, []),
        ({"kind": "response", "request_id": "a", "success": True}, [b"undescribed"]),
        ({"kind": "event", "request_id": "a", "job_id": "j", "seq": "x", "event": "state"}, []),
    ],
)
def test_an_unreadable_answer_fails_its_request_alone(header: dict[str, Any], blobs: list[bytes]) -> None:
    bench = Bench()
    a, b = bench.open("a"), bench.open("b")
    bench.state.connected(0.0)
    bench.state.received([pack(header), *blobs], 1.0)
    assert log(a) == [MalformedMessage]
    assert bench.state.is_open(b)


def test_without_a_connection_each_request_fails_after_its_own_timeout() -> None:
    bench = Bench(connect_timeout_s=30.0)
    early, late = bench.open("early", 0.0), bench.open("late", 20.0)
    assert bench.state.next_deadline() == 30.0
    bench.state.expire(29.9)
    assert log(early) == []
    bench.state.expire(30.0)
    assert (log(early), log(late)) == ([ServerUnreachable], [])
    assert bench.state.next_deadline() == 50.0
    bench.state.expire(50.0)
    assert log(late) == [ServerUnreachable]
    assert bench.state.next_deadline() is None


def test_a_loss_gives_old_requests_the_whole_timeout_again() -> None:
    bench = Bench(connect_timeout_s=30.0)
    stream = bench.open("stream", wait=False, events=["state"])
    bench.state.connected(0.0)
    bench.respond("stream", job_id="j")
    bench.state.disconnected(100.0)
    bench.open("new", 110.0)
    assert bench.state.next_deadline() == 130.0
    bench.state.expire(130.0)
    assert log(stream) == [("answered", None), ServerUnreachable]
    assert bench.state.next_deadline() == 140.0


def test_without_a_connect_timeout_requests_wait_for_ever() -> None:
    bench = Bench(connect_timeout_s=None)
    bench.open("a")
    assert bench.state.next_deadline() is None
    assert bench.state.expire(1e9) is False


def test_a_server_silent_while_an_answer_is_due_costs_the_connection() -> None:
    bench = Bench()
    bench.state.connected(0.0)
    assert bench.state.next_deadline() is None  # nothing is due
    call = bench.open("a", 100.0)
    assert bench.state.next_deadline() == 110.0
    bench.state.received([pack({"kind": "alive"})], 105.0)
    assert bench.state.expire(114.9) is False
    assert bench.state.expire(115.0) is True
    assert not bench.state.up
    assert bench.state.is_open(call)
    assert bench.state.connected(116.0) == [call]


def test_giving_up_all_tells_every_sink_once() -> None:
    bench = Bench()
    calls = [bench.open("a"), bench.open("b", wait=False, events=["state"])]
    bench.state.connected(0.0)
    bench.respond("b", job_id="j")
    bench.state.give_up_all(ClientClosed)
    assert [log(call)[-1] for call in calls] == [ClientClosed, ClientClosed]
    assert sorted(call.request.request_id for call in bench.closed) == ["a", "b"]


def test_what_a_server_could_not_answer_is_refused_at_home() -> None:
    with pytest.raises(MalformedMessage):
        encode(Request(request_id="a", action="system.noop", data={"echo": 2**53}))
    with pytest.raises(PayloadTooLarge):
        encode(Request(request_id="a", action="system.noop", data={"echo": "x" * 2**20}))
    big = bytes(64 * 2**20 + 1)
    request = Request.model_validate(
        {"request_id": "a", "action": "x", "attachments": [{"media_type": "image/png", "nbytes": len(big)}]}
    )
    with pytest.raises(PayloadTooLarge):
        encode(request, [big])


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.booleans(), st.booleans()),
        st.tuples(st.sampled_from(["up", "down", "expire"]), st.none(), st.none()),
        st.tuples(st.sampled_from(["answer", "fail", "event", "end"]), st.integers(0, 30), st.none()),
        st.tuples(st.just("wait"), st.integers(1, 40), st.none()),
    ),
    max_size=60,
)


@given(OPERATIONS)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_each_sink_hears_one_end_and_rising_events(operations: list[tuple[str, Any, Any]]) -> None:
    """Messages, losses and time in any order: one last call per sink, nothing after it, no place kept for ever."""
    bench, now, calls = Bench(connect_timeout_s=30.0), 0.0, []
    for what, first, second in operations:
        now += 0.01
        ids = list(chain(bench.state.waiting, bench.state.streams, [f"r{len(calls) - 1}"]))
        if what == "open":
            events = {"events": ["state"]} if second else {}
            calls.append(bench.open(f"r{len(calls)}", now, wait=first, **events))
            calls[-1].follows = bool(second and not first)
        elif what == "up":
            assert {call.request.request_id for call in bench.state.connected(now)} == set(bench.state.waiting)
        elif what == "down":
            bench.state.disconnected(now)
        elif what == "expire" or what == "wait":
            now += first or 0
            bench.state.expire(now)
        elif what == "event":
            bench.event(ids[first % len(ids)], first, "state", "processing")
        elif what == "end":
            bench.event(ids[first % len(ids)], 1000 + first, "state", "completed")
        else:
            outcome = {} if what == "answer" else {"success": False, "error": {"code": "internal"}}
            bench.respond(ids[first % len(ids)], job_id="j", **outcome)
    bench.state.give_up_all(ClientClosed)
    assert len(bench.closed) == len(calls) == len({id(call) for call in bench.closed})
    for call in calls:
        heard = log(call)
        finals = [entry for entry in heard if entry == "ended" or isinstance(entry, type)]
        assert finals == [heard[-1]]
        told = [entry for entry in heard if isinstance(entry, tuple)]
        seqs = [seq for kind, seq in told if kind == "state"]
        assert seqs == sorted(set(seqs))
        assert sum(kind == "answered" for kind, _ in told) <= 1
