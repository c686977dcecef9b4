"""A server whose one worker paints for somebody else, while a test has other requests refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.house import House

PROMPT = "a red circle on a white background"


@contextmanager
def beside_a_neighbour(models: Path, steps: int) -> Iterator[House]:
    """The worker must be the same process in the end, and the neighbour's picture be finished at the first attempt."""
    with House() as house:
        house.start_orchestrator()
        worker = house.start_worker("w", "--models", str(models), "--slots", "4")
        house.wait_for_workers("w")
        with house.client() as client:
            pid = worker.child.pid
            data = {"prompt": PROMPT, "steps": steps, "seed": 7, "guidance_scale": 4.0}
            neighbour = client.submit("inference.text2img", data)
            yield house
            assert worker.child.pid == pid
            result = neighbour.result(100)
            assert len(result.attachments) == 1
            info = client.jobs.get(result.job_id)
            assert (info.status, info.attempt) == ("completed", 1)
