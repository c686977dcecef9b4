"""The cache of results with a real Redis, which is killed, stopped and given rubbish."""

import queue
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from instructors import redis_cache
from instructors.redis_cache import DIGEST_BYTES, PREFIX, VALUE_BYTES_MAX, RedisUnusable
from instructors.results_cache import Claim, ResultsCache
from tests.instructors.redis_server import PASSWORD, RedisServer, needs_redis

pytestmark = needs_redis
KEY, OTHER = b"k" * 32, b"o" * 32
TTL_S = 60.0
NAME = PREFIX + KEY.hex().encode()


class Worker:
    """A cache and the thread it is used on: what its Redis answered is taken in when the test waits."""

    def __init__(self, url: str, bytes_max: int = 1 << 20) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.cache = ResultsCache(bytes_max, url, self._calls.put)

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < deadline, "this did not happen"
            with suppress(queue.Empty):
                self._calls.get(timeout=0.01)()

    @property
    def state(self) -> object:
        return self.cache.facts()["state"]

    def ask(self, key: bytes = KEY) -> Claim:
        """A claim, once it is known what is to be done about it."""
        claim = self.cache.claim(key, TTL_S)
        self.until(lambda: claim.mine or claim.value is not None)
        return claim


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    monkeypatch.setattr(redis_cache, "RETRY_S", 0.1)
    monkeypatch.setattr(redis_cache, "RETRY_S_MAX", 0.2)
    running = RedisServer(tmp_path)
    running.start()
    yield running
    running.close()


@pytest.fixture
def employ(server: RedisServer) -> Iterator[Callable[..., Worker]]:
    """A worker that is connected."""
    workers: list[Worker] = []

    def run(**options: int) -> Worker:
        worker = Worker(server.url, **options)
        workers.append(worker)
        worker.until(lambda: worker.state == "ok")
        return worker

    yield run
    for worker in workers:
        worker.cache.close()


def stored(server: RedisServer, name: bytes = NAME) -> bytes:
    """What lies there once it does."""
    until = time.monotonic() + 10
    with server.client() as client:
        while (value := client.get(name)) is None:
            assert time.monotonic() < until
            time.sleep(0.005)
        return bytes(value)


def test_workers_share_what_one_computed(server: RedisServer, employ: Callable[..., Worker]) -> None:
    one, other = employ(), employ()
    claim = one.ask()
    assert claim.mine
    claim.settle(b"result")
    stored(server)
    assert other.ask().value == b"result"
    assert other.cache.shared_hits == 1
    assert other.cache.claim(KEY, TTL_S).value == b"result"  # from its own memory now
    assert other.ask(OTHER).mine


def test_what_waits_for_redis_is_counted_down_again(
    server: RedisServer, employ: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_cache, "PENDING_MAX", 3)
    one, other = employ(), employ()
    for number in range(20):
        one.ask(bytes([number]) * 32).settle(b"result")
        stored(server, PREFIX + (bytes([number]) * 32).hex().encode())
        assert other.ask(bytes([number]) * 32).value == b"result"
    claims = [one.cache.claim(bytes([100 + number]) * 32, TTL_S) for number in range(150)]
    assert claims[0].mine is False
    one.until(lambda: all(claim.mine for claim in claims))  # those that found Redis busy, at once


def test_equal_requests_ask_redis_once(server: RedisServer, employ: Callable[..., Worker]) -> None:
    worker = employ()
    claims = [worker.cache.claim(KEY, TTL_S) for _ in range(50)]
    assert not any(claim.mine for claim in claims)  # Redis is asked first
    claims[0].close()
    worker.until(lambda: claims[1].mine)
    assert sum(claim.mine for claim in claims) == 1
    claims[1].settle(b"result")
    assert {claim.value for claim in claims[1:]} == {b"result"}
    with server.client() as client:
        assert client.info("commandstats")["cmdstat_getrange"]["calls"] == 1


def test_its_time_goes_on_in_redis(server: RedisServer, employ: Callable[..., Worker]) -> None:
    one, other = employ(), employ()
    one.ask().settle(b"result")
    stored(server)
    with server.client() as client:
        assert 0 < client.pttl(NAME) <= TTL_S * 1000
        client.pexpire(NAME, 300)
    assert other.ask().value == b"result"
    time.sleep(0.35)
    assert other.ask().mine  # in its memory, too, it lived no longer


@pytest.mark.parametrize("place", [0, DIGEST_BYTES, -1])
def test_a_corrupt_value_is_computed_again(place: int, server: RedisServer, employ: Callable[..., Worker]) -> None:
    one, other = employ(), employ()
    one.ask().settle(b"result")
    sealed = bytearray(stored(server))
    sealed[place] ^= 1
    with server.client() as client:
        client.set(NAME, bytes(sealed), ex=60)
    claim = other.ask()
    assert claim.mine
    claim.settle(b"result")
    third = employ()
    third.until(lambda: third.ask().value == b"result")  # what was computed has replaced it


def test_rubbish_of_any_kind_is_computed_again(server: RedisServer, employ: Callable[..., Worker]) -> None:
    worker = employ(bytes_max=0)
    with server.client() as client:
        worker.ask(OTHER).settle(b"of another key")
        client.set(NAME, stored(server, PREFIX + OTHER.hex().encode()), ex=60)
        assert employ().ask().mine
        for rubbish in (b"", b"x", bytes(VALUE_BYTES_MAX * 2)):
            client.set(NAME, rubbish, ex=60)
            assert employ().ask().mine
        client.delete(NAME)
        client.rpush(NAME, "a list")
        assert employ().ask().mine
    assert worker.state == "ok"


