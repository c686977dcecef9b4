"""Logs of a worker process: JSON lines, or coloured ones on a terminal; each with the job it is about."""

import logging
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

import structlog

current_job: ContextVar[tuple[str, str] | None] = ContextVar("current_job", default=None)
"""(request_id, job_id) of what the thread works on. One cheap `set` per job, read only when a line is written."""


def configure(level: str, **fixed: Any) -> None:
    """Send structlog and the standard library's loggers to stderr, with `fixed` on every line."""

    def add_fixed(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**event, **fixed}

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_job,
        add_fixed,
    ]
    pretty = sys.stderr.isatty()
    final: list[Any] = (
        [structlog.dev.ConsoleRenderer()] if pretty else [_exception_text, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final]
        )
    )
    logging.captureWarnings(True)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


_exception_text = structlog.processors.format_exc_info


def _add_job(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    job = current_job.get()
    if job is not None:
        event["request_id"], event["job_id"] = job
    return event
