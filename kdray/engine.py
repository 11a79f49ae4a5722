"""The parts that work, in this process or on Ray. The only module of the library that knows there are two ways."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from kdray.config import Config
from kdray.inputs import Inputs
from kdray.observers import Observer
from kdray.rounds import Trainer
from kdray.search import LocalSearcher, Searcher
from kdray.students.fit import LocalTrainer
from kdray.teachers.pool import LocalTeacherPool, Pacer, TeacherPool

Engine = tuple[Searcher, TeacherPool, Trainer]


@contextmanager
def engine(inputs: Inputs, *, local: bool, observer: Observer) -> Iterator[Engine]:
    """The parts that work: all in this process where `local`, else on Ray actors."""
    config, resources = inputs.config, inputs.config.resources
    burst = config.teacher.burst or teacher_batch(config)
    pacer = Pacer(config.teacher.rate_per_s, burst)
    in_process = LocalTeacherPool(inputs.teacher, pacer)
    if local:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        yield LocalSearcher(resources.chunk, device), in_process, LocalTrainer(inputs.spec)
        return

    from actors import environment

    environment.prepare()  # before the next line, which imports Ray
    from actors.cluster import connect, count_workers
    from actors.scoring import RaySearcher
    from actors.students import RayTrainer
    from actors.teachers import RayTeacherPool

    with connect() as cluster, ExitStack() as stack:
        workers = count_workers(resources.scoring_workers, cluster.cpus)
        searcher = RaySearcher(workers, gpus=resources.scoring_gpus, chunk=resources.chunk)
        stack.callback(searcher.close)
        if len(inputs.schedule) > 1 and config.select.strategy != "random":
            searcher.start()
        asking = resources.teacher_workers
        if asking == "auto":
            asking = workers if config.teacher.kind == "local" else 1
        teachers: TeacherPool = in_process
        if asking:
            teachers = RayTeacherPool(inputs.teacher, inputs.build, asking, pacer)
            stack.callback(teachers.close)
            teachers.start()
        where = resources.trainer.where
        if where == "auto":
            where = "worker" if resources.trainer.gpus or (cluster.gpus and not torch.cuda.is_available()) else "driver"
        trainer: Trainer = LocalTrainer(inputs.spec)
        if where == "worker":
            trainer = RayTrainer(inputs.spec, gpus=resources.trainer.gpus)
        observer.note(
            f"Ray ({cluster.address}): {workers} scoring workers, {asking} teacher workers, training in the {where}"
        )
        yield searcher, teachers, trainer


def teacher_batch(config: Config) -> int:
    """Images a teacher batch: never more than may go at once."""
    size = config.teacher.batch_size
    return min(size, config.teacher.burst) if config.teacher.rate_per_s and config.teacher.burst else size
