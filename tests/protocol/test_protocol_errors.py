"""One exception per code, and nothing lost between an exception and its wire form."""

import inspect

import pytest

from protocol import errors
from protocol.codec import pack, unpack
from protocol.enums import ErrorCode
from protocol.errors import AtelierError, InternalError, error_map

CLASSES = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, AtelierError) and cls is not AtelierError
]  # fmt: skip


def test_exactly_one_class_per_code() -> None:
    assert sorted(cls.code for cls in CLASSES) == sorted(ErrorCode)
    assert AtelierError.by_code == {cls.code: cls for cls in CLASSES}


def test_the_catalogue_is_the_contract_s() -> None:
    contract = """malformed_message unsupported_protocol unknown_action invalid_request unauthorized tenant_suspended
        forbidden not_found model_not_found model_invalid request_conflict payload_too_large quota_exceeded
        rate_limited queue_full no_capable_worker circuit_open timeout_queue timeout_run deadline_exceeded cancelled
        out_of_memory worker_lost poisoned draining unavailable internal"""
    assert {code.value for code in ErrorCode} == set(contract.split())
    for code in ErrorCode:
        assert 400 <= code.http_status <= 599
        assert code.meaning.endswith(".")
        assert not (code.retryable and code.http_status in (400, 404, 413, 422))  # the same bytes fail again


@pytest.mark.parametrize("cls", CLASSES)
def test_round_trip(cls: type[AtelierError]) -> None:
    sent = cls("It went wrong.", details={"fields": [{"field": "a", "problem": "b"}]}, retry_after_ms=250)
    wire = unpack(pack(sent.to_wire()))
    assert wire == {
        "code": cls.code.value,
        "message": "It went wrong.",
        "details": {"fields": [{"field": "a", "problem": "b"}]},
        "retryable": cls.code.retryable,
        "retry_after_ms": 250,
    }
    got = AtelierError.from_wire(wire)
    assert type(got) is cls
    assert (got.message, got.details, got.retry_after_ms) == (sent.message, sent.details, 250)
    assert got.retryable is cls.code.retryable


@pytest.mark.parametrize("code", ErrorCode)
def test_without_a_message_the_meaning_stands(code: ErrorCode) -> None:
    assert AtelierError.by_code[code]().message == code.meaning
    assert error_map(code) == AtelierError.by_code[code]().to_wire()


def test_an_unknown_code_of_a_newer_server_is_internal() -> None:
    got = AtelierError.from_wire({"code": "out_of_paint", "message": "No red left."})
    assert type(got) is InternalError
    assert got.message == "No red left."
    assert AtelierError.from_wire({}).message == ErrorCode.INTERNAL.meaning
