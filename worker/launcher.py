"""Local workers as subprocesses: one per device, started again when they end badly, gone when their launcher is."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from socket import gethostname
from typing import IO

import structlog

from worker.backoff import Backoff

STOPPED, WRONG_USAGE, REFUSED = 0, 2, 3  # exit codes after which a worker is not started again
STOP_MARGIN_S = 5.0  # a worker's own grace ends this much before the launcher's

log = structlog.get_logger("worker.launcher")


@dataclass(slots=True)
class LocalWorker:
    """One worker. `exit_code` is None while it runs or is about to be started again."""

    name: str
    device: str
    process: "subprocess.Popen[bytes] | None" = None
    exit_code: int | None = None
    starts: int = 0
    started_at: float = 0.0
    start_due: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)


class LocalLauncher:
    """Starts a worker process per device. Call `poll` now and then: it is what starts a fallen worker again.

    Should this process die, however it does, its workers end at once: they watch the pipe on their standard input.
    """

    def __init__(
        self,
        connect: str,
        devices: Sequence[str],
        models: Path | None = None,
        slots: int = 16,
        log_dir: Path | None = None,
        extra_args: Sequence[str] = (),
        grace_s: float = 20.0,
    ) -> None:
        """`devices`: e.g. ["cuda:0", "cuda:1"] or ["cpu"]. `log_dir`: a file per worker there, else our own stderr.
        `grace_s`: what a worker's running job is given at `stop`."""
        self._arguments = ["--connect", connect, "--slots", str(slots), "--grace-s", str(grace_s), "--death-pipe"]
        if models is not None:
            self._arguments += ["--models", str(models)]
        self._arguments += extra_args
        self._grace_s = grace_s
        self._log_dir = log_dir
        self.workers = [LocalWorker(name, device) for name, device in zip(_names(devices), devices, strict=True)]

    def start(self) -> None:
        for worker in self.workers:
            self._start(worker)

    def poll(self) -> list[LocalWorker]:
        """Look after the workers, without waiting: see which ended, start those again whose pause is over."""
        now = time.monotonic()
        for worker in self.workers:
            if worker.process is not None and (code := worker.process.poll()) is not None:
                self._ended(worker, code, now)
            elif worker.process is None and worker.exit_code is None and now >= worker.start_due:
                self._start(worker)
        return self.workers

    def stop(self, grace_s: float | None = None) -> None:
        """SIGTERM, wait up to `grace_s` (default: the workers' grace and 5 s), SIGKILL."""
        running = [worker.process for worker in self.workers if worker.process is not None]
        for process in running:
            process.terminate()
        until = time.monotonic() + (self._grace_s + STOP_MARGIN_S if grace_s is None else grace_s)
        for process in running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("a worker did not stop in time: killed")
                process.kill()
                process.wait()
        for worker in self.workers:
            if worker.process is not None:
                self._reap(worker, worker.process.returncode)

    def _start(self, worker: LocalWorker) -> None:
        command = [sys.executable, "-m", "worker", "--name", worker.name, "--device", worker.device, *self._arguments]
        stderr: IO[bytes] | None = None
        if self._log_dir is not None:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            stderr = (self._log_dir / f"{worker.name.replace(':', '-')}.log").open("ab")
        try:  # in a session of its own: a terminal's Ctrl-C is for the launcher, which then stops its workers in order
            worker.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=stderr, start_new_session=True)
        finally:
            if stderr is not None:
                stderr.close()
        worker.starts += 1
        worker.started_at = time.monotonic()

    def _ended(self, worker: LocalWorker, code: int, now: float) -> None:
        lived_s = now - worker.started_at
        if code in (STOPPED, WRONG_USAGE, REFUSED):
            self._reap(worker, code)
            return
        self._reap(worker, None)
        worker.start_due = now + worker.backoff.after(lived_s)
        log.warning("a worker ended: starting it again", worker_id=worker.name, code=code)

    def _reap(self, worker: LocalWorker, exit_code: int | None) -> None:
        assert worker.process is not None
        assert worker.process.stdin is not None
        worker.process.stdin.close()
        worker.process, worker.exit_code = None, exit_code


def _names(devices: Sequence[str]) -> list[str]:
    """Host and device; a number follows where several workers share a device."""
    total, seen, names = Counter(devices), Counter[str](), []
    for device in devices:
        seen[device] += 1
        suffix = f"-{seen[device]}" if total[device] > 1 else ""
        names.append(f"{gethostname()}-{device}{suffix}")
    return names
