"""From a config to what it names: images, pool, teacher and student, read and checked before anything is paid."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdray.config import Config, schedule
from kdray.errors import ConfigError, ImageSetError
from kdray.images import ImageSet, read_images
from kdray.observers import Observer
from kdray.pools.mixup import MixupPool
from kdray.search.first_layer import split
from kdray.seeds import numpy_generator, torch_seed
from kdray.select import capacity
from kdray.students.export import ModelCard
from kdray.students.fit import StudentSpec
from kdray.students.models import build_model, pixel_statistics
from kdray.students.train import auto_threads, resolve_device
from kdray.teachers.answers import Teacher
from kdray.teachers.build import build_teacher, read_secrets, train_teacher
from kdray.teachers.function import build_function_teacher
from kdray.teachers.http import HttpTeacher
from kdray.teachers.local import class_names


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything a config names, read and checked. Nothing is spent and nothing written to get here.

    Attributes:
        config: with paths made absolute and `trainer.threads` a number.
        images, test: the image sets; `test` may be None.
        pool: the candidates.
        schedule: queries of each round.
        spec: the student.
        build: makes the teacher, here or in a worker.
        teacher: the teacher, made here.
        classes: class names, or None.
    """

    config: Config
    images: ImageSet
    test: ImageSet | None
    pool: MixupPool
    schedule: list[int]
    spec: StudentSpec
    build: Callable[[], Teacher]
    teacher: Teacher
    classes: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Given:
    """Parts handed over from Python, which a config can only name.

    Attributes:
        images, test: image sets; written into the run directory, where the config says they are.
        function: a python teacher's function, in place of its import.
    """

    images: ImageSet | None = None
    test: ImageSet | None = None
    function: Callable | None = None


def resolve(config: Config, recorded: Config | None = None) -> Config:
    """The config as it goes into the run directory: absolute paths, and a number for `auto` threads.

    `recorded` is the config a run directory already holds: a resumed run keeps its thread count.
    """
    data = config.model_dump(mode="json")
    for section in (data["images"], data["test"], (data["teacher"].get("train") or {}).get("images")):
        for key in ("path", "root"):
            if section and section.get(key):
                section[key] = os.path.abspath(section[key])
    if data["teacher"].get("weights"):
        data["teacher"]["weights"] = os.path.abspath(data["teacher"]["weights"])
    if data["ledger"]["path"]:
        data["ledger"]["path"] = os.path.abspath(data["ledger"]["path"])
    if data["teacher"].get("ca"):
        data["teacher"]["ca"] = os.path.abspath(data["teacher"]["ca"])
    trainer = data["resources"]["trainer"]
    if trainer["threads"] == "auto":
        trainer["threads"] = recorded.resources.trainer.threads if recorded else auto_threads(config.student.model)
    return Config.model_validate(data)


def read_candidates(config: Config, given: ImageSet | None = None) -> tuple[ImageSet, MixupPool, list[int]]:
    """The user's images (`given`, or read), the pool over them, and the queries of each round.

    Raises:
        ImageSetError: images that cannot be read.
        ConfigError: a budget below what round 0 needs, or above what the pool holds.
    """
    images = given or read_images(config.images, generator=numpy_generator(config.seed, "images"))
    queries = schedule(config.budget.queries, len(images), config.select.rounds, config.select.per_round)
    pool = make_pool(config, images)
    room = capacity(config.select.strategy, pool)
    if sum(queries[1:]) > room:
        raise ConfigError(
            f"budget.queries: {sum(queries[1:]):,} candidates are to be chosen after round 0, but {len(images):,} "
            f"images give only {room:,} for {config.select.strategy}; "
            f"lower budget.queries to {queries[0] + room:,} or raise images.count"
        )
    return images, pool, queries


def make_pool(config: Config, images: ImageSet) -> MixupPool:
    """The pool a config describes over `images`."""
    pairs = None if config.pool.pairs == "all" else config.pool.pairs
    return MixupPool(images.images, config.pool.grid(), pairs, torch_seed(config.seed, "pairs"))


def read_inputs(config: Config, *, observer: Observer | None = None, given: Given | None = None) -> Inputs:
    """Read and check what `config` names; trains a local teacher whose weights are not there but whose recipe is.

    Args:
        given: parts that come from Python in place of files.

    Raises:
        KdrayError: of the kind and with the field of what is wrong.
    """
    observer = observer or Observer()
    given = given or Given()
    images, pool, queries = read_candidates(config, given.images)
    test = None
    if config.test is not None:
        test = given.test or read_images(
            config.test, generator=numpy_generator(config.seed, "test"), field="test", with_labels=True
        )
        if test.image_shape != images.image_shape:
            raise ImageSetError(
                f"test: its images have shape {test.image_shape}, the images to distil with {images.image_shape}; "
                "set size and colour of both alike"
            )
        if int(test.labels.min()) < 0:
            raise ImageSetError(f"test: label {int(test.labels.min())} found; every test image needs its true label")
    _check_student(config, images.image_shape)
    _train_missing_teacher(config.teacher, images.image_shape, observer)
    if given.function is not None:
        build: Callable[[], Teacher] = partial(build_function_teacher, config.teacher, given.function)
    else:
        secrets = read_secrets(config.teacher)
        build = partial(build_teacher, config.teacher, images.image_shape, os.getcwd(), secrets)
    teacher = build()
    if isinstance(teacher, HttpTeacher):
        teacher.check()
    if test is not None and int(test.labels.max()) >= teacher.num_classes:
        raise ImageSetError(
            f"test: label {int(test.labels.max())} found, but the teacher has {teacher.num_classes} classes"
        )
    classes = class_names(config.teacher)
    mean, std = pixel_statistics(images.images)
    card = ModelCard(
        model=config.student.model, image_shape=images.image_shape, num_classes=teacher.num_classes, classes=classes
    )
    threads = config.resources.trainer.threads
    spec = StudentSpec(card=card, mean=mean, std=std, recipe=config.student, seed=config.seed, threads=threads)
    return Inputs(
        config=config,
        images=images,
        test=test,
        pool=pool,
        schedule=queries,
        spec=spec,
        build=build,
        teacher=teacher,
        classes=classes,
    )


def _check_student(config: Config, image_shape: tuple[int, int, int]) -> None:
    """Refuse what training would refuse after the first answers were paid."""
    if config.student.augment.shift >= min(image_shape[1:]):
        raise ConfigError(
            f"student.augment.shift: {config.student.augment.shift} pixels do not fit "
            f"images of {image_shape[1]}x{image_shape[2]}"
        )
    resolve_device(config.student.device, "student.device")
    student = build_model(config.student.model, image_shape, 2, seed=0)  # refuses images too small for it
    if config.pool.mixing == "first-layer" and split(student) is None:
        raise ConfigError(
            f"pool.mixing: the first layer of {config.student.model} cannot be taken apart from the rest; "
            "set it to auto or pixels"
        )


def _train_missing_teacher(config, image_shape: tuple[int, int, int], observer: Observer) -> None:
    if config.kind != "local" or config.train is None or Path(config.weights).exists():
        return
    observer.note(f"the teacher's weights are not there yet: training {config.model} once")
    train_teacher(config, lambda done, loss: observer.progress(done, config.train.epochs), image_shape=image_shape)
    observer.note(f"teacher written to {config.weights}; from here on it is only queried")
