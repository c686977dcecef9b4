"""Logs: JSON lines for machines, plain ones for people, the request's id on each."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

LOGGING = """
import logging, structlog
from orchestrator.telemetry import configure_logging
log = structlog.get_logger()
configure_logging({level!r}, {format!r})
log.debug("hidden")
with structlog.contextvars.bound_contextvars(request_id="r1"):
    log.info("accepted", job_id="j1", where=object)
    logging.getLogger("library").warning("careful %s", 1)
    logging.getLogger("library").info("chatter")
try:
    prompt = "a secret"
    raise ValueError("no")
except ValueError:
    log.exception("failed")
"""


def logged(level: str, format: str) -> str:
    script = LOGGING.format(level=level, format=format)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == ""
    return done.stderr


def test_logs_are_json_lines_where_nobody_watches() -> None:
    lines = [json.loads(line) for line in logged("info", "auto").splitlines()]
    assert [line["event"] for line in lines] == ["accepted", "careful 1", "failed"]
    assert [line["level"] for line in lines] == ["info", "warning", "error"]
    assert [line.get("request_id") for line in lines] == ["r1", "r1", None]
    assert lines[0]["job_id"] == "j1"
    assert lines[1]["logger"] == "library"
    assert "ValueError: no" in lines[2]["exception"]


def test_logs_for_people_show_no_local_variables() -> None:
    text = logged("debug", "console")
    assert "hidden" in text
    assert "ValueError: no" in text
    assert "a secret" not in text
    assert "\x1b[" not in text


def test_the_level_holds_for_libraries_too() -> None:
    assert [json.loads(line)["event"] for line in logged("error", "json").splitlines()] == ["failed"]
