"""The disk while the server runs: what it cannot read, and how much may wait for it."""

import sqlite3

import pytest

from orchestrator.client import Client
from protocol.errors import QueueFull, Unavailable
from protocol.limits import MIB
from tests.e2e.house import House


def test_a_question_that_only_the_disk_could_answer_is_answered_unavailable() -> None:
    """Not `not_found`, and not a list that lacks what could not be read."""
    with House() as house:
        house.start_orchestrator()
        with Client(house.endpoint, timeout_s=30) as client:
            session_id = client.sessions.create("kept").session_id
            with sqlite3.connect(house.data_dir / "atelier.db") as database:
                database.execute("ALTER TABLE sessions RENAME TO hidden")
            database.close()
            with pytest.raises(Unavailable):
                client.sessions.get(session_id)
            with pytest.raises(Unavailable):
                client.sessions.list()


def test_uploads_that_wait_for_the_disk_are_bounded() -> None:
    with House(payload_bytes_max=MIB) as house:
        house.start_orchestrator()
        with Client(house.endpoint, timeout_s=30) as client:
            with pytest.raises(QueueFull):
                client.artifacts.put(bytes(MIB + 1), "application/octet-stream")
            for _ in range(3):  # what was written does not count any more
                client.artifacts.put(bytes(MIB), "application/octet-stream")
