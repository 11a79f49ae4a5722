"""The parts that work, in this process or on Ray. The only module of the library that knows there are two ways."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdray.config.root import Config
from kdray.errors import ConfigError
from kdray.ledger.store import Ledger
from kdray.observers import Observer
from kdray.runs.inputs import Inputs
from kdray.search.forward import ForwardOptions
from kdray.search.local import LocalSearcher
from kdray.search.requests import Searcher
from kdray.teachers.pool import TeacherPool, make_pool
from kdray.training.base import Trainer
from kdray.training.trainer import LocalTrainer
from kdray.utils.text import counted


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The parts that work.

    Attributes:
        searcher, teachers, trainer: see their protocols.
        open_ledger: the ledger at a path, made with a cap where one is given.
        observers: those that this backend adds to a run, for its open ledger and its name there.
    """

    searcher: Searcher
    teachers: TeacherPool
    trainer: Trainer
    open_ledger: Callable[[Path, int | None], Any]
    observers: Callable[[Any, str], list[Observer]] = lambda ledger, owner: []


def check_backend(config: Config, *, local: bool) -> None:
    """Refuse, before anything is done, what cannot work in this process alone.

    Raises:
        ConfigError: several training workers without Ray.
    """
    workers = config.resources.trainer.workers
    if local and workers > 1:
        raise ConfigError(
            f"resources.trainer.workers is {workers}, which needs Ray; run without --local (local=False), or set it "
            "to 1"
        )


@contextmanager
def open_backend(inputs: Inputs, *, local: bool, observer: Observer) -> Iterator[Backend]:
    """The parts that work: all in this process where `local`, else on Ray actors."""
    config, resources = inputs.config, inputs.config.resources
    chunk = None if resources.chunk == "auto" else resources.chunk
    settings, options = config.search, forward_options(config)
    teachers: TeacherPool = make_pool(inputs.teacher, config.teacher.limits.in_flight)
    if local:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            yield Backend(
                searcher=LocalSearcher(chunk, device, settings, options),
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
    from actors.metrics import RunMetrics
    from actors.scoring import RaySearcher
    from actors.students import RayTrainer
    from actors.teachers import RayTeacherPool

    with connect() as cluster, ExitStack() as stack:
        workers = count_workers(resources.scoring_workers, cluster, resources.scoring_gpus)
        searcher = RaySearcher(
            workers,
            gpus=resources.scoring_gpus,
            chunk=chunk,
            patience_s=resources.patience_s,
            settings=settings,
            options=options,
            grow=resources.scoring_workers == "auto",
        )
        stack.callback(searcher.close)
        if len(inputs.schedule) > 1 + (inputs.copies > 0) and config.select.looks:
            searcher.start()
        asking = resources.teacher_workers
        if asking == "auto":
            asking = workers if config.teacher.local else 1
        if asking:
            slots = config.teacher.limits.in_flight
            teachers = RayTeacherPool(
                inputs.teacher, inputs.build, min(asking, slots), slots=slots, patience_s=resources.patience_s
            )
            teachers.start()
        stack.callback(teachers.close)
        where = resources.trainer.where
        training = resources.trainer.workers
        if where == "auto":
            away = resources.trainer.gpus or training > 1 or (cluster.gpus and not torch.cuda.is_available())
            where = "worker" if away else "driver"
        trainer: Trainer = LocalTrainer(inputs.spec)
        if where == "worker":
            trainer = RayTrainer(
                inputs.spec,
                gpus=resources.trainer.gpus,
                workers=training,
                patience_s=resources.patience_s,
                on_note=observer.note,
            )
            stack.callback(trainer.close)
        observer.note(
            f"Ray ({cluster.address}): {counted(workers, 'scoring worker')}, {counted(asking, 'teacher worker')}, "
            f"training in {f'{training} workers' if training > 1 else f'the {where}'}"
        )
        money = config.budget
        yield Backend(
            searcher=searcher,
            teachers=teachers,
            trainer=trainer,
            open_ledger=RayLedger,
            observers=lambda ledger, owner: [
                RunMetrics(ledger, owner, price=money.price_per_query, currency=money.currency)
            ],
        )


def forward_options(config: Config) -> ForwardOptions:
    """How a config's student is run to score candidates."""
    return ForwardOptions(
        precision=config.resources.scoring_precision,
        compile=config.resources.scoring_compile,
        mixing=config.search.mixing,
    )
