from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.store.support import Harness


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[[], Harness]]:
    """Opens the same database each time it is called."""
    opened: list[Harness] = []

    def open_it() -> Harness:
        opened.append(Harness(tmp_path / "atelier.db"))
        return opened[-1]

    yield open_it
    for harness in opened:
        harness.store.close(5)


@pytest.fixture
def harness(open_store: Callable[[], Harness]) -> Harness:
    return open_store()
