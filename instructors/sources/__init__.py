"""Where the files of a model that is to be registered come from, each kind of place in a module of its own.

All of it runs in a process of its own (instructors.sources.child), which is killed where a place does not answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Broken(Exception):
    """The place failed in a way that may pass: it is asked again."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """`path`: where it is to lie in the model's folder, its parts joined by "/". `key`: what the source calls it."""

    path: str
    nbytes: int
    key: Any = None


@dataclass(slots=True)
class Told:
    """What a place tells of the model beside its files."""

    run_id: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Source(Protocol):
    """`resumes`: a file can be read from its middle. All of it raises Broken, or an AtelierError that is final."""

    resumes: bool
    told: Told  # known after `files`

    def files(self) -> Sequence[SourceFile]:
        """All files of the model."""

    def read(self, file: SourceFile, begin: int) -> Iterator[bytes]:
        """The bytes of a file from `begin` on, in pieces of some MiB; 0 where the source does not resume."""
