"""The commands beside a real server, as processes."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from orchestrator.client import Client, Job
from protocol.recipe import read
from tests.cli.conftest import ATELIER, PROMPT, ROOT, Studio, wait_for_line

pytestmark = pytest.mark.timeout(180)  # workers load their libraries, which takes long on a busy machine


def ok(up: Studio, *arguments: str) -> str:
    done = up.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_json(up: Studio, *arguments: str) -> Any:
    return json.loads(ok(up, *arguments, "--json"))


def client_of(up: Studio) -> Client:
    return Client(up.environment["ATELIER_CLIENT_ENDPOINTS"], timeout_s=90)


def test_generate_writes_a_picture_and_names_it_last(up: Studio) -> None:
    assert ok(up, "generate", PROMPT, "--steps", "3", "--seed", "7").splitlines()[-1] == "out.png"
    with Image.open(up.folder / "out.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))


def test_generate_passes_every_option_on(up: Studio) -> None:
    report = as_json(
        up, "generate", PROMPT, "-o", "all.jpg", "--negative", "blur", "--seed", "18446744073709551614", "--steps", "2",
        "--size", "64x64", "--count", "2", "--scheduler", "ddim", "--guidance", "3.5", "--priority", "8",
        "--model", "demo", "--quality", "77",
    )  # fmt: skip
    assert [Path(image["path"]).name for image in report["images"]] == ["all-1.jpg", "all-2.jpg"]
    assert [image["seed"] for image in report["images"]] == [2**64 - 2, 2**64 - 1]
    recipe = report["images"][0]["recipe"]
    assert recipe == read((up.folder / "all-1.jpg").read_bytes())
    wanted = {
        "negative_prompt": "blur",
        "steps": 2,
        "guidance_scale": 3.5,
        "width": 64,
        "height": 64,
        "model_id": "demo",
    }
    assert {name: recipe[name] for name in wanted} == wanted
    assert recipe["output"] == {"format": "jpeg", "quality": 77}
    assert recipe["scheduler"] == "ddim"
    assert as_json(up, "jobs", "show", report["job_id"])["priority"] == 8


def test_a_picture_is_made_again_from_its_recipe(up: Studio) -> None:
    ok(up, "generate", PROMPT, "--steps", "3", "-o", "first.png")
    done = up.run("generate", "--from", "first.png", "-o", "second.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert (up.folder / "first.png").read_bytes() == (up.folder / "second.png").read_bytes()
    other = as_json(up, "generate", "a green square on a black background", "--from", "first.png", "-o", "third.webp")
    recipe = other["images"][0]["recipe"]
    assert recipe["prompt"] == "a green square on a black background"
    assert recipe["seed"] == (read((up.folder / "first.png").read_bytes()) or {})["seed"]
    assert recipe["output"]["format"] == "webp"


def test_a_changed_picture_is_made_again_from_its_recipe_and_the_picture(up: Studio) -> None:
    ok(up, "generate", PROMPT, "--steps", "3", "-o", "source.png")
    ok(up, "generate", "a blue circle", "--image", "source.png", "--strength", "0.7", "--steps", "3", "-o", "blue.png")
    done = up.run("generate", "--from", "blue.png", "--image", "source.png", "-o", "blue2.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert (up.folder / "blue.png").read_bytes() == (up.folder / "blue2.png").read_bytes()
    done = up.run("generate", "--from", "blue.png", "--image", "blue.png", "-o", "blue3.png")
    assert (done.returncode, "--image is another picture" in done.stderr) == (0, True)
    done = up.run("generate", "--from", "blue.png", "-o", "blue4.png")
    assert (done.returncode, "give them again with --image" in done.stderr) == (2, True)


def test_another_machines_picture_comes_with_a_warning(up: Studio) -> None:
    from protocol.recipe import encode

    ok(up, "generate", PROMPT, "--steps", "2", "-o", "mine.png")
    recipe = read((up.folder / "mine.png").read_bytes()) or {}
    here = recipe["numerics"]
    there = here | {"device": "NVIDIA H200", "libraries": here["libraries"] | {"torch": "1.0"}}
    theirs = recipe | {"numerics": there, "model_hash": "0" * 64}
    with Image.open(up.folder / "mine.png") as picture:
        (up.folder / "theirs.png").write_bytes(encode(picture, theirs, "png", 90))
    done = up.run("generate", "--from", "theirs.png", "-o", "again.png")
    assert done.returncode == 0
    assert f"device was NVIDIA H200, is {here['device'][:20]}" in done.stderr
    assert "torch 1.0" in done.stderr
    assert "model_hash" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "error: invalid_request: The data is not valid: steps"),
        (["--size", "63x64"], "error: invalid_request: The data is not valid: width"),
        (["--count", "17"], "num_images"),
        (["--scheduler", "eulr"], "Did you mean euler?"),
        (["--model", "demi"], "error: model_not_found"),
        (["--session", "nope"], "error: not_found"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_refused_request_is_one_line_with_its_code(up: Studio, arguments: list[str], message: str) -> None:
    done = up.run("generate", "x", *arguments, "-o", "refused.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (up.folder / "refused.png").exists()


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, up: Studio, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        environment = up.environment | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "60"}
        self.process = subprocess.Popen(
            [*ATELIER, *arguments], cwd=up.folder, env=environment, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def read_until(self, wanted: str, timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while wanted not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self._master, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    break
        assert wanted in self.text, self.text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


def test_a_terminal_shows_steps_time_left_and_the_emerging_picture(up: Studio) -> None:
    terminal = Terminal(up, "generate", PROMPT, "--steps", "300", "--preview", "-o", "shown.png")
    try:
        terminal.read_until("/300, 0:")
        terminal.read_until(" left")
        terminal.read_until("▀")
        terminal.read_until("shown.png\r\n")
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()


def test_ctrl_c_cancels_the_job_on_the_server(up: Studio) -> None:
    terminal = Terminal(up, "generate", PROMPT, "--steps", "1000", "--count", "16", "-o", "never.png")
    try:
        terminal.read_until("step 2")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until("interrupted")
        assert terminal.process.wait(10) == 130
    finally:
        terminal.close()
    newest = as_json(up, "jobs", "list", "--limit", "1")[0]
    assert newest["status"] == "cancelled"
    assert not (up.folder / "never.png").exists()


def test_jobs(up: Studio) -> None:
    with client_of(up) as client:
        job = client.submit("system.noop", {"sleep_ms": 600_000}, wait=False)
        assert job.job_id
        assert job.job_id in ok(up, "jobs", "list")
        assert f"job_id      {job.job_id}" in ok(up, "jobs", "show", job.job_id)
        watching = up.start("jobs", "watch", job.job_id)
        assert watching.stdout is not None
        with watching.stdout:
            while "processing" not in watching.stdout.readline():
                pass
            assert ok(up, "jobs", "cancel", job.job_id) == f"{job.job_id}  cancelled\n"
            assert "cancelled" in watching.stdout.read()
        assert watching.wait(10) == 1
    lines = up.run("jobs", "watch", job.job_id, "--json").stdout.splitlines()
    assert [json.loads(line)["data"]["status"] for line in lines if '"state"' in line][-1] == "cancelled"
    found = as_json(up, "jobs", "list", "--status", "cancelled")
    assert job.job_id in [item["job_id"] for item in found]
    done = up.run("jobs", "show", "nope")
    assert (done.returncode, done.stderr.partition(":")[2].partition(":")[0]) == (1, " not_found")


def test_watching_a_job_that_completes_succeeds(up: Studio) -> None:
    with client_of(up) as client:
        job = client.submit("system.noop", {"sleep_ms": 200}, wait=False)
        assert job.job_id
        assert "completed" in ok(up, "jobs", "watch", job.job_id)


def test_sessions(up: Studio) -> None:
    made = as_json(up, "sessions", "create", "--name", "posters", "--default", "steps=2", "--default", "prompt=x y")
    assert made["defaults"] == {"steps": 2, "prompt": "x y"}
    session_id = made["session_id"]
    report = as_json(up, "generate", PROMPT, "--session", session_id, "-o", "session.png")
    assert report["images"][0]["recipe"]["steps"] == 2
    shown = ok(up, "sessions", "show", session_id)
    assert "1 completed" in shown
    assert ["images", "1"] in [line.split() for line in shown.splitlines()]
    assert ["steps", "2"] in [line.split() for line in shown.splitlines()]
    assert ["cpu", "1"] in [line.split()[1:] for line in shown.splitlines()]
    ran = next(line.split() for line in shown.splitlines() if line.startswith("ran "))
    assert float(ran[1]) <= float(ran[3]) < 60
    assert session_id in ok(up, "sessions", "show", "posters")
    assert as_json(up, "sessions", "show", "posters")["analytics"]["images"] == 1
    unknown = up.run("sessions", "show", "nobody's")
    assert (unknown.returncode, "not_found" in unknown.stderr) == (1, True)
    assert session_id in ok(up, "sessions", "list")
    assert ok(up, "sessions", "cancel", session_id) == f"{session_id}  0 jobs cancelled\n"
    assert as_json(up, "sessions", "show", session_id)["status"] == "cancelled"


def test_workers(up: Studio) -> None:
    [worker] = as_json(up, "workers", "list")
    assert worker["device"]["device_id"] == "cpu"
    table = ok(up, "workers")
    assert worker["worker_id"] in table
    assert "demo" in table
    assert up.run("workers", "drain", "nobody").returncode == 1


def test_the_doctor_knows_its_own_server(up: Studio) -> None:
    found = as_json(up, "doctor")["findings"]
    used = [item for item in found if item["subject"] == "endpoint"]
    assert len(used) == 2
    assert all("Atelier" in item["text"] and item["level"] == "ok" for item in used)


def test_a_second_server_in_the_same_place_says_so(up: Studio) -> None:
    done = up.run("orchestrator")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_one_picture_without_a_server(studio: Studio) -> None:
    studio.models = ROOT / "models"
    done = studio.run("generate", PROMPT, "--local", "--steps", "2", "-o", "local.png")
    assert (done.returncode, done.stdout) == (0, "local.png\n"), done.stderr
    with Image.open(studio.folder / "local.png") as picture:
        assert picture.size == (64, 64)


class Running:
    """An `atelier up` of its own, gone when the `with` ends."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self.log = studio.folder / "up.log"

    def __enter__(self) -> "Running":
        with self.log.open("w") as out:
            self.process = self._studio.start("up", "--device", "cpu", stdout=out)
        wait_for_line(self.log, "ready; try:", self.process)
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def begin(self, client: Client, **data: Any) -> Job:
        """A job that a worker has."""
        job = client.submit("system.noop", data, events=["state"])
        events = job.events()
        while next(events).data["status"] != "processing":
            pass
        return job

    def end(self) -> int:
        """Wait for the end of all; the exit code."""
        code = self.process.wait(40)
        assert psutil.wait_procs(self.children, timeout=20)[1] == []
        return code


