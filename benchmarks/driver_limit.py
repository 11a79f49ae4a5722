"""How many workers one driver and one ledger can feed, with stand-ins that only wait.

search  The real `RaySearcher`, `Assignment` and `LowestK` assign 10^9 candidates to 64, 256 and 1,000 workers and
        merge what they return, for k = 24,000. A stand-in waits one second for each task of 131,072 candidates, which
        is the size of a task on a GPU and stands for a second of its work. Then it returns a result that the real stage
        made from a real student, with other ids, less what is above the bound that came with the task. Stand-ins are
        coroutines in two processes: a thousand Ray workers do not fit on two cores.
ledger  The real `buy` and `Ledger` buy answers in requests of 128 from a function that answers at once.

Work is told in CPU time, which other work on the machine changes less than seconds: of the driver's main thread, which
does one thing after another and so sets the limit, and of all its threads.

    python benchmarks/driver_limit.py
"""

import argparse
import asyncio
import hashlib
import os
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import keep

WORKERS = (64, 256, 1000)
CANDIDATES = 10**9
LAMBDAS = tuple(round(0.3 + 0.04 * k, 2) for k in range(11))
K = 24_000
TASK = 131_072
WAIT_S = 1.0
HOSTS = 2
BANK = 2  # real results that stand-ins return in turn
BOUGHT, BATCH = 50_000, 128
CLOCKS = (time.perf_counter, time.thread_time, time.process_time)


class Host:
    """Many stand-in workers, each of which does one task at a time.

    Args:
        bank: results of tasks.
        size: groups in a task.
    """

    def __init__(self, bank: list[Any], size: int) -> None:
        self._bank, self._size = bank, size
        self._busy: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def pid(self) -> int:
        """Of this process."""
        return os.getpid()

    async def work(self, worker: int, *arguments: Any) -> Any:
        """As `actors.scoring.ScoringWorker.work`, after a second."""
        from kdray.search.topk import Scored

        number, bound = arguments[-2:]
        async with self._busy[worker]:
            await asyncio.sleep(WAIT_S)
        part = self._bank[number % len(self._bank)]
        scores = part.scores * np.float32(1 + number * 0.618 % 1 / 50)  # no two tasks have the same ones
        keep = scores <= bound
        ids = part.ids[keep] + number * self._size * len(LAMBDAS)
        return Scored(scores=scores[keep], ids=ids, evaluated=part.evaluated)

    async def cpu_s(self) -> float:
        """CPU time of this process."""
        return time.process_time()


class Method:
    """A method of a stand-in, called as those of Ray's handles are."""

    def __init__(self, method: Any, *first: Any) -> None:
        self._method, self._first = method, first

    def remote(self, *rest: Any) -> Any:
        """Call it."""
        return self._method.remote(*self._first, *rest)


class StandIn:
    """What the searcher takes for the handle of a worker."""

    def __init__(self, host: Any, number: int) -> None:
        self.work, self.pid = Method(host.work, number), Method(host.pid)


def bank_of_results(images: int) -> tuple[list[Any], int]:
    """Real results of the real stage for random images and a fresh LeNet-5, and the groups in a task."""
    from kdray.models.classifier import build_model
    from kdray.pools.mixup import MixupPool
    from kdray.search.cost import GPU_BATCH
    from kdray.search.forward import Forward, ForwardOptions
    from kdray.search.stages import Cut, ScoreGroups

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 1, 28, 28), generator=generator, dtype=torch.uint8)
    pool, model = MixupPool(pixels, LAMBDAS), build_model("lenet5", (1, 28, 28), 10, seed=0)
    stage = ScoreGroups(cut=Cut(chunk=TASK, batch=GPU_BATCH), count=pool.num_groups, group_size=len(LAMBDAS), k=K)
    forward, size = Forward(model, "cpu", ForwardOptions()), stage.cuts.size
    bank = []
    for number in range(BANK):
        part = stage.run(pool, forward, number)
        part.ids[:] -= number * size * len(LAMBDAS)
        bank.append(part)
    return bank, size


class Watched:
    """`LowestK` with its CPU time and what it was given."""

    def __init__(self) -> None:
        from kdray.search.topk import LowestK

        self._merge = LowestK(K)
        self.cpu_s = 0.0
        self.bytes: list[int] = []

    @property
    def bound(self) -> float:
        """See `LowestK`."""
        return self._merge.bound

    @property
    def evaluated(self) -> int:
        """See `LowestK`."""
        return self._merge.evaluated

    def add(self, number: int, part: Any) -> None:
        """See `LowestK`."""
        begin = time.thread_time()
        self._merge.add(number, part)
        self.cpu_s += time.thread_time() - begin
        self.bytes.append(part.scores.nbytes + part.ids.nbytes)

    def chosen(self) -> str:
        """Hash of the result."""
        found = self._merge.result()
        return hashlib.blake2b(found.ids.tobytes() + found.scores.tobytes(), digest_size=8).hexdigest()


