"""`kdray plan`: what a config would do and cost. It reads the images and times the student for two seconds, or for as
long as the run would take; it sends no query."""

import os
import resource
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

from kdray.config.root import Config
from kdray.models.classifier import build_model, pixel_statistics
from kdray.pools.remade import Basis, RemadePool, is_remade
from kdray.runs.backend import forward_options
from kdray.runs.evaluation import queries_allowed, unlabelled_note
from kdray.runs.inputs import Data, read_data, resolve
from kdray.runs.pool_schedule import PoolSchedule
from kdray.search.forward import one_thread
from kdray.search.local import probe
from kdray.select import balanced
from kdray.training.workload import Training, probed, seconds_of, workload
from kdray.utils.devices import cpu_threads, resolve_device
from kdray.utils.lazy import torch
from kdray.utils.text import counted

PROBE_S = 2.0  # at most, of scoring, and of making candidates
_TRAINING_PROBE_S = 0.4
_UNKNOWN_CLASSES = 10
_LONG_S = 600.0  # of scoring, and of training: above it the plan says how to take less


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do.

    Attributes:
        images: real images.
        groups, candidates: size of the pool, all kinds together.
        schedule: queries of each round, without those for an estimate.
        estimate: queries for an estimate of RAD's m, before round 1.
        copies: of the queries those of the last round, if that asks about augmented copies; else 0.
        again: of the queries those about images that an earlier round has asked about.
        seen: what the teacher sees of an image, in words, where the student sees another; else None.
        test: test images; 0 without a test set.
        test_labels: whether they have labels.
        evaluation: queries on test images, counted apart.
        evaluation_cost: price of these, or None.
        free: whether the teacher bills nothing.
        cost: price of all training queries, or None.
        currency: of the cost.
        requests: training requests to the teacher, of up to `batch` images each.
        batch: images a request.
        asking_s: seconds those take at least, by the limits on the rate; None where there are none.
        asking_days: days they take at least, by the daily quota.
        scored: forward passes of the student to choose, over all rounds, in images.
        exhaustive: what they would be were every candidate scored.
        group_size: candidates of a group.
        pairs: how many pairs to sample so that scoring takes about ten minutes; None where it is shorter, or where a
            sample does not help.
        rate_per_s: candidates a second, all workers together, from a probe of one; 0 where nothing is scored.
        workers: scoring workers assumed.
        worker_bytes: peak resident memory of the probe, which stands for a worker.
        driver_bytes: held in the driver by the choice, at most, where that is much.
        held: the same in words.
        note: what could not be known.
        kinds: of candidates, of which the best is found out.
        notes: how the images were read, see `kdray.images.ImageSet`.
        grid: whether the candidates of a group are at the λ of a grid.
        made: candidates that each round makes anew, in words; None where all rounds choose from the same.
        trainings: of all rounds.
        training_s: seconds they take here, from a probe.
        shorter_s: seconds they would take with student.steps_factor=1.
    """

    images: int
    groups: int
    candidates: int
    schedule: list[int]
    estimate: int
    seen: str | None
    test: int
    test_labels: bool
    evaluation: int
    evaluation_cost: float | None
    free: bool
    cost: float | None
    currency: str
    requests: int
    batch: int
    asking_s: float | None
    asking_days: int
    scored: int
    exhaustive: int
    group_size: int
    rate_per_s: float
    pairs: int | None
    workers: int
    worker_bytes: int
    driver_bytes: int
    held: str
    note: str | None
    trainings: tuple[Training, ...]
    training_s: float
    shorter_s: float
    notes: tuple[str, ...] = ()
    kinds: int = 1
    copies: int = 0
    again: int = 0
    grid: bool = True
    made: str | None = None

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
    data = read_data(config)
    pooled = data.pooled
    images, schedule, strategy = pooled.images, pooled.schedule, config.select
    pool, trial = pooled.kinds[0], len(pooled.kinds) > 1  # of several kinds the first stands for that which is found
    known, note = _classes(config, data)
    classes = known or _UNKNOWN_CLASSES
    wanted = config.resources.scoring_workers
    workers = wanted if isinstance(wanted, int) else len(os.sched_getaffinity(0))
    later, paid = pooled.chosen, sum(schedule) + pooled.estimate
    scored = max(
        sum(balanced.passes(strategy, kind, queries, config.search) for queries in later) for kind in pooled.kinds
    )
    rate = _probe(config, pooled, classes, probe_s, scored) if strategy.looks and later else 0.0
    long = rate > 0 and scored / (rate * workers) > _LONG_S
    limits = config.teacher.limits
    rates = [bucket.rate_per_s for bucket in limits.buckets().values()]
    requests = sum(-(-queries // config.teacher.batch_size) for queries in (*schedule, pooled.estimate))
    price = config.budget.price_per_query
    test = data.test
    free = config.teacher.local or getattr(config.teacher, "metered", True) is False
    evaluation = queries_allowed(config.budget.evaluation, len(test) if test else 0, metered=not free)
    given = 0 if data.labelled is None else len(data.labelled)
    sampled = pooled.estimate if config.validation is None else 0  # these the student learns as well
    bought = [given + bought + sampled * (number > 0) for number, bought in enumerate(accumulate(schedule))]
    if config.student.replay == "none":
        bought = [given + queries for queries in schedule]
    tried = (len(pooled.kinds), given + schedule[0] * 2 // 3 + schedule[1] // len(pooled.kinds)) if trial else None
    trainings = workload(config.student, bought, images.image_shape, tried)
    shorter = workload(config.student.model_copy(update={"steps_factor": 1.0}), bought, images.image_shape, tried)
    threads = config.resources.trainer.thread_count
    seconds = probed(trainings, config.student, images.image_shape, classes, probe_s=_TRAINING_PROBE_S, threads=threads)
    return Plan(
        images=len(images),
        groups=sum(kind.num_groups for kind in pooled.kinds),
        candidates=len(pooled.pool),
        kinds=len(pooled.kinds),
        schedule=schedule,
        estimate=pooled.estimate,
        copies=pooled.copies,
        again=sum(pooled.again),
        seen=_seen(config, images.image_shape),
        test=len(test) if test else 0,
        test_labels=test is not None and test.labels is not None,
        evaluation=evaluation,
        evaluation_cost=None if price is None or free else price * evaluation,
        free=free,
        cost=None if price is None else price * paid,
        currency=config.budget.currency,
        requests=requests,
        batch=config.teacher.batch_size,
        asking_s=max((requests - limits.burst) / rate for rate in rates) if rates else None,
        asking_days=-(-paid // limits.queries_per_day) if limits.queries_per_day else 1,
        scored=scored,
        exhaustive=len(pool) * len(later) * strategy.looks,
        group_size=pool.group_size,
        rate_per_s=rate * workers,
        pairs=_fewer_pairs(config, pooled, _LONG_S * rate * workers) if long else None,
        workers=workers,
        worker_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        driver_bytes=max(balanced.driver_bytes(strategy, kind, max(later, default=0)) for kind in pooled.kinds),
        held=strategy.held,
        note=note,
        notes=(*data.notes(), *_making(config, pooled, known, probe_s)),
        grid=pool.linear,
        made=_made(config, pooled),
        trainings=tuple(trainings),
        training_s=seconds_of(trainings, seconds),
        shorter_s=seconds_of(shorter, seconds),
    )


def _classes(config: Config, data: Data) -> tuple[int | None, str | None]:
    """Number of classes, or None, and what to say of a teacher that is not there. Checks the teacher as far as that
    costs nothing."""
    count = config.teacher.count_classes(config.teacher.input.shape(data.pooled.images.image_shape))
    if config.teacher.missing():
        return count, "the teacher's weights are not there yet: 'kdray run' trains them once"
    data.of_teacher(config, count, config.teacher.class_names())
    return count, None


def _fewer_pairs(config: Config, pooled: PoolSchedule, passes: float) -> int | None:
    """The largest sample of pairs whose scoring takes so many forward passes at most, in whole thousands."""
    if "pairs" not in type(config.pool).model_fields:
        return None
    later, settings = pooled.chosen, config.search

    def is_too_much(thousands: int) -> bool:
        section = config.pool.model_copy(update={"pairs": 1000 * thousands})
        pool = section.build(pooled.images.images, config.seed)
        return sum(balanced.passes(config.select, pool, queries, settings) for queries in later) > passes

    most = pooled.pool.num_groups // 1000
    found = bisect_left(range(1, most + 1), True, key=is_too_much)  # thousands that are not too much
    return 1000 * found if 1000 * found > sum(later) and found < most else None


def _probe(config: Config, pooled: PoolSchedule, classes: int, seconds: float, scored: int) -> float:
    """Candidates a second that one worker scores, on one thread as a worker has it; the run scores `scored`."""
    mean, std = pixel_statistics(pooled.images.images)
    shape = pooled.images.image_shape
    model = build_model(config.student.model, shape, classes, seed=config.seed, mean=mean, std=std)
    with one_thread():
        options = forward_options(config)
        return probe(pooled.kinds[0], model, seconds, time.monotonic, options=options, enough=scored)


def _made(config: Config, pooled: PoolSchedule) -> str | None:
    if not is_remade(pooled.pool):
        return None
    return "as many candidates as it asks about" if config.pool.exact else f"{len(pooled.pool):,} candidates"


def _making(config: Config, pooled: PoolSchedule, known: int | None, probe_s: float) -> list[str]:
    """What to say of candidates that each round makes anew; `known` is the number of classes, if that is known."""
    pool, rounds = pooled.pool, len(pooled.chosen)
    if not rounds or not is_remade(pool):
        return []
    text = f"each of {counted(rounds, 'round')} makes its own candidates (pool.kind: {config.pool.kind})"
    if not config.pool.untaught:
        return [f"{text}; how long that takes depends on the answers"]
    shape, classes = pooled.images.image_shape, known or _UNKNOWN_CLASSES
    mean, std = pixel_statistics(pooled.images.images)
    student = build_model(config.student.model, shape, classes, seed=config.seed, mean=mean, std=std)
    basis = Basis(
        number=1,
        student=student.eval().requires_grad_(False),
        images=pooled.images.images[:0],
        targets=torch.empty(0, classes),
        device=resolve_device(config.student.device, "student.device"),
    )
    with cpu_threads(config.resources.trainer.thread_count):
        each = seconds_of_making(pool, basis, probe_s)
    told = f"{text}: about {_time(each * rounds)} here in all, beside scoring and training"
    return [told, *(pooled.sized.notes_on(known) if known else ())]


class _SeenEnough(Exception):
    """Ends a probe."""


def seconds_of_making(
    pool: RemadePool, basis: Basis, probe_s: float, clock: Callable[[], float] = time.monotonic
) -> float:
    """Seconds in which a round makes its candidates; after `probe_s`, those of all steps by those done so far."""
    begin = clock()

    def look(done: int, of: int) -> None:
        if done < of and (spent := clock() - begin) > probe_s:
            raise _SeenEnough(spent * of / done)

    try:
        pool.make(replace(basis, on_progress=look))
    except _SeenEnough as found:
        return float(found.args[0])
    return clock() - begin


def plan_lines(plan: Plan) -> list[tuple[str, str]]:
    """The plan as (what, value) rows."""
    rows = [
        ("images", f"{plan.images:,}" + (f"; the teacher is asked about {plan.seen}" if plan.seen else "")),
        ("pool", _pool(plan)),
        ("queries", f"{sum(plan.schedule) + plan.estimate:,} = " + _rounds(plan)),
        ("evaluation", _evaluation(plan)),
        ("cost", "unknown: set budget.price_per_query" if plan.cost is None else f"{plan.cost:,.2f} {plan.currency}"),
        ("asking", _asking(plan)),
        ("scoring", _duration(plan)),
        ("training", _training(plan)),
        ("memory", _memory(plan)),
    ]
    return rows + [("note", note) for note in (*plan.notes, plan.note) if note]


def _seen(config: Config, shape: tuple[int, int, int]) -> str | None:
    """What the teacher sees of images (C, H, W), in words; None where it sees the images themselves."""
    seen = config.teacher.input
    if not seen.changes(shape):
        return None
    channels, height, width = seen.shape(shape)
    colour = "grey" if channels == 1 else "BGR" if seen.colour == "bgr" else "RGB"
    return f"{height}x{width} {colour}, resized ({seen.resize})" if seen.size else f"{height}x{width} {colour}"


def _evaluation(plan: Plan) -> str:
    if not plan.test:
        return "none: there is no test set"
    if not plan.evaluation:
        if not plan.test_labels:
            return unlabelled_note(plan.test, 0)
        return f"0 queries; the student's accuracy on {plan.test:,} labelled test images"
    cost = "" if plan.evaluation_cost is None else f" for {plan.evaluation_cost:,.2f} {plan.currency}"
    text = f"{plan.evaluation:,} queries" + (", free" if plan.free else f"{cost}, counted apart")
    return text if plan.test_labels else f"{text}; {unlabelled_note(plan.test, plan.evaluation)}"


def _asking(plan: Plan) -> str:
    text = f"{counted(plan.requests, 'request')} of up to {counted(plan.batch, 'image')}"
    if plan.asking_s is not None:
        text += f"; at least {max(0.0, plan.asking_s):,.0f} s at the limits"
    return text + (f"; {plan.asking_days:,} days by the daily quota" if plan.asking_days > 1 else "")


def _memory(plan: Plan) -> str:
    text = f"{plan.worker_bytes / 2**20:,.0f} MiB a worker, measured; the same for any pool size"
    if not plan.driver_bytes:
        return text
    return f"{text}; in the driver up to {plan.driver_bytes / 2**20:,.0f} MiB for {plan.held}"


def _pool(plan: Plan) -> str:
    if plan.made is not None:
        return f"each round makes {plan.made}"
    kinds = f"{plan.kinds} kinds of candidates: " if plan.kinds > 1 else ""
    return f"{kinds}{plan.groups:,} groups, {plan.candidates:,} candidates (virtual: rendered when needed)"


def _rounds(plan: Plan) -> str:
    schedule, told = list(plan.schedule), f" + {plan.estimate:,} for the estimate of m" if plan.estimate else ""
    if plan.kinds > 1:
        told = f" + {schedule.pop(1):,} to try {plan.kinds} kinds of candidates"
    copies = f" + {schedule.pop():,} for augmented copies" if plan.copies else ""
    later = schedule[1:]
    if plan.again:
        new = later[0] - schedule[0]
        return f"{schedule[0]:,} for the images + {len(later)} x {new:,} + {plan.again:,} that ask again"
    if len(set(later)) == 1:
        return f"{schedule[0]:,} for the images{told} + {len(later)} x {later[0]:,}{copies}"
    return f"{schedule[0]:,}{told}" + "".join(f" + {count:,}" for count in later) + copies


def _duration(plan: Plan) -> str:
    if not plan.scored:
        choosing = len(plan.schedule) - 1 - (plan.kinds > 1) - (plan.copies > 0)
        return f"none: {'this strategy does not look at the student' if choosing else 'no round chooses candidates'}"
    seconds = plan.scoring_s
    fewer = f", {plan.exhaustive / plan.scored:.1f} times fewer than all" if plan.scored < plan.exhaustive else ""
    text = (
        f"about {_time(seconds)} for {plan.scored:,} forward passes{fewer}, with {counted(plan.workers, 'worker')} "
        f"({plan.rate_per_s:,.0f} candidates/s, from a probe of one here)"
    )
    if seconds <= _LONG_S:
        return text
    if plan.group_size > 1 and plan.scored >= plan.groups:
        one = _time(plan.groups / plan.rate_per_s)
        if plan.grid:
            text += f"; one λ of all {plan.groups:,} pairs takes {one}, and the grid has {plan.group_size}"
        else:
            text += f"; one candidate of each of the {plan.groups:,} groups takes {one}, and each has {plan.group_size}"
    return text + (f"; pool.pairs={plan.pairs} would take about {_time(_LONG_S)}" if plan.pairs else "")


def _training(plan: Plan) -> str:
    last = plan.trainings[-1]
    beside = sum(training.number for training in plan.trainings[len(plan.schedule) - 1 + (plan.kinds > 1) :]) - 1
    others = f" and {counted(beside, 'network')} beside it" if beside else ""
    text = (
        f"about {_time(plan.training_s)} here: the last student for {last.steps:,} steps of {last.batch} images{others}"
    )
    if plan.training_s <= _LONG_S or plan.shorter_s > 0.9 * plan.training_s:
        return text
    return f"{text}; student.steps_factor=1 would take about {_time(plan.shorter_s)}, see docs/training.md"


def _time(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 36_000 else f"{seconds / 3600:,.1f} h"
