"""What the orchestrator clears away while it runs: what ended long ago, and files that a crash left behind."""

from typing import TYPE_CHECKING

from orchestrator.artifacts import SHARDS
from orchestrator.store import Expire, Expired, queries
from orchestrator.store.writer import Completion

if TYPE_CHECKING:
    from orchestrator.broker import Broker

EVERY_MS = 60_000


class Housekeeping:
    """Called by the loop when `due_ms` has come; all its work is done by the store's and the artifacts' threads."""

    def __init__(self, broker: "Broker") -> None:
        self._broker = broker
        self._retention_ms = broker.settings.retention_ms
        self._every_ms = min(EVERY_MS, max(100, self._retention_ms // 2))
        self._shard = 0
        self.due_ms = broker.started_ms

    def run(self, now_ms: int) -> None:
        self.due_ms = now_ms + self._every_ms
        self._expire(now_ms - self._retention_ms)
        self._sweep(now_ms - self._retention_ms)

    def _expire(self, before_ms: int) -> None:
        """Delete finished jobs and old uploads, a bounded number at a time."""

        def expired(completion: Completion) -> None:
            if isinstance(completion.value, Expired):
                self._broker.artifacts.delete(completion.value.artifact_ids)
                if completion.value.more:
                    self._expire(before_ms)

        self._broker.store.write([Expire(before_ms)], self._broker.expect(expired))

    def _sweep(self, before_ms: int) -> None:
        """Delete the files of one shard that no record names."""

        def listed(completion: Completion) -> None:
            if completion.value:
                query = queries.unknown_artifacts(completion.value)
                self._broker.store.read(query, self._broker.expect(found))

        def found(completion: Completion) -> None:
            if completion.value:
                self._broker.artifacts.delete(completion.value)

        self._broker.artifacts.aged(self._shard, before_ms, self._broker.expect(listed))
        self._shard = (self._shard + 1) % SHARDS
