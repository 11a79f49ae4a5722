"""`kdray bench score`: the scoring rate of this machine, compared with the bare forward pass of the same student.

The bare rate is the upper limit for a search that makes the same forward passes. It is measured by loops over batches
in memory, one process per worker with one thread each. Both rates are measured in turn, several times, so that other
load on the machine slows both.
"""

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch

from kdray.config.load import apply_overrides, parse_section
from kdray.errors import ConfigError
from kdray.models.classifier import build_model
from kdray.pools.base import Pool, PoolSection, pools
from kdray.pools.pairs import count_pairs
from kdray.pools.sample import OfPairs
from kdray.search import Searcher, SearchRequest, SearchResult
from kdray.search.cost import batch_on
from kdray.search.forward import Forward, ForwardOptions
from kdray.sections.base import Section
from kdray.sections.search import SearchSettings
from kdray.utils.memory import keep_freed_memory
from kdray.utils.text import counted

__all__ = [
    "ForwardOptions",
    "Setting",
    "Speed",
    "bare",
    "default_workers",
    "lines",
    "measure",
    "parse_pool",
    "parse_shape",
    "peak_mib",
]

_READY = 8  # batches that the bare loop cycles through
_CLASSES = 10
_SHARE_SEARCHED = 100  # pairs in the pool for each candidate that the search returns


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The settings of a measurement.

    Attributes:
        model: name of a model in the zoo.
        images: number of random images that the pool mixes.
        shape: (C, H, W) of the images.
        workers: number of scoring workers. One worker is measured as well.
        seconds: approximate duration of each measurement.
        repeats: number of measurements of each kind.
        gpus: GPUs of a worker.
        options: how the student is run.
        pool: the section of the pool, one of pairs of images.
    """

    model: str = "lenet5"
    images: int = 2000
    shape: tuple[int, int, int] = (1, 28, 28)
    workers: int = 2
    seconds: float = 5.0
    repeats: int = 3
    gpus: float = 0.0
    options: ForwardOptions = field(default_factory=ForwardOptions)
    pool: PoolSection = field(default_factory=pools.default)

    @property
    def device(self) -> str:
        """The device of the workers."""
        return "cuda" if self.gpus else "cpu"


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The rates measured with a number of workers.

    Attributes:
        workers: number of workers.
        candidates_per_s: rate of an exhaustive search on Ray, all workers together; median.
        bare_per_s: rate of the same number of bare loops at the same time; median.
        share: candidates_per_s / bare_per_s of measurements in pairs; median.
        driver_mib, worker_mib: peak resident memory.
    """

    workers: int
    candidates_per_s: float
    bare_per_s: float
    share: float
    driver_mib: float
    worker_mib: float


def measure(setting: Setting, tell: Callable[[str], None] = lambda text: None) -> list[Speed]:
    """Measure one worker, then `setting.workers` workers.

    Raises:
        ConfigError: there are fewer than two images, or the pool is not one of pairs.
        ModelError: the model is unknown, or cannot take images of this shape.
    """
    if setting.images < 2:
        raise ConfigError(f"--images: a pool needs at least two images to mix, got {setting.images}")
    _pool(setting, 1)
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

    searcher = RaySearcher(
        workers, gpus=setting.gpus, settings=SearchSettings(search="exhaustive"), options=setting.options
    )
    searcher.start()
    try:
        pids = searcher.pids()
        bare = _bare_together(setting, workers, processes, 0.5)  # warm-up, which also sets the size of a search
        _search(setting, searcher, bare * 0.5)
        rates = []
        for number in range(setting.repeats):
            bare = _bare_together(setting, workers, processes, setting.seconds)
            rates.append((_search(setting, searcher, bare * setting.seconds), bare))
            tell(
                f"{workers} workers, measurement {number + 1} of {setting.repeats}: {rates[-1][0]:,.0f} candidates/s, "
                f"bare forward pass {bare:,.0f}/s"
            )
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


def _search(setting: Setting, searcher: Searcher, candidates: float) -> float:
    """Candidates per second of one exhaustive search of about `candidates` candidates."""
    pool = _pool(setting, candidates)
    model = build_model(setting.model, setting.shape, _CLASSES, seed=0)
    begin = time.perf_counter()
    found: SearchResult = searcher.search(pool, model, SearchRequest(k=max(1, pool.num_groups // _SHARE_SEARCHED)))
    return found.evaluated / (time.perf_counter() - begin)


def _pool(setting: Setting, candidates: float) -> Pool:
    """A pool of about so many candidates, or of all pairs if they have fewer.

    Raises:
        ConfigError: the pool is not one of pairs, or cannot be built.
    """
    if not isinstance(setting.pool, OfPairs):
        raise ConfigError(f"--pool: {setting.pool.kind} is not a pool of pairs of images; give one of mixup, pairs")
    images, every = _images(setting), count_pairs(setting.images)
    one = setting.pool.model_copy(update={"pairs": 1}).build(images, 0)
    pairs = min(every, max(1, round(candidates / one.group_size)))
    return setting.pool.model_copy(update={"pairs": "all" if pairs == every else pairs}).build(images, 0)


def _bare_together(setting: Setting, workers: int, processes: ProcessPoolExecutor, seconds: float) -> float:
    """Images per second of `workers` bare loops at the same time, in total."""
    return sum(future.result() for future in [processes.submit(bare, setting, seconds) for _ in range(workers)])


def bare(setting: Setting, seconds: float) -> float:
    """Images per second of bare forward passes over batches in memory, with one thread in this process."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as the workers do
    model = build_model(setting.model, setting.shape, _CLASSES, seed=0)
    forward = Forward(model, setting.device, setting.options)
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
            logits.sum().item()  # wait for the GPU, which works asynchronously
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
    """One worker for each CPU that this process may use."""
    return len(os.sched_getaffinity(0))


def parse_shape(text: str) -> tuple[int, int, int]:
    """Parse a shape of the form CxHxW, such as 1x28x28.

    Raises:
        ConfigError: the text has another form.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--shape: {text!r} is not CxHxW; give channels, height and width, for example 3x32x32")
    channels, height, width = map(int, parts)
    return channels, height, width


class _Given(Section):
    pool: Annotated[PoolSection, pools]


def parse_pool(text: str) -> PoolSection:
    """Parse the section of a pool, written in YAML as on the command line of `kdray run`.

    Raises:
        ConfigError: the text is no section of a pool.
    """
    return parse_section(_Given, apply_overrides({}, [f"pool={text}"]), origin="--pool").pool


def lines(setting: Setting, speeds: list[Speed]) -> list[tuple[str, str]]:
    """The measurements as rows (name, value)."""
    shape = "x".join(map(str, setting.shape))
    rows = [("student", f"{setting.model} at {shape}, {setting.device}; {setting.repeats} measurements, medians")]
    if setting.pool != pools.default():
        rows.append(("pool", f"{setting.pool.kind}: {_pool(setting, 1).source}"))
    for speed in speeds:
        name = counted(speed.workers, "worker")
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
