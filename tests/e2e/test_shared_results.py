"""Workers that share results by a real Redis, which is killed while they use it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from orchestrator.client import Client, Prediction
from tests.e2e.house import House, Worker, eventually
from tests.instructors import onnx_models
from tests.instructors.redis_server import PASSWORD, RedisServer, needs_redis

pytestmark = needs_redis


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.close()


@pytest.fixture
def house() -> Iterator[House]:
    with House() as started:
        onnx_models.affine(started.folder / "models" / "double" / "1" / "model.onnx", 2, 0)
        started.start_orchestrator()
        yield started


def start(house: House, redis: RedisServer, name: str, *arguments: str) -> Worker:
    worker = house.start_worker(name, "--models", str(house.folder / "models"), "--cache-url", redis.url, *arguments)
    house.wait_for_workers(name)
    eventually(lambda: "results are shared by Redis" in worker.log)
    return worker


def ask(client: Client, number: float, worker_id: str | None = None) -> Prediction:
    x = np.array([[number]], np.float32)
    answer = client.predict("double", {"x": x}, worker_id=worker_id)
    np.testing.assert_array_equal(answer.outputs["y"], 2 * x)
    return answer


def looked_up(client: Client) -> tuple[int, int]:
    """How often the cache had the answer, and how often not."""
    figures = client.stats().inference
    return figures.cache_hits, figures.cache_misses


def test_one_worker_answers_what_another_computed(house: House, redis: RedisServer) -> None:
    client = house.client()
    workers = [start(house, redis, name) for name in ("one", "two")]
    assert not ask(client, 7, "one").cached
    with redis.client() as connection:
        eventually(lambda: connection.dbsize() == 1)
    assert ask(client, 7, "two").cached
    assert not ask(client, 8, "two").cached
    eventually(lambda: looked_up(client) == (1, 2))
    for worker in workers:
        assert PASSWORD not in worker.log


def test_no_request_is_lost_with_redis(house: House, redis: RedisServer) -> None:
    client = house.client()
    worker = start(house, redis, "one", "--cache-mb", "0")  # so that every request asks Redis
    ask(client, 0)
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(ask, client, number % 50) for number in range(400)]
        answers[100].result()
        redis.kill()
        answers += [pool.submit(ask, client, number % 50) for number in range(400)]
        for answer in answers:
            answer.result()
    eventually(lambda: "Redis is away" in worker.log)
    redis.start()
    eventually(lambda: worker.log.count("results are shared by Redis") == 2, 40)
    ask(client, 1000)
    eventually(lambda: ask(client, 1000).cached)
