"""Messages: what is taken, what is refused, and that a refusal is small, quick and tells nothing of our insides."""

import time
from typing import Any

import pytest

from protocol.codec import pack, unpack_header
from protocol.enums import EventName, Status
from protocol.errors import InvalidRequest, MalformedMessage, UnsupportedProtocol
from protocol.messages import (
    FROM_WORKER,
    TO_CLIENT,
    TO_WORKER,
    Event,
    Hello,
    Request,
    Response,
    WorkerResult,
    parse_message,
    parse_request,
)

BASE: dict[str, Any] = {"protocol": 1, "request_id": "r", "action": "system.noop"}


def test_a_small_request_gets_the_defaults() -> None:
    request = parse_request(BASE)
    assert request == Request(request_id="r", action="system.noop")
    assert (request.wait, request.events, request.data, request.attachments) == (True, [], {}, [])
    assert request.priority is None
    assert parse_request({**BASE, "priority": 0}).priority == 0


def test_events_can_be_all_there_are() -> None:
    assert parse_request({**BASE, "events": list(EventName)}).events == [name.value for name in EventName]


def test_integral_floats_become_integers() -> None:
    request = parse_request({**BASE, "protocol": 1.0, "priority": 9.0, "deadline_ms": 1000.0})
    assert (type(request.priority), request.priority, request.deadline_ms) == (int, 9, 1000)


@pytest.mark.parametrize("version", [None, 0, 2, "1", [1], float("nan")])
def test_another_version_is_told_ours(version: Any) -> None:
    with pytest.raises(UnsupportedProtocol) as caught:
        parse_request({**BASE, "protocol": version})
    assert caught.value.details == {"supported": [1]}


def test_a_newer_version_is_told_before_its_fields_are_judged() -> None:
    with pytest.raises(UnsupportedProtocol):
        parse_request({"protocol": 2, "subject": 7})


@pytest.mark.parametrize("kind", [*FROM_WORKER, "response", 7, None])
def test_other_messages_are_not_requests(kind: Any) -> None:
    with pytest.raises(MalformedMessage):
        parse_request({**BASE, "kind": kind})


def test_a_refusal_names_the_fields_and_not_their_values() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request({**BASE, "priority": 77, "api_key": ["secret"]})
    assert {item["field"] for item in caught.value.details["fields"]} == {"priority", "api_key"}
    assert "secret" not in repr(caught.value.details)
    assert "77" not in repr(caught.value.details)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("events", [1] * 16_384),
        ("events", ["state"] * 16_384),
        ("attachments", [1] * 16_384),
        ("attachments", [{"media_type": 1, "nbytes": -1}] * 16_384),
    ],
)
def test_a_long_list_of_faults_costs_little(field: str, value: Any) -> None:
    began = time.process_time()
    with pytest.raises(InvalidRequest) as caught:
        parse_request({**BASE, field: value})
    assert time.process_time() - began < 0.2  # 3 s and 900 MB for a million entries, once
    assert len(caught.value.details["fields"]) <= 2  # those of the first bad entry
    assert len(pack(caught.value.to_wire())) < 8192


@pytest.mark.parametrize("value", [1e300, -1e300, 2.0**53, float("inf"), float("nan"), 0.5, True, "7", None])
def test_counts_are_integers_that_every_language_has(value: Any) -> None:
    with pytest.raises(InvalidRequest):
        parse_request({**BASE, "attachments": [{"media_type": "a/b", "nbytes": value}]})


@pytest.mark.parametrize("value", [1e300, 2.0**53, 1.5])
def test_an_int_without_a_range_of_its_own_is_bounded_too(value: float) -> None:
    with pytest.raises(MalformedMessage):
        parse_message({"kind": "response", "success": True, "protocol": value}, TO_CLIENT)


def test_what_we_send_our_own_parser_takes() -> None:
    response = Response(request_id="r", job_id="j", success=True, status=Status.COMPLETED, data={"a": b"\x00"})
    event = Event(request_id="r", job_id="j", seq=3, event=EventName.PROGRESS, data={"step": 1})
    for message in (response, event):
        assert parse_message(unpack_header(pack(message.to_wire())), TO_CLIENT) == message


def test_unknown_kinds_are_ignored_and_known_ones_are_checked() -> None:
    for kind in ("sing", None, 7, [], "request"):
        assert parse_message({"kind": kind}, FROM_WORKER) is None
    assert parse_message({}, TO_WORKER) is None
    with pytest.raises(MalformedMessage) as caught:
        parse_message({"kind": "result", "job_id": "j", "attempt": 1}, FROM_WORKER)
    assert caught.value.details == {"fields": [{"field": "success", "problem": "Field required"}]}


def test_unknown_fields_of_a_newer_worker_are_ignored() -> None:
    header = {"kind": "result", "job_id": "j", "attempt": 1, "success": True, "mood": "good"}
    assert parse_message(header, FROM_WORKER) == WorkerResult(job_id="j", attempt=1, success=True)


def test_no_direction_knows_the_other_s_kinds() -> None:
    assert not set(FROM_WORKER) & set(TO_WORKER)
    assert FROM_WORKER["hello"] is Hello
