"""`kdray plan`: what a config would do and cost. Reads the images, probes the student for two seconds, asks nobody."""

import multiprocessing
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kdray.config import Config
from kdray.engine import forward_options, method
from kdray.errors import TeacherError
from kdray.inputs import read_candidates, resolve
from kdray.ledger.limits import Limits
from kdray.search import probe
from kdray.select import STRATEGIES, driver_bytes, expected
from kdray.students.export import read_card
from kdray.students.models import build_model, pixel_statistics
from kdray.teachers.build import build_teacher

PROBE_S = 2.0
_UNKNOWN_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do.

    Attributes:
        images: real images.
        groups, candidates: size of the pool.
        schedule: queries of each round, without those for an estimate.
        estimate: queries for an estimate of RAD's m, before round 1.
        evaluation: queries on test images, counted apart; None where all test images are asked of a local teacher.
        cost: price of all training queries, or None.
        currency: of the cost.
        requests: training requests to the teacher, of up to `batch` images each.
        batch: images a request.
        asking_s: seconds those take at least, by the limits on the rate; None where there are none.
        asking_days: days they take at least, by the daily quota.
        scored: forward passes of the student to choose, over all rounds, in images.
        exhaustive: what they would be were every candidate scored.
        rate_per_s: candidates a second, all workers together, as probed.
        workers: scoring workers assumed.
        worker_bytes: peak resident memory of one probed worker.
        driver_bytes: held in the driver by the choice, at most, where that is much.
        held: the same in words.
        note: what could not be known.
    """

    images: int
    groups: int
    candidates: int
    schedule: list[int]
    estimate: int
    evaluation: int | None
    cost: float | None
    currency: str
    requests: int
    batch: int
    asking_s: float | None
    asking_days: int
    scored: int
    exhaustive: int
    rate_per_s: float
    workers: int
    worker_bytes: int
    driver_bytes: int
    held: str
    note: str | None

    @property
    def scoring_s(self) -> float:
        """Estimated seconds of scoring, all rounds together."""
        return self.scored / self.rate_per_s if self.rate_per_s else 0.0


def make_plan(config: Config, probe_s: float = PROBE_S) -> Plan:
    """Work out what `config` would do.

    Raises:
        KdrayError: what `kdray run` would refuse before paying.
    """
    config = resolve(config)
    candidates = read_candidates(config)
    images, pool, schedule = candidates.images, candidates.pool, candidates.schedule
    classes, note = _classes(config, images.image_shape)
    cores = len(os.sched_getaffinity(0))
    wanted = config.resources.scoring_workers
    workers = wanted if isinstance(wanted, int) else cores
    at_once = min(workers, cores)
    choice, later = config.select, schedule[1:]
    asks = STRATEGIES[choice.strategy].asks
    score = choice.gain if STRATEGIES[choice.strategy].mistakes else choice.score
    paid = sum(schedule) + candidates.estimate
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, mp_context=context) as executor:
        probes = [executor.submit(_probe, config, classes, probe_s) for _ in range(at_once)]
        results = [future.result() for future in probes]
    limits = config.teacher.limits
    rates = [bucket.rate_per_s for bucket in Limits(**limits.model_dump()).buckets().values()]
    requests = sum(-(-queries // config.teacher.batch_size) for queries in (*schedule, candidates.estimate))
    price = config.budget.price_per_query
    local = config.teacher.kind == "local"
    evaluation = config.budget.evaluation
    return Plan(
        images=len(images),
        groups=pool.num_groups,
        candidates=len(pool),
        schedule=schedule,
        estimate=candidates.estimate,
        evaluation=(None if local else 0) if evaluation == "auto" else evaluation,
        cost=None if price is None else price * paid,
        currency=config.budget.currency,
        requests=requests,
        batch=config.teacher.batch_size,
        asking_s=max((requests - limits.burst) / rate for rate in rates) if rates else None,
        asking_days=-(-paid // limits.queries_per_day) if limits.queries_per_day else 1,
        scored=sum(expected(choice.strategy, pool, queries, method(config), score) for queries in later),
        exhaustive=len(pool) * len(later) * asks,
        rate_per_s=sum(rate for rate, _ in results) / at_once * workers,
        workers=workers,
        worker_bytes=max(peak for _, peak in results),
        driver_bytes=driver_bytes(choice.strategy, pool, max(later, default=0)),
        held=STRATEGIES[choice.strategy].held,
        note=note,
    )


def _classes(config: Config, shape: tuple[int, int, int]) -> tuple[int, str | None]:
    """Number of classes, and what to say where it is not known. Checks the teacher as far as that costs nothing."""
    teacher = config.teacher
    if teacher.kind == "local" and teacher.train is not None and not Path(teacher.weights).exists():
        known = teacher.classes if isinstance(teacher.classes, int) else len(teacher.classes or ())
        return known or _UNKNOWN_CLASSES, "the teacher's weights are not there yet: 'kdray run' trains them once"
    if teacher.kind == "local" and teacher.model and not teacher.model.startswith("torchvision/"):
        card = read_card(teacher.weights) if Path(teacher.weights).exists() else None
        if card is not None and tuple(card.image_shape) != tuple(shape):
            raise TeacherError(
                f"the teacher takes images of shape {card.image_shape}, but the images have {tuple(shape)}; "
                "set images.size"
            )
    return build_teacher(teacher, shape).num_classes, None


def _probe(config: Config, classes: int, seconds: float) -> tuple[float, int]:
    """In a process of its own, as a worker: its rate and its peak resident memory in bytes."""
    import torch

    torch.set_num_threads(1)
    candidates = read_candidates(config)
    images, pool = candidates.images, candidates.pool
    mean, std = pixel_statistics(images.images)
    model = build_model(config.student.model, images.image_shape, classes, seed=config.seed, mean=mean, std=std)
    rate = probe(pool, model, seconds, time.monotonic, **forward_options(config))
    return rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def plan_lines(plan: Plan) -> list[tuple[str, str]]:
    """The plan as (what, value) rows."""
    rows = [
        ("images", f"{plan.images:,}"),
        ("pool", f"{plan.groups:,} groups, {plan.candidates:,} candidates (virtual: rendered when needed)"),
        ("queries", f"{sum(plan.schedule) + plan.estimate:,} = " + _rounds(plan.schedule, plan.estimate)),
        (
            "evaluation",
            "test images, free: the teacher is local"
            if plan.evaluation is None
            else f"{plan.evaluation:,} queries, counted apart",
        ),
        ("cost", "unknown: set budget.price_per_query" if plan.cost is None else f"{plan.cost:,.2f} {plan.currency}"),
        ("asking", _asking(plan)),
        ("scoring", _duration(plan)),
        ("memory", _memory(plan)),
    ]
    return rows + ([("note", plan.note)] if plan.note else [])


def _asking(plan: Plan) -> str:
    text = f"{plan.requests:,} requests of up to {plan.batch:,} images"
    if plan.asking_s is not None:
        text += f"; at least {max(0.0, plan.asking_s):,.0f} s at the limits"
    return text + (f"; {plan.asking_days:,} days by the daily quota" if plan.asking_days > 1 else "")


def _memory(plan: Plan) -> str:
    text = f"{plan.worker_bytes / 2**20:,.0f} MiB a worker, measured; the same for any pool size"
    if not plan.driver_bytes:
        return text
    return f"{text}; in the driver up to {plan.driver_bytes / 2**20:,.0f} MiB for {plan.held}"


def _rounds(schedule: list[int], estimate: int) -> str:
    later = schedule[1:]
    told = f" + {estimate:,} for the estimate of m" if estimate else ""
    if len(set(later)) == 1:
        return f"{schedule[0]:,} for the images{told} + {len(later)} x {later[0]:,}"
    return f"{schedule[0]:,}{told} + " + " + ".join(f"{count:,}" for count in later) if later else f"{schedule[0]:,}"


def _duration(plan: Plan) -> str:
    if not plan.scored:
        return "none: this choice does not look at the student"
    seconds = plan.scoring_s
    text = (
        f"{seconds:,.0f} s"
        if seconds < 600
        else f"{seconds / 60:,.0f} min"
        if seconds < 36_000
        else f"{seconds / 3600:,.1f} h"
    )
    fewer = f", {plan.exhaustive / plan.scored:.1f} times fewer than all" if plan.scored < plan.exhaustive else ""
    return (
        f"about {text} for {plan.scored:,} forward passes{fewer}, with {plan.workers} workers "
        f"({plan.rate_per_s:,.0f} candidates/s, from a {PROBE_S:.0f}-second probe here)"
    )
