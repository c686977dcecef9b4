"""The core's knobs, with the contract's defaults. The shell fills them from its settings."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CoreSettings:
    queue_jobs_max: int = 100_000
    connection_requests_max: int = 1_024
    sessions_max: int = 10_000
    aging_ms: int = 30_000
    heartbeat_ms: int = 2_000
    lease_ms: int = 15_000
    adoption_ms: int = 10_000
    reconnect_grace_ms: int = 10_000
    assign_grace_ms: int = 6_000
    retry_backoff_ms: int = 500
    retry_backoff_ms_max: int = 30_000
    attempts_max: int = 3  # of a job that fails for passing reasons
    result_keep_ms: int = 60_000
    result_keep_bytes_max: int = 256 * 1024 * 1024
    losses_before_exclusive: int = 2
    losses_max: int = 3
