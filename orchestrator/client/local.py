"""A server inside a program: an orchestrator and workers as processes that live as long as it does."""

import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import TracebackType

from orchestrator.client.errors import WORKER_EXTRA, ServerUnreachable
from orchestrator.client.sync import Client

READY_S = 120.0  # a worker imports its libraries first, which takes long on a cold disk
POLL_S = 0.2
RESTART_S = 1.0  # before a fallen orchestrator is started again
STOP_S = 10.0  # then what did not stop is killed
WORKER_GRACE_S = 2.0  # of a running job, when a program leaves


class StartFailed(RuntimeError):
    """The orchestrator or every worker ended before it was ready; the message tells what it said last."""


class LocalStack:
    """An orchestrator process and its workers. Call `poll` now and then: it starts again what fell.

    However this process ends, the others notice: the orchestrator and the workers watch their standard input.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        worker_endpoint: str,
        devices: Sequence[str] | None = None,
        models: Path | None = None,
        slots: int = 16,
        log_dir: Path | None = None,
        worker_grace_s: float = 20.0,
        log_level: str = "info",
    ) -> None:
        """`arguments`: of `atelier orchestrator`. `devices`: default all. `log_dir`: default our own stderr."""
        self._command = [sys.executable, "-m", "orchestrator", *arguments, "--exit-with-stdin"]
        self._log = log_dir / "orchestrator.log" if log_dir else None
        self._stopping = False
        self._started_at = 0.0
        self.ready = False  # to be set once it has answered: from then on it is started again when it falls
        self.orchestrator: subprocess.Popen[bytes] | None = None
        with needs_worker_extra():
            from worker.launcher import LocalLauncher
        self.launcher = LocalLauncher(
            worker_endpoint,
            devices or local_devices(),
            models,
            slots,
            log_dir,
            extra_args=("--log-level", log_level),
            grace_s=worker_grace_s,
        )

    def start(self) -> None:
        self._start_orchestrator()
        self.launcher.start()

    def poll(self) -> bool:
        """Look after the processes, without waiting. Returns whether the orchestrator runs. Raises StartFailed."""
        assert self.orchestrator is not None
        self.launcher.poll()
        code = self.orchestrator.poll()
        if code is None:
            return True
        if not self._stopping:
            if not self.ready:
                raise StartFailed(f"The orchestrator did not start (exit code {code}). {self._last_words()}".rstrip())
            if time.monotonic() >= self._started_at + RESTART_S:
                self._close_stdin()
                self._start_orchestrator()
        return False

    def drain(self) -> None:
        """Let running jobs end, then the orchestrator; `poll` tells when. A second call ends it at once."""
        assert self.orchestrator is not None
        self._stopping = True
        if self.orchestrator.poll() is None:
            self.orchestrator.send_signal(signal.SIGTERM)

    def stop(self, grace_s: float = STOP_S) -> None:
        """End everything now, in order, and wait for it; workers have `grace_s` to end what they run."""
        self._stopping = True
        if self.orchestrator is not None:
            self._close_stdin()
            try:
                self.orchestrator.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.orchestrator.kill()
                self.orchestrator.wait()
        self.launcher.stop(grace_s)

    def all_workers_ended(self) -> bool:
        """Whether no worker runs or will be started again."""
        return all(worker.exit_code is not None for worker in self.launcher.workers)

    def _start_orchestrator(self) -> None:
        stderr = self._log.open("ab") if self._log else None
        try:  # in a session of its own: a terminal's Ctrl-C is for this process, which then drains
            self.orchestrator = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stderr=stderr, start_new_session=True
            )
        finally:
            if stderr is not None:
                stderr.close()
        self._started_at = time.monotonic()

    def _close_stdin(self) -> None:
        assert self.orchestrator is not None
        assert self.orchestrator.stdin is not None
        self.orchestrator.stdin.close()

    def _last_words(self) -> str:
        if self._log is None:
            return ""  # they stand on our own stderr
        lines = self._log.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else ""


class LocalServer:
    """An orchestrator and a worker per device for as long as a `with` lasts; it hands out a connected client.

        with LocalServer() as client:
            client.text2img("a red circle on a white background").images[0].save("out.png")

    Everything it keeps lies in a temporary folder and goes with it. Needs the `worker` extra. `models`: the model
    folder (default: as the settings say). Raises StartFailed, or TimeoutError after `ready_s`.
    """

    def __init__(
        self,
        *,
        devices: Sequence[str] | None = None,
        models: str | Path | None = None,
        slots: int = 16,
        ready_s: float = READY_S,
    ) -> None:
        self._devices, self._models, self._slots, self._ready_s = devices, models, slots, ready_s
        self._stopped = threading.Event()

    def __enter__(self) -> Client:
        self._folder = Path(tempfile.mkdtemp(prefix="atelier-"))
        try:
            self._stack = self._make_stack()
            self._stack.start()
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._client = Client(f"ipc://{self._folder}/client")
        try:
            self._wait_until_ready()
        except BaseException:
            self._close()
            raise
        self._guard = threading.Thread(target=self._look_after, name="atelier-local-server", daemon=True)
        self._guard.start()
        return self._client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._guard.join()
        self._close()

    def _make_stack(self) -> LocalStack:
        from orchestrator.settings import load_settings

        folder = self._folder
        options = {
            "runtime-dir": str(folder),
            "data-dir": f"{folder}/data",
            "client-endpoints": f"ipc://{folder}/client",
            "worker-endpoints": f"ipc://{folder}/workers",
        }
        models = Path(self._models) if self._models else load_settings({}).models_dir
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        return LocalStack(
            arguments, options["worker-endpoints"], self._devices, models, self._slots, folder, WORKER_GRACE_S
        )

    def _wait_until_ready(self) -> None:
        """Until the orchestrator answers and a worker has come."""
        deadline = time.monotonic() + self._ready_s
        while time.monotonic() < deadline:
            self._stack.poll()
            if self._stack.all_workers_ended():
                raise StartFailed("No worker could start. `atelier doctor` tells what is missing.")
            try:
                if self._client.workers(timeout_s=POLL_S):
                    self._stack.ready = True
                    return
            except (TimeoutError, ServerUnreachable):
                continue
            time.sleep(POLL_S)
        raise TimeoutError(f"No worker was ready within {self._ready_s:g} s.")

    def _look_after(self) -> None:
        while not self._stopped.wait(POLL_S):
            self._stack.poll()

    def _close(self) -> None:
        self._client.close()
        self._stack.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def needs_worker_extra() -> Iterator[None]:
    """Around an import that the base install cannot do."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"Workers need {error.name}, not installed here: {WORKER_EXTRA}") from None


def local_devices() -> list[str]:
    """Every GPU that the installed torch can use, else the CPU."""
    with needs_worker_extra():
        from worker.hardware import count_gpus
    try:
        cpu_only = metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        cpu_only = True
    return [f"cuda:{index}" for index in range(0 if cpu_only else count_gpus())] or ["cpu"]
