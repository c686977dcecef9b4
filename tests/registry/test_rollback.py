"""Where a roll-back leads, told from the moves of an alias."""

import pytest

from orchestrator.registry.aliases import version_before
from protocol.errors import NotFound

A, R = "alias", "rollback"


@pytest.mark.parametrize(
    ("history", "version"),
    [
        ([(A, None, "1"), (A, "1", "2")], "1"),
        ([(A, None, "1"), (A, "1", "2"), (A, "2", "3"), (R, "3", "2")], "1"),
        ([(A, None, "1"), (A, "1", "2"), (R, "2", "1"), (A, "1", "3")], "1"),
        ([(A, None, "1"), (A, "1", None)], "1"),
        ([(A, "4", "5")], "4"),  # what was before has been forgotten
    ],
)
def test_one_move_back(history: list[tuple[str, str | None, str | None]], version: str) -> None:
    assert version_before(history) == version


@pytest.mark.parametrize(
    "history", [[], [(A, None, "1")], [(A, None, "1"), (A, "1", "2"), (R, "2", "1")]], ids=["empty", "one", "undone"]
)
def test_nothing_to_go_back_to(history: list[tuple[str, str | None, str | None]]) -> None:
    with pytest.raises(NotFound):
        version_before(history)