def test_the_first_signal_lets_what_runs_end(studio: Studio) -> None:
    with Running(studio) as up, client_of(studio) as client:
        job = up.begin(client, sleep_ms=1500, echo="finished")
        up.process.send_signal(signal.SIGINT)
        assert job.result().data == {"echo": "finished"}
        assert up.end() == 0
        assert "draining" in up.log.read_text()


def test_the_second_signal_stops_at_once(studio: Studio) -> None:
    with Running(studio) as up, client_of(studio) as client:
        up.begin(client, sleep_ms=600_000)
        up.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert up.process.poll() is None  # it waits for the job
        up.process.send_signal(signal.SIGTERM)
        assert up.end() == 0


def test_nothing_outlives_a_killed_server(studio: Studio) -> None:
    with Running(studio) as up:
        assert len(up.children) == 3  # the orchestrator, the worker and the worker's child
        up.process.kill()
        assert up.end() == -signal.SIGKILL


def test_a_killed_orchestrator_is_started_again(studio: Studio) -> None:
    with Running(studio) as up, client_of(studio) as client:
        job = client.submit("system.noop", {"echo": "kept", "sleep_ms": 300}, wait=False)
        next(child for child in up.children if "orchestrator" in child.cmdline()).kill()
        assert job.result(timeout_s=60).data == {"echo": "kept"}
        up.process.send_signal(signal.SIGINT)
        assert up.end() == 0


