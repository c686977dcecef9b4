"""The second level of the cache of results: Redis, which workers share and which outlives them.

All that waits for Redis is done in one thread, many operations in one round trip. While Redis is away nothing is asked
of it, and it is tried again now and then.
"""

import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import structlog

from protocol.limits import MIB

PREFIX = b"atelier:results:1:"  # the number: of the form of what is stored
TIMEOUT_S = 0.1  # to connect, and for an answer: computing again is not much slower
RETRY_S, RETRY_S_MAX = 1.0, 30.0  # while Redis is away
BATCH_MAX = 64  # operations in one round trip
PENDING_MAX = 1024  # operations that wait for one; more are not begun
PENDING_BYTES_MAX = 64 * MIB
VALUE_BYTES_MAX = 4 * MIB  # larger ones stay in memory only: they would hold up the others
DIGEST_BYTES = 16

log = structlog.get_logger("instructors.redis_cache")


class RedisUnusable(ValueError):
    """Redis is configured in a way that cannot work. The message does not hold the URL."""


@dataclass(frozen=True, slots=True)
class _Lookup:
    key: bytes
    nbytes = 0


@dataclass(frozen=True, slots=True)
class _Store:
    key: bytes
    value: bytes
    ttl_ms: int

    @property
    def nbytes(self) -> int:
        return len(self.value)


Answer = tuple[bytes, bytes | None, float]  # (key, value, seconds that it has left)