def test_a_large_value_stays_in_memory(server: RedisServer, employ: Callable[..., Worker]) -> None:
    worker = employ(bytes_max=1 << 24)
    worker.ask().settle(bytes(VALUE_BYTES_MAX + 1))
    assert worker.ask().value is not None
    worker.ask(OTHER).settle(b"after it")
    stored(server, PREFIX + OTHER.hex().encode())
    with server.client() as client:
        assert not client.exists(NAME)


def test_while_redis_is_away_memory_serves_and_redis_is_used_again_when_it_is_back(
    server: RedisServer, employ: Callable[..., Worker]
) -> None:
    worker = employ()
    worker.ask().settle(b"result")
    stored(server)
    with capture_logs() as logs:
        server.kill()
        assert worker.ask(OTHER).mine
        worker.until(lambda: worker.state == "degraded")
        assert worker.ask().value == b"result"
        claim = worker.cache.claim(b"n" * 32, TTL_S)
        assert claim.mine  # at once: nothing is asked of what is away
        time.sleep(0.5)  # some tries
        server.start()
        worker.until(lambda: worker.state == "ok")
        claim.settle(b"new")
        stored(server, PREFIX + (b"n" * 32).hex().encode())
    assert [line["event"] for line in logs] == [
        "Redis is away: results are kept in memory only", "results are shared by Redis",
    ]  # fmt: skip
    assert PASSWORD not in str(logs)
    assert "redis.sock" not in str(logs)


def test_a_redis_that_hangs_is_given_up_soon(server: RedisServer, employ: Callable[..., Worker]) -> None:
    worker = employ()
    server.hang()
    try:
        begun = time.monotonic()
        claim = worker.cache.claim(KEY, TTL_S)
        assert time.monotonic() - begun < 0.05  # the device thread did not wait
        worker.until(lambda: claim.mine)
        assert time.monotonic() - begun < 5
        assert worker.state == "degraded"
    finally:
        server.go_on()
    worker.until(lambda: worker.state == "ok")


def test_killed_while_it_is_in_use_it_loses_no_request(server: RedisServer, employ: Callable[..., Worker]) -> None:
    worker = employ(bytes_max=0)
    killer = threading.Thread(target=lambda: (time.sleep(0.2), server.kill(), time.sleep(0.3), server.start()))
    killer.start()
    computed, number = 0, 0
    while killer.is_alive() or number < 500:
        claims = [worker.cache.claim((number * 7 + index).to_bytes(32, "little"), TTL_S) for index in range(20)]
        worker.until(lambda: all(claim.mine or claim.value for claim in claims))  # noqa: B023
        for claim in claims:
            computed += claim.mine
            claim.settle(b"result")
            assert claim.value == b"result"
        number += 1
    killer.join()
    assert computed > 0
    worker.until(lambda: worker.state == "ok")


def test_what_speaks_no_redis_any_more_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a proxy may that lost its Redis: greetings are answered, and look-ups with what cannot be parsed."""
    monkeypatch.setattr(redis_cache, "RETRY_S", 0.1)
    monkeypatch.setattr(redis_cache, "RETRY_S_MAX", 0.1)

    class Babbler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while said := self.request.recv(65536):
                commands = said.count(b"\r\n*") + 1
                if b"GETRANGE" in said:
                    answer = b"$abc\r\n"
                elif b"HELLO" in said:
                    answer = b"%1\r\n$5\r\nproto\r\n:3\r\n" + b"+OK\r\n" * (commands - 1)
                else:
                    answer = b"+PONG\r\n" * commands
                self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Babbler) as babbler:
        babbler.daemon_threads = True
        threading.Thread(target=babbler.serve_forever, daemon=True).start()
        worker = Worker(f"redis://127.0.0.1:{babbler.server_address[1]}")
        for number in range(3):  # each time it looks alive again
            worker.until(lambda: worker.state == "ok")
            assert worker.ask(bytes([number]) * 32).mine
        worker.cache.close()
        babbler.shutdown()


def test_a_redis_that_is_full_is_told_of_once(server: RedisServer, employ: Callable[..., Worker]) -> None:
    worker = employ()
    with server.client() as client, capture_logs() as logs:
        client.config_set("maxmemory", "1")
        for number in range(5):
            worker.ask(bytes([number]) * 32).settle(b"result")
        worker.until(lambda: bool(logs))
        assert worker.ask(b"z" * 32).mine
    assert [(line["event"], line["kind"]) for line in logs] == [("Redis refuses a command", "OutOfMemoryError")]
    assert worker.state == "ok"


def test_a_redis_that_is_not_there_at_the_start_costs_nothing(tmp_path: Path) -> None:
    with capture_logs() as logs:
        worker = Worker(RedisServer(tmp_path).url)
        assert worker.cache.claim(KEY, TTL_S).mine
        worker.until(lambda: bool(logs))
        assert worker.state == "degraded"
        worker.cache.close()
    assert PASSWORD not in str(logs)


@pytest.mark.parametrize(
    "url", ["http://:secret@localhost", "localhost", "redis://:secret@localhost:secret", "redis://localhost?db=secret"]
)
def test_a_wrong_url_is_told_without_what_it_holds(url: str) -> None:
    with pytest.raises(RedisUnusable) as caught:
        ResultsCache(0, url, lambda _: None)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__