def search(counts: Sequence[int], tasks: int) -> list[dict[str, Any]]:
    """What a search of so many tasks costs the driver, for each number of workers."""
    import ray

    from actors.scoring import RaySearcher
    from kdray.models.classifier import build_model
    from kdray.pools.mixup import MixupPool
    from kdray.search.cost import GPU_BATCH
    from kdray.search.stages import Cut, ScoreGroups

    bank, size = bank_of_results(700)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    pool = MixupPool(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), LAMBDAS)
    model = build_model("lenet5", (1, 28, 28), 10, seed=0)
    stage = ScoreGroups(cut=Cut(chunk=TASK, batch=GPU_BATCH), count=tasks * size, group_size=len(LAMBDAS), k=K)
    rows = []
    for workers in counts:
        hosts = [ray.remote(Host).options(num_cpus=0, max_concurrency=4096).remote(bank, size) for _ in range(HOSTS)]
        ray.get([host.pid.remote() for host in hosts])
        searcher, merge = RaySearcher(workers), Watched()
        searcher._actors = [StandIn(hosts[number % HOSTS], number) for number in range(workers)]
        run_stage = searcher.stage_runner(pool, model)
        begin = [clock() for clock in CLOCKS]
        run_stage(stage, merge)
        wall, main, process = (clock() - then for clock, then in zip(CLOCKS, begin, strict=True))
        tasks, sizes = len(stage), sorted(merge.bytes)
        hosting = sum(ray.get([host.cpu_s.remote() for host in hosts]))
        rows.append(
            {
                "workers": workers,
                "tasks": tasks,
                "candidates": stage.count * len(LAMBDAS),
                "seconds": round(wall, 1),
                "seconds_of_waiting": round(tasks / workers * WAIT_S, 1),
                "main_thread_cpu_ms_a_task": round(1e3 * main / tasks, 3),
                "of_which_merging": round(1e3 * merge.cpu_s / tasks, 3),
                "all_threads_cpu_ms_a_task": round(1e3 * process / tasks, 3),
                "stand_ins_cpu_ms_a_task": round(1e3 * hosting / tasks, 3),
                "limit_tasks_a_second": round(tasks / main),
                "bytes_a_result": {
                    "mean": round(statistics.fmean(sizes)),
                    "median": sizes[len(sizes) // 2],
                    "most": sizes[-1],
                },
                "driver_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "chosen": merge.chosen(),
            }
        )
        print(rows[-1], flush=True)
        for host in hosts:
            ray.kill(host)
    ray.shutdown()
    return rows


def ledger(at_once: int) -> dict[str, float]:
    """What a purchase costs the driver, with `at_once` requests on their way at most."""
    from kdray.ledger.store import Ledger
    from kdray.runs.purchase import buy
    from kdray.teachers.base import AnswerFormat
    from kdray.teachers.function import FunctionTeacher
    from kdray.teachers.pool import LocalTeacherPool, TeacherReply

    class Counted(Ledger):
        turns = 0

        def settle(self, outcomes: Any) -> None:
            Counted.turns += 1
            super().settle(outcomes)

    class Pool(LocalTeacherPool):
        slots = at_once

        def collect(self, timeout_s: float | None) -> list[TeacherReply]:
            return [reply for _ in range(len(self._sent)) for reply in super(Pool, self).collect(timeout_s)]

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BOUGHT, 1, 28, 28), generator=generator, dtype=torch.uint8)
    answers = torch.rand(4096, 10, generator=generator).softmax(dim=1).numpy()
    teacher = FunctionTeacher(
        lambda batch: answers[: len(batch)], identity="benchmark", num_classes=10, form=AnswerFormat()
    )
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".ledger-") as folder:
        book = Counted(Path(folder) / "ledger.sqlite", BOUGHT)
        begin = time.perf_counter(), time.process_time()
        bought = buy(images, teachers=Pool(teacher), ledger=book, batch_size=BATCH)
        wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
        turns = Counted.turns
        book.close()
    assert len(bought.positions) == BOUGHT
    requests = -(-BOUGHT // BATCH)
    return {
        "images": BOUGHT,
        "requests_on_their_way": at_once,
        "turns": turns,
        "seconds": round(wall, 2),
        "cpu_ms_a_request": round(1e3 * cpu / requests, 3),
        "cpu_ms_a_turn": round(1e3 * cpu / turns, 3),
        "limit_requests_a_second": round(requests / cpu),
        "limit_images_a_second": round(BOUGHT / cpu),
        "images_a_second": round(BOUGHT / wall),
    }


def main() -> None:
    """Measure and keep, or with --workers print one search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, help="only the search, with so many workers; nothing is kept")
    parser.add_argument("--tasks", type=int, default=CANDIDATES // TASK)
    options = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    if options.workers:
        search((options.workers,), options.tasks)
        return
    figures = {"wait_s": WAIT_S, "k": K, "runs_each": 1}
    keep("driver_limit", figures | {"ledger": [ledger(1), ledger(8)], "search": search(WORKERS, options.tasks)})


if __name__ == "__main__":
    main()