class RedisCache:
    """Made and used on one thread; only its own thread speaks to Redis. `state`: "ok", or "degraded" while Redis is
    away."""

    def __init__(self, url: str, answered: Callable[[], None]) -> None:
        """`url`: redis://, rediss:// or unix://. It may hold a password, and is never logged. `answered` is called by
        Redis' thread when there are answers. Raises RedisUnusable."""
        self._client = _connect(url)
        self._answered = answered
        self.state: Literal["ok", "degraded"] = "degraded"  # until it has answered
        self._operations: queue.SimpleQueue[_Lookup | _Store | None] = queue.SimpleQueue()
        self._answers: deque[Answer] = deque()
        self._lock = threading.Lock()  # of the two below
        self._pending = self._pending_bytes = 0
        self._retry_s = RETRY_S
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="redis", daemon=True)
        self._thread.start()

    # For the device thread: none of it waits

    def ask(self, key: bytes) -> bool:
        """Look for a value; False: Redis is away or busy, and there will be no answer."""
        return self._add(_Lookup(key))

    def put(self, key: bytes, value: bytes, ttl_s: float) -> None:
        """Store a value for so long; dropped while Redis is away or busy."""
        if len(value) <= VALUE_BYTES_MAX:
            self._add(_Store(key, value, max(1, round(ttl_s * 1000))))

    def answers(self) -> Iterator[Answer]:
        """What was answered since the last call, each lookup once."""
        while self._answers:
            yield self._answers.popleft()

    def close(self) -> None:
        """End the thread; what is not stored yet is lost."""
        self._operations.put(None)
        self._thread.join()
        self._client.close()

    def _add(self, operation: _Lookup | _Store) -> bool:
        with self._lock:
            nbytes = self._pending_bytes + operation.nbytes
            if self.state != "ok" or self._pending >= PENDING_MAX or nbytes > PENDING_BYTES_MAX:
                return False
            self._pending += 1
            self._pending_bytes = nbytes
            self._operations.put(operation)
        return True

    # Its own thread

    def _run(self) -> None:
        while True:
            batch: list[_Lookup | _Store] = []
            try:
                if self.state == "degraded":
                    self._client.ping()
                    self._is_back()
                batch, over = self._take()
                if over:
                    return
                self._do(batch)
            except Exception as error:  # what is no Redis, or one behind a bad proxy, makes the library raise anything
                self._client.connection_pool.disconnect()  # what it said may still lie there in part
                self._answer([(operation.key, None, 0.0) for operation in batch if isinstance(operation, _Lookup)])
                if self._is_away(error):
                    return

    def _take(self) -> tuple[list[_Lookup | _Store], bool]:
        """Some operations, the first of which it waits for; and whether it is over."""
        batch: list[_Lookup | _Store] = []
        operation = self._operations.get()
        while operation is not None:
            batch.append(operation)
            if len(batch) == BATCH_MAX or self._operations.empty():
                break
            operation = self._operations.get()
        with self._lock:
            self._pending -= len(batch)
            self._pending_bytes -= sum(entry.nbytes for entry in batch)
        return batch, operation is None

    def _do(self, batch: list[_Lookup | _Store]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for operation in batch:
            name = PREFIX + operation.key.hex().encode()
            if isinstance(operation, _Lookup):
                pipeline.getrange(name, 0, VALUE_BYTES_MAX + DIGEST_BYTES)  # whatever lies there, no more is read
                pipeline.pttl(name)
            else:
                pipeline.set(name, _sealed(operation.key, operation.value), px=operation.ttl_ms)
        said = iter(pipeline.execute(raise_on_error=False))
        answers: list[Answer] = []
        for operation in batch:
            if isinstance(operation, _Lookup):
                answers.append((operation.key, *self._found(operation.key, next(said), next(said))))
            else:
                self._tell_refusal(next(said))
        self._answer(answers)

    def _found(self, key: bytes, sealed: Any, ttl_ms: Any) -> tuple[bytes | None, float]:
        if not isinstance(sealed, bytes) or not isinstance(ttl_ms, int):
            self._tell_refusal(sealed)
            return None, 0.0
        value = _opened(key, sealed) if sealed and ttl_ms > 0 else None
        return value, ttl_ms / 1000

    def _answer(self, answers: list[Answer]) -> None:
        if answers:
            self._answers.extend(answers)
            self._answered()

    def _tell_refusal(self, said: Any) -> None:
        """Redis answered, and refused: it is full, say. Each kind is logged once."""
        kind = type(said).__name__
        if isinstance(said, Exception) and kind not in self._told:
            self._told.add(kind)
            log.warning("Redis refuses a command", kind=kind)

    def _is_back(self) -> None:
        self._retry_s = RETRY_S
        with self._lock:
            self.state = "ok"
        log.info("results are shared by Redis")

    def _is_away(self, error: Exception) -> bool:
        """Answer those who wait, and pause. True: it is over."""
        with self._lock:
            was_ok, self.state = self.state == "ok", "degraded"
        if was_ok or "away" not in self._told:
            self._told.add("away")
            log.warning("Redis is away: results are kept in memory only", error=type(error).__name__)
        until = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_S_MAX)
        while (left := until - time.monotonic()) > 0:
            try:
                operation = self._operations.get(timeout=left)
            except queue.Empty:
                return False
            if operation is None:
                return True
            with self._lock:
                self._pending -= 1
                self._pending_bytes -= operation.nbytes
            if isinstance(operation, _Lookup):
                self._answer([(operation.key, None, 0.0)])
        return False


def _connect(url: str) -> Any:
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError:
        raise RedisUnusable("Redis is configured; install its client: pip install 'atelier[redis]'") from None
    try:
        if "?" in url:  # options there would win over those below
            raise ValueError
        once = Retry(NoBackoff(), 0)
        return Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=once)
    except ValueError:  # whose words hold parts of the URL
        raise RedisUnusable("The URL of Redis is not like redis://localhost:6379/0 or unix:///run/redis.sock") from None


def _seal(key: bytes, value: bytes | memoryview) -> bytes:
    return hashlib.blake2b(value, key=key, digest_size=DIGEST_BYTES).digest()


def _sealed(key: bytes, value: bytes) -> bytes:
    """What is stored: a checksum that holds for this key only, and the value."""
    return _seal(key, value) + value


def _opened(key: bytes, sealed: bytes) -> bytes | None:
    """The value; None for anything but what `_sealed` made for this key."""
    value = memoryview(sealed)[DIGEST_BYTES:]
    return bytes(value) if _seal(key, value) == sealed[:DIGEST_BYTES] else None
