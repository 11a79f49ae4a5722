"""The parts that work, in this process or on Ray. The only module of the library that knows there are two ways."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdray.config import Config
from kdray.inputs import Inputs
from kdray.ledger.limits import Limits
from kdray.ledger.store import LEASE_S, Ledger
from kdray.observers import Observer
from kdray.purchase import Terms
from kdray.rounds import Trainer
from kdray.search import LocalSearcher, Method, Searcher
from kdray.select import STRATEGIES, Mistakes, Options
from kdray.students.fit import LocalTrainer
from kdray.teachers.http import HttpTeacher, HttpTeacherPool
from kdray.teachers.pool import LocalTeacherPool, TeacherPool
from kdray.teachers.retry import Patience, RetryPolicy

_LEASE_GRACE_S = 30.0  # after a request has timed out, for whoever sent it to say so


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The parts that work.

    Attributes:
        searcher, teachers, trainer: see their protocols.
        open_ledger: the ledger at a path, made with a cap where one is given.
    """

    searcher: Searcher
    teachers: TeacherPool
    trainer: Trainer
    open_ledger: Callable[[Path, int | None], Any]


@contextmanager
def engine(inputs: Inputs, *, local: bool, observer: Observer) -> Iterator[Engine]:
    """The parts that work: all in this process where `local`, else on Ray actors."""
    config, resources = inputs.config, inputs.config.resources
    chunk = None if resources.chunk == "auto" else resources.chunk
    teachers: TeacherPool = LocalTeacherPool(inputs.teacher)
    if isinstance(inputs.teacher, HttpTeacher):
        teachers = HttpTeacherPool(inputs.teacher, config.teacher.limits.in_flight)
    if local:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            yield Engine(
                searcher=LocalSearcher(chunk, device, method(config), **forward_options(config)),
                teachers=teachers,
                trainer=LocalTrainer(inputs.spec),
                open_ledger=Ledger,
            )
        finally:
            teachers.close()
        return

    from actors import environment

    environment.prepare()  # before the next line, which imports Ray
    from actors.cluster import connect, count_workers
    from actors.ledger import RayLedger
    from actors.scoring import RaySearcher
    from actors.students import RayTrainer
    from actors.teachers import RayTeacherPool

    with connect() as cluster, ExitStack() as stack:
        workers = count_workers(resources.scoring_workers, cluster.cpus)
        searcher = RaySearcher(
            workers,
            gpus=resources.scoring_gpus,
            chunk=chunk,
            method=method(config),
            options=forward_options(config),
            grow=resources.scoring_workers == "auto",
        )
        stack.callback(searcher.close)
        if len(inputs.schedule) > 1 and STRATEGIES[config.select.strategy].asks:
            searcher.start()
        asking = resources.teacher_workers
        if asking == "auto":
            asking = workers if config.teacher.kind == "local" else 1
        if asking:
            slots = config.teacher.limits.in_flight
            teachers = RayTeacherPool(inputs.teacher, inputs.build, min(asking, slots), slots=slots)
            teachers.start()
        stack.callback(teachers.close)
        where = resources.trainer.where
        if where == "auto":
            where = "worker" if resources.trainer.gpus or (cluster.gpus and not torch.cuda.is_available()) else "driver"
        trainer: Trainer = LocalTrainer(inputs.spec)
        if where == "worker":
            trainer = RayTrainer(inputs.spec, gpus=resources.trainer.gpus)
        observer.note(
            f"Ray ({cluster.address}): {workers} scoring workers, {asking} teacher workers, training in the {where}"
        )
        yield Engine(searcher=searcher, teachers=teachers, trainer=trainer, open_ledger=RayLedger)


def method(config: Config) -> Method:
    """How a config's pool is searched."""
    pool = config.pool
    return Method(search=pool.search, keep=pool.keep, min_recall=pool.min_recall, audit=pool.audit)


def options(config: Config) -> Options:
    """What a config says about the choice; m only where it is not estimated."""
    choice = config.select
    mistakes = Mistakes()
    if choice.m != "estimate":
        mistakes = Mistakes(count=choice.m) if isinstance(choice.m, int) else Mistakes(share=choice.m)
    return Options(
        score=choice.score,
        gain=choice.gain,
        w=None if choice.w == "auto" else choice.w,
        mistakes=mistakes,
        shrink=choice.clip == "shrink",
    )


def forward_options(config: Config) -> dict[str, str]:
    """How a config's student is scored with; see `kdray.search.forward.Forward`."""
    resources = config.resources
    options = {"precision": resources.scoring_precision, "compile": resources.scoring_compile}
    return options | {"mixing": config.pool.mixing}


def terms(config: Config, metered: bool) -> Terms:
    """On what terms a config's teacher may be asked."""
    teacher, limits = config.teacher, config.teacher.limits
    http = teacher.kind == "http"
    # A local model nobody set a limit for needs no counting.
    free = not metered and limits == type(limits)()
    return Terms(
        limits=None if free else Limits(**limits.model_dump()),
        patience=Patience(RetryPolicy(**teacher.retry.model_dump())),
        lease_s=teacher.timeout_s + _LEASE_GRACE_S if http else LEASE_S,
        probe=http and metered,
    )
