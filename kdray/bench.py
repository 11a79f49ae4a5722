"""`kdray bench score`: how fast this machine scores, beside the bare forward pass of the same student.

The bare rate is what one cannot pass without needing fewer passes: a loop over batches that are ready, in as many
processes, a thread each. Both are measured in turn, several times, so that a busy machine slows both alike.
"""

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from kdray.config import PoolConfig
from kdray.errors import ConfigError
from kdray.memory import keep_freed_memory
from kdray.pools.mixup import MixupPool
from kdray.pools.pairs import count_pairs
from kdray.search import Method, SearchRequest
from kdray.search.forward import Forward
from kdray.search.work import batch_on
from kdray.students.models import build_model

_READY = 8  # batches the bare loop goes round
_CLASSES = 10
_SHARE_SEARCHED = 100  # candidates for each that is kept


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured.

    Attributes:
        model: of the zoo.
        images: how many random images the pool mixes.
        shape: (C, H, W) of them.
        workers: scoring workers, besides the run with one.
        seconds: of each measurement, about.
        repeats: measurements of each kind.
        gpus: of a worker.
        options: of `kdray.search.forward.Forward`.
    """

    model: str = "lenet5"
    images: int = 2000
    shape: tuple[int, int, int] = (1, 28, 28)
    workers: int = 2
    seconds: float = 5.0
    repeats: int = 3
    gpus: float = 0.0
    options: tuple[tuple[str, str], ...] = ()

    @property
    def device(self) -> str:
        """Of the workers."""
        return "cuda" if self.gpus else "cpu"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What so many workers do.

    Attributes:
        workers: how many.
        candidates_per_s: a whole exhaustive search on Ray, all workers together; median.
        bare_per_s: as many bare loops at the same time; median.
        share: candidates_per_s / bare_per_s, measured in pairs; median.
        driver_mib, worker_mib: peak resident memory.
    """

    workers: int
    candidates_per_s: float
    bare_per_s: float
    share: float
    driver_mib: float
    worker_mib: float


def measure(setting: Setting, tell: Callable[[str], None] = lambda text: None) -> list[Speed]:
    """One worker, then `setting.workers`.

    Raises:
        ConfigError: fewer than two images.
        ModelError: an unknown model, or one that does not take such images.
    """
    if setting.images < 2:
        raise ConfigError(f"--images: a pool needs at least two images to mix, got {setting.images}")
    build_model(setting.model, setting.shape, _CLASSES, seed=0)
    from actors import environment

    environment.prepare()
    from actors.cluster import connect

    counts = sorted({1, setting.workers})
    with (
        connect(),
        ProcessPoolExecutor(max(counts), mp_context=multiprocessing.get_context("spawn")) as processes,
    ):
        return [_measure(setting, count, processes, tell) for count in counts]


def _measure(setting: Setting, workers: int, processes: ProcessPoolExecutor, tell: Callable[[str], None]) -> Speed:
    from actors.scoring import RaySearcher

    searcher = RaySearcher(workers, gpus=setting.gpus, method=Method(), options=dict(setting.options))
    searcher.start()
    try:
        pids = searcher.pids()
        bare = _bare_together(setting, workers, processes, 0.5)  # warms both up, and says how much is enough
        _search(setting, searcher, bare * 0.5)
        rates = []
        for number in range(setting.repeats):
            bare = _bare_together(setting, workers, processes, setting.seconds)
            rates.append((_search(setting, searcher, bare * setting.seconds), bare))
            tell(f"{workers} workers, {number + 1} of {setting.repeats}: {rates[-1][0]:,.0f} of {bare:,.0f} a second")
        worker_mib = max(peak_mib(pid) for pid in pids)
    finally:
        searcher.close()
    return Speed(
        workers=workers,
        candidates_per_s=statistics.median(found for found, _ in rates),
        bare_per_s=statistics.median(bare for _, bare in rates),
        share=statistics.median(found / bare for found, bare in rates),
        driver_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        worker_mib=worker_mib,
    )


def _search(setting: Setting, searcher, candidates: float) -> float:
    """Candidates a second of one exhaustive search of about so many."""
    lambdas = PoolConfig().grid()
    every = count_pairs(setting.images)
    pairs = min(every, max(1, round(candidates / len(lambdas))))
    pool = MixupPool(_images(setting), lambdas, pairs=None if pairs == every else pairs)
    model = build_model(setting.model, setting.shape, _CLASSES, seed=0)
    begin = time.perf_counter()
    found = searcher.search(pool, model, SearchRequest(k=max(1, pairs // _SHARE_SEARCHED)))
    return found.evaluated / (time.perf_counter() - begin)


def _bare_together(setting: Setting, workers: int, processes: ProcessPoolExecutor, seconds: float) -> float:
    """Images a second of so many bare loops at once, added up."""
    return sum(future.result() for future in [processes.submit(bare, setting, seconds) for _ in range(workers)])


def bare(setting: Setting, seconds: float) -> float:
    """Images a second of the student alone on batches that are ready, one thread, in this process."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as the workers do
    model = build_model(setting.model, setting.shape, _CLASSES, seed=0)
    forward = Forward(model, setting.device, **dict(setting.options))
    images = _images(setting)
    batch = batch_on(setting.device, model)
    rows = torch.arange(_READY * batch).remainder(len(images)).view(_READY, batch)
    ready = [images[row].to(setting.device).contiguous(memory_format=torch.channels_last) for row in rows]
    forward(ready[0])
    done, begin = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        for images in ready:
            logits = forward(images)
        if setting.gpus:
            logits.sum().item()  # a GPU works on behind our back
        done += _READY * batch
    return done / elapsed


def _images(setting: Setting) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (setting.images, *setting.shape), generator=generator, dtype=torch.uint8)


def peak_mib(pid: int) -> float:
    """Peak resident memory of a process, in MiB, as the kernel counts it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no VmHWM")


def default_workers() -> int:
    """One for each CPU this process may use."""
    return len(os.sched_getaffinity(0))


def parse_shape(text: str) -> tuple[int, int, int]:
    """CxHxW, as in 1x28x28.

    Raises:
        ConfigError: it is none.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--shape: {text!r} is not CxHxW; give channels, height and width, for example 3x32x32")
    return tuple(int(part) for part in parts)


def lines(setting: Setting, speeds: list[Speed]) -> list[tuple[str, str]]:
    """The measurement as (what, value) rows."""
    shape = "x".join(map(str, setting.shape))
    rows = [("student", f"{setting.model} at {shape}, {setting.device}; {setting.repeats} measurements, medians")]
    for speed in speeds:
        name = "1 worker" if speed.workers == 1 else f"{speed.workers} workers"
        rows.append(
            (
                name,
                f"{speed.candidates_per_s:,.0f} candidates/s, {speed.share:.1%} of {speed.bare_per_s:,.0f} of the bare "
                f"forward pass; memory {speed.driver_mib:,.0f} MiB, {speed.worker_mib:,.0f} MiB a worker",
            )
        )
    if len(speeds) > 1:
        gain = speeds[-1].candidates_per_s / speeds[0].candidates_per_s
        rows.append(("scaling", f"{gain:.2f} times as fast with {speeds[-1].workers} workers as with one"))
    return rows