def test_an_orchestrator_and_a_worker_by_hand(studio: Studio) -> None:
    endpoint = f"ipc://{studio.folder}/run/workers"
    log = studio.folder / "orchestrator.log"
    with log.open("w") as out:
        orchestrator = studio.start("orchestrator", "--worker-endpoints", endpoint, "--log-format", "json", stdout=out)
    with (studio.folder / "worker.log").open("w") as out:
        worker = studio.start("worker", "--connect", endpoint, "--device", "cpu", "--name", "by-hand", stdout=out)
    try:
        with client_of(studio) as client:
            assert client.run("system.noop", {"echo": 1}).data == {"echo": 1}
        assert "by-hand" in ok(studio, "workers", "drain", "by-hand")
        assert worker.wait(20) == 0
        orchestrator.send_signal(signal.SIGTERM)
        assert orchestrator.wait(20) == 0
    finally:
        for process in (worker, orchestrator):
            process.kill()
            process.wait()


def test_up_without_a_usable_device_says_so(studio: Studio) -> None:
    done = studio.run("up", "--device", "cuda:99")
    assert done.returncode == 1
    assert "atelier doctor" in done.stderr.splitlines()[-1] + done.stderr
    assert "Traceback" not in done.stderr


def test_the_program_is_installed() -> None:
    program = Path(sys.executable).with_name("atelier")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, cwd=ROOT)
    assert done.stdout.startswith("atelier, version ") or done.stdout.startswith("atelier ")
