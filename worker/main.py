"""`python -m worker`: the worker as a command. Light: what computes lives in the child it starts."""

import sys

from worker import logs
from worker.options import parse
from worker.parent import Parent


def main(argv: list[str] | None = None) -> int:
    """Run a worker until it is stopped, drained or refused; returns the exit code (see --help)."""
    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    logs.configure(options.log_level, process="parent")
    return Parent(options, argv).run()
