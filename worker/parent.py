"""The process that watches: starts the child, kills it when its device hangs, starts it again when it ends badly.

It imports nothing that computes, so there is little in it that could fail. The child holds the read end of a pipe
whose write end is here: however this process ends, the child notices and ends as well.
"""

import os
import selectors
import signal
import subprocess
import sys
import time
from types import FrameType
from uuid import uuid4

import structlog

from worker.backoff import Backoff
from worker.options import Options
from worker.pulse import Pulse

TICK_S = 0.25  # how often the pulse is looked at
KILL_MARGIN_S = 2.0  # after the grace that the child was told of
STOPPED, FAILED, WRONG_USAGE, REFUSED = 0, 1, 2, 3  # exit codes
FINAL = (STOPPED, WRONG_USAGE, REFUSED)  # of a child that is not to be started again

log = structlog.get_logger("worker.parent")


class Watch:
    """Judges the pulse by what this process saw itself, so that its own stop (SIGSTOP, a suspend) accuses nobody."""

    def __init__(self, pulse: Pulse, quantum_ms_max: int, load_ms_max: int) -> None:
        self._pulse = pulse
        self._limits_s = quantum_ms_max / 1000, load_ms_max / 1000
        self._stamp = 0
        self._stuck_s = 0.0
        self._looked_at = time.monotonic()

    def hung(self) -> bool:
        """Whether the present quantum has lasted too long. To be called every `TICK_S`."""
        now = time.monotonic()
        elapsed = min(now - self._looked_at, 2 * TICK_S)
        self._looked_at = now
        stamp = self._pulse.busy_since_ns
        if stamp == 0 or stamp != self._stamp:
            self._stamp, self._stuck_s = stamp, 0.0
        else:
            self._stuck_s += elapsed
        return self._stuck_s > self._limits_s[self._pulse.is_loading]


class Parent:
    """`run` returns the exit code (worker.options)."""

    def __init__(self, options: Options, argv: list[str]) -> None:
        self._options = options
        self._argv = argv
        self._instance = uuid4().hex  # of this worker, however many children it takes
        self._pulse = Pulse.create()
        self._backoff = Backoff()
        self._stop_signals = 0
        self._reload_asked = False
        self._kill_at: float | None = None
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        self._listen()
        while True:
            child, started = self._spawn(), time.monotonic()
            code = self._attend(child)
            if self._stop_signals:  # SIGTERM itself: the child had not come far enough to have anything to hand back
                return STOPPED if code in (STOPPED, -signal.SIGTERM) else FAILED
            if code in FINAL:
                return code
            pause_s = self._backoff.after(time.monotonic() - started)
            log.warning("the child ended: starting another", code=code, pause_s=pause_s)
            if self._sleep(pause_s):
                return STOPPED

    def _listen(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGHUP, self._on_reload_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to wake the selector
        self._selector.register(reader, selectors.EVENT_READ, "signal")
        if self._options.death_pipe:
            self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, "death pipe")

    def _on_stop_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_signals += 1

    def _on_reload_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._reload_asked = True

    def _spawn(self) -> "subprocess.Popen[bytes]":
        self._pulse.reset()
        command = [sys.executable, "-m", "worker.child", *self._argv]
        extra = ["--instance", self._instance, "--pulse-fd", str(self._pulse.fd)]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited: it would end a child that has not come to listen yet
        child = subprocess.Popen([*command, *extra], stdin=subprocess.PIPE, pass_fds=[self._pulse.fd])
        signal.signal(signal.SIGHUP, self._on_reload_signal)
        log.info("child started", child=child.pid)
        return child

    def _attend(self, child: "subprocess.Popen[bytes]") -> int:
        """Watch one child to its end; its exit code (negative: the signal that killed it)."""
        watch = Watch(self._pulse, self._options.quantum_ms_max, self._options.load_ms_max)
        self._kill_at = None
        while (code := child.poll()) is None:
            self._wait(TICK_S)
            if watch.hung():
                log.error("the device thread hangs: killing the child", quantum_age_ms=self._pulse.age_ms)
                child.kill()
            self._stop(child)
            if self._reload_asked:
                self._reload_asked = False
                child.send_signal(signal.SIGHUP)
        assert child.stdin
        child.stdin.close()
        return code

    def _stop(self, child: "subprocess.Popen[bytes]") -> None:
        """Ask once, kill on a second signal or when the grace is over."""
        if not self._stop_signals:
            return
        now = time.monotonic()
        if self._kill_at is None:
            child.terminate()
            self._kill_at = now + self._options.grace_s + KILL_MARGIN_S
        elif self._stop_signals > 1 or now >= self._kill_at:
            child.kill()

    def _sleep(self, span_s: float) -> bool:
        """Whether a stop signal ended it."""
        until = time.monotonic() + span_s
        while not self._stop_signals and (left := until - time.monotonic()) > 0:
            self._wait(left)
        return self._stop_signals > 0

    def _wait(self, timeout_s: float) -> None:
        """Until a signal, a child's end among them, or the time is over. Ends the process when its launcher is gone."""
        for key, _ in self._selector.select(timeout_s):
            if not os.read(key.fd, 4096) and key.data == "death pipe":
                os._exit(FAILED)
