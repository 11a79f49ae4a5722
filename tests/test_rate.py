"""The rate limit as the server sees it, with many who ask at once."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fault_driver
import numpy as np
import pytest
from aiohttp import web
from conftest import running
from fault_server import CLASSES, probabilities
from processes import processes

from kdray.ledger.limits import Limits
from kdray.ledger.store import Ledger
from kdray.runs.purchase import PurchasePolicy, buy
from kdray.teachers.async_pool import AsyncTeacherPool

RATE, BURST, WORKERS = 10.0, 5, 4
TIMEOUT_S = 60.0  # a busy machine must lose no request: each is to reach the server, once
LIMITS = Limits(requests_per_s=RATE, burst=BURST, in_flight=8)


@pytest.fixture
def server() -> Iterator[tuple[str, list[float]]]:
    """Address of a teacher, and the moments at which requests reached it."""
    arrivals: list[float] = []

    async def infer(request: web.Request) -> web.Response:
        arrivals.append(time.monotonic())
        tensor = (await request.json())["inputs"][0]
        images = np.array(tensor["data"], np.uint8).reshape(tensor["shape"])
        data = [number for image in images for number in probabilities(image)]
        output = {"name": "p", "datatype": "FP32", "shape": [len(images), CLASSES], "data": data}
        return web.json_response({"outputs": [output]})

    async def about(request: web.Request) -> web.Response:
        return web.json_response({"name": "m", "inputs": [], "outputs": []})

    app = web.Application()
    app.router.add_get("/v2/models/m", about)
    app.router.add_post("/v2/models/m/infer", infer)
    with running(app) as url:
        yield url, arrivals


def ask(url: str, path: str, owner: str, seed: int, count: int) -> None:
    """One run of several on a ledger: buys, one image a request."""
    ledger = Ledger(path)
    ledger.open_account(owner, {"training": count})
    teacher = fault_driver.config(url, 0, TIMEOUT_S).build(fault_driver.SHAPE)
    teacher.check()  # as a run does before it buys
    pool = AsyncTeacherPool(teacher, 4)
    images = fault_driver.images(count, seed)
    bought = buy(images, teachers=pool, ledger=ledger, batch_size=1, owner=owner, policy=PurchasePolicy(limits=LIMITS))
    assert len(bought.positions) == count
    pool.close()
    ledger.close()


def check(begin: float, arrivals: list[float], granted: list[float], count: int) -> None:
    """At most rate + burst in any second, and not a worker's share of the rate where all were to have it together.

    However busy the machine is: a request may reach the server late, with others, but never before it was granted.

    Args:
        begin: before the first, by the clock of `arrivals`.
        granted: when the ledger let each go.
    """
    came, left = np.sort(np.array(arrivals)), np.sort(np.array(granted))
    assert len(came) == len(left) == count
    in_a_second = np.searchsorted(left, left + 1.0, side="right") - np.arange(count)
    assert in_a_second.max() <= RATE + BURST
    assert (np.arange(1, count + 1) <= BURST + RATE * (came - begin) + 0.5).all()
    # The burst goes at once, the rest takes its time; of that the best stretch.
    half, after = count // 2, left[BURST:]
    assert half / np.min(after[half:] - after[:-half]) > RATE / 2


def granted(path: Path) -> list[float]:
    """When the ledger let each request go."""
    ledger = Ledger(path)
    try:
        return [created for (created,) in ledger.read("SELECT created FROM reservations ORDER BY created")]
    finally:
        ledger.close()


@pytest.mark.storm
def test_four_runs_on_one_ledger_keep_to_one_rate(server, tmp_path: Path):
    url, arrivals = server
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    asking = [processes.Process(target=ask, args=(url, str(path), f"run-{n}", n, 15)) for n in range(WORKERS)]
    begin = time.monotonic()
    for process in asking:
        process.start()
    for process in asking:
        process.join()
    assert [process.exitcode for process in asking] == [0] * WORKERS
    check(begin, arrivals, granted(path), 15 * WORKERS)


@pytest.mark.storm
def test_two_workers_on_ray_keep_to_one_rate(server, tmp_path: Path, ray_local):
    from actors.teachers import RayTeacherPool

    url, arrivals = server
    section = fault_driver.config(url, 0, TIMEOUT_S)
    build = partial(section.build, fault_driver.SHAPE)
    pool = RayTeacherPool(build(), build, 2, slots=8)
    pool.start()
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path, budget=92)
    images = fault_driver.images(92, 1)
    # All workers are up and connected first: what a cold one needs to start would squeeze later requests together.
    ray_local.get([worker.ready.remote() for worker in pool._actors])
    buy(images[:32], teachers=pool, ledger=ledger, batch_size=1)
    arrivals.clear()
    begin = time.monotonic()
    bought = buy(images[32:], teachers=pool, ledger=ledger, batch_size=1, policy=PurchasePolicy(limits=LIMITS))
    pool.close()
    ledger.close()
    assert len(bought.positions) == 60
    check(begin, arrivals, granted(path)[32:], 60)
