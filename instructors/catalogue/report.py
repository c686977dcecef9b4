"""What a validation found: check by check, with an issue for each thing that is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

ISSUES_MAX = 100
ERROR, WARNING, INFO = "error", "warning", "info"


@dataclass(frozen=True, slots=True)
class Issue:
    """`code` is for programs; `remedy` says what to do."""

    severity: str
    code: str
    message: str
    remedy: str | None = None


@dataclass(slots=True)
class Report:
    """`details`: check -> its status and what it found, in the order they were made."""

    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)
    errors: int = 0

    @property
    def is_valid(self) -> bool:
        return self.errors == 0

    @contextmanager
    def check(self, name: str) -> Iterator[dict[str, Any]]:
        """A check that fails where it meets an error. What it finds is put into the dictionary."""
        before, facts = self.errors, dict[str, Any]()
        self.details[name] = {"status": "failed"}
        yield facts
        self.details[name] = {"status": "passed" if self.errors == before else "failed", **facts}

    def skipped(self, name: str, reason: str) -> None:
        self.details[name] = {"status": "skipped", "reason": reason}

    def add(self, severity: str, code: str, message: str, remedy: str | None = None) -> None:
        """Of very many issues the first are told."""
        self.errors += severity == ERROR
        if len(self.issues) < ISSUES_MAX:
            self.issues.append(Issue(severity, code, message, remedy))
        elif len(self.issues) == ISSUES_MAX:
            self.issues.append(Issue(INFO, "more_issues", f"There are more; the first {ISSUES_MAX} are told."))

    def error(self, code: str, message: str, remedy: str | None = None) -> None:
        self.add(ERROR, code, message, remedy)

    def warning(self, code: str, message: str, remedy: str | None = None) -> None:
        self.add(WARNING, code, message, remedy)

    def to_wire(self) -> dict[str, Any]:
        """The fields of `model.validate`'s answer."""
        return {
            "is_valid": self.is_valid,
            "validation_details": self.details,
            "issues": [asdict(issue) for issue in self.issues],
        }
