"""Logging: one line per event on stderr, JSON unless a person watches.

Callers bind what belongs to a request (`request_id`, `job_id`, `tenant`) to their logger or by
`structlog.contextvars`; nothing here adds or hides it.
"""

import logging
import sys
from typing import Literal

import structlog

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "json", "console"]


def configure_logging(level: LogLevel = "info", format: LogFormat = "auto") -> None:
    """Set up structlog, and the standard library's loggers to come out the same way. May be called again."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    terminal = sys.stderr.isatty()
    console = format == "console" or (format == "auto" and terminal)
    last: list[structlog.typing.Processor] = (
        # Plain tracebacks: the pretty ones print local variables, and those hold prompts and keys.
        [structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,  # loggers made at import time must follow this call
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    # Libraries speak from warnings on: what they do in normal work is not the operator's business.
    logging.basicConfig(handlers=[handler], level=max(threshold, logging.WARNING), force=True)
