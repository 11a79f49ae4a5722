"""From a config to what it names: images, pool, teacher and student, read and checked before anything is paid."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdray.config import Config, estimate_queries, schedule
from kdray.errors import ConfigError, ImageSetError, ModelError
from kdray.estimate import Estimation
from kdray.images import ImageSet, read_images
from kdray.observers import Observer
from kdray.pools.images import ImagePool
from kdray.pools.mixup import MixupPool
from kdray.search.first_layer import split
from kdray.seeds import numpy_generator, torch_seed
from kdray.select import STRATEGIES, capacity, driver_bytes
from kdray.students.export import ModelCard
from kdray.students.features import head
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
        images, labelled, test: the image sets; `labelled` and `test` may be None.
        pool: the candidates.
        schedule: queries of each round, without those for an estimate.
        estimation: how RAD's m is found out; None where the config says it.
        spec: the student.
        build: makes the teacher, here or in a worker.
        teacher: the teacher, made here.
        classes: class names, or None.
    """

    config: Config
    images: ImageSet
    labelled: ImageSet | None
    test: ImageSet | None
    pool: MixupPool | ImagePool
    schedule: list[int]
    estimation: Estimation | None
    spec: StudentSpec
    build: Callable[[], Teacher]
    teacher: Teacher
    classes: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Given:
    """Parts handed over from Python, which a config can only name.

    Attributes:
        images, labelled, validation, test: image sets; written into the run directory, where the config says they are.
        function: a python teacher's function, in place of its import.
    """

    images: ImageSet | None = None
    labelled: ImageSet | None = None
    validation: ImageSet | None = None
    test: ImageSet | None = None
    function: Callable | None = None


def resolve(config: Config, recorded: Config | None = None) -> Config:
    """The config as it goes into the run directory: absolute paths, and a number for `auto` threads.

    `recorded` is the config a run directory already holds: a resumed run keeps its thread count.
    """
    data = config.model_dump(mode="json")
    of_teacher = (data["teacher"].get("train") or {}).get("images")
    for section in (data["images"], data["labelled"], data["validation"], data["test"], of_teacher):
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


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What there is to choose from, and how many are chosen.

    Attributes:
        images: the user's images.
        pool: over them.
        schedule: queries of each round, without those for an estimate.
        estimate: queries for the estimate of m, before round 1.
    """

    images: ImageSet
    pool: MixupPool | ImagePool
    schedule: list[int]
    estimate: int


def read_candidates(config: Config, given: ImageSet | None = None) -> Candidates:
    """The user's images (`given`, or read), the pool over them, and the queries of each round.

    Raises:
        ImageSetError: images that cannot be read.
        ConfigError: a budget below what round 0 needs, or above what the pool holds; an m above it.
    """
    images = given or read_images(config.images, generator=numpy_generator(config.seed, "images"))
    pool, choice = make_pool(config, images), config.select
    start = _start(config, images)
    queries = schedule(config.budget.queries, start, choice.rounds, choice.per_round)
    room = capacity(choice.strategy, pool) - (start if pool.real else 0)
    if sum(queries[1:]) > room:
        raise ConfigError(
            f"budget.queries: {sum(queries[1:]):,} candidates are to be chosen after round 0, but {len(images):,} "
            f"images give only {room:,} for {choice.strategy}; "
            f"lower budget.queries to {queries[0] + room:,} or raise images.count"
        )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = driver_bytes(choice.strategy, pool, max(queries[1:], default=0))
    if choice.rounds and STRATEGIES[choice.strategy].mistakes and needed > memory:
        raise ConfigError(
            f"select.strategy: {choice.strategy} holds the gains of all that can be chosen, {needed / 2**30:,.0f} GiB, "
            f"and this machine has {memory / 2**30:,.0f}; set pool.pairs to sample at most "
            f"{pool.num_groups * memory // needed:,} pairs, or choose active-mixup"
        )
    if STRATEGIES[choice.strategy].mistakes and isinstance(choice.m, int) and choice.rounds:
        left = room - sum(queries[1:-1])
        if choice.m > left:
            raise ConfigError(
                f"select.m: the teacher cannot err on {choice.m:,} of {left:,} candidates, which is what the last "
                "round has left; lower it, or give a share of them such as 0.05"
            )
    count = estimate_queries(choice, queries[1] if choice.rounds else 0)
    if count > pool.num_groups and config.validation is None:
        raise ConfigError(
            f"select.estimate_queries: {count:,} pairs wanted for the estimate of m, but there are "
            f"{pool.num_groups:,}; lower it, or set select.m to a share such as 0.05"
        )
    if count:
        queries[1] -= count
    return Candidates(images=images, pool=pool, schedule=queries, estimate=count)


def _start(config: Config, images: ImageSet) -> int:
    """Images asked about in round 0, see `kdray.config.SelectConfig`."""
    first = config.select.first
    if first != "auto":
        if first > len(images):
            raise ConfigError(
                f"select.first: {first:,} images wanted in round 0, but there are {len(images):,}; lower it"
            )
        return first
    if config.pool.kind == "mixup":
        return len(images)
    if config.labelled is not None:
        return 0
    return config.select.per_round or max(1, config.budget.queries // (config.select.rounds + 1))


def make_pool(config: Config, images: ImageSet) -> MixupPool | ImagePool:
    """The pool a config describes over `images`."""
    if config.pool.kind == "images":
        return ImagePool(images.images)
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
    candidates = read_candidates(config, given.images)
    images, shape = candidates.images, candidates.images.image_shape
    labelled = read_labelled(config, "labelled", given.labelled, shape)
    validation = read_labelled(config, "validation", given.validation, shape) if candidates.estimate else None
    test = read_labelled(config, "test", given.test, shape)
    if validation is not None and candidates.estimate > len(validation):
        raise ConfigError(
            f"select.estimate_queries: {candidates.estimate:,} labelled images wanted for the estimate of m, but "
            f"validation has {len(validation):,}; lower it to {len(validation):,}"
        )
    _check_student(config, shape)
    _train_missing_teacher(config.teacher, shape, labelled, observer)
    if given.function is not None:
        build: Callable[[], Teacher] = partial(build_function_teacher, config.teacher, given.function)
    else:
        secrets = read_secrets(config.teacher)
        build = partial(build_teacher, config.teacher, images.image_shape, os.getcwd(), secrets)
    teacher = build()
    if isinstance(teacher, HttpTeacher):
        teacher.check()
    classes = class_names(config.teacher)
    for name, data in (("labelled", labelled), ("validation", validation), ("test", test)):
        if data is not None:
            # Of a test set nothing is learned: it may have other words for the same classes.
            _check_classes(name, data, teacher.num_classes, None if name == "test" else classes)
    mean, std = pixel_statistics(images.images)
    card = ModelCard(
        model=config.student.model, image_shape=images.image_shape, num_classes=teacher.num_classes, classes=classes
    )
    threads = config.resources.trainer.threads
    spec = StudentSpec(card=card, mean=mean, std=std, recipe=config.student, seed=config.seed, threads=threads)
    return Inputs(
        config=config,
        images=images,
        labelled=labelled,
        test=test,
        pool=candidates.pool,
        schedule=candidates.schedule,
        estimation=Estimation(queries=candidates.estimate, validation=validation) if candidates.estimate else None,
        spec=spec,
        build=build,
        teacher=teacher,
        classes=classes,
    )


def read_labelled(
    config: Config, field: str, given: ImageSet | None = None, shape: tuple[int, int, int] | None = None
) -> ImageSet | None:
    """The labelled images of a section (`given`, or read); None where it is not there.

    Args:
        field: labelled, validation or test.
        shape: of the images to distil with, where that is known.

    Raises:
        ImageSetError: images that cannot be read, or of another shape; a label that is none.
    """
    section = getattr(config, field)
    if section is None:
        return None
    data = given or read_images(section, generator=numpy_generator(config.seed, field), field=field, with_labels=True)
    if shape is not None and data.image_shape != shape:
        raise ImageSetError(
            f"{field}: its images have shape {data.image_shape}, the images to distil with {shape}; "
            "set size and colour of both alike"
        )
    if int(data.labels.min()) < 0:
        raise ImageSetError(f"{field}: label {int(data.labels.min())} found; every image of it needs its true label")
    return data


def _check_classes(field: str, data: ImageSet, count: int, names: tuple[str, ...] | None) -> None:
    """Refuse labels that are not the teacher's, and class names in another order where both are known."""
    if int(data.labels.max()) >= count:
        raise ImageSetError(f"{field}: label {int(data.labels.max())} found, but the teacher has {count} classes")
    if names is not None and data.classes is not None and tuple(data.classes) != tuple(names):
        first = next((k for k, (a, b) in enumerate(zip(data.classes, names, strict=False)) if a != b), None)
        where = (
            f"it has {len(data.classes)} classes, the teacher {len(names)}"
            if first is None
            else f"class {first} is {data.classes[first]!r}, the teacher's {names[first]!r}"
        )
        raise ImageSetError(f"{field}: {where}; its labels must be numbers of the teacher's classes")


def _check_student(config: Config, image_shape: tuple[int, int, int]) -> None:
    """Refuse what training would refuse after the first answers were paid."""
    if config.student.augment.shift >= min(image_shape[1:]):
        raise ConfigError(
            f"student.augment.shift: {config.student.augment.shift} pixels do not fit "
            f"images of {image_shape[1]}x{image_shape[2]}"
        )
    resolve_device(config.student.device, "student.device")
    student = build_model(config.student.model, image_shape, 2, seed=0)  # refuses images too small for it
    if STRATEGIES[config.select.strategy].features:
        try:
            head(student)
        except ModelError as error:
            raise ConfigError(f"select.strategy: {config.select.strategy} compares features, but {error}") from None
    if config.pool.mixing == "first-layer" and split(student) is None:
        raise ConfigError(
            f"pool.mixing: the first layer of {config.student.model} cannot be taken apart from the rest; "
            "set it to auto or pixels"
        )


def _train_missing_teacher(
    config, image_shape: tuple[int, int, int], labelled: ImageSet | None, observer: Observer
) -> None:
    if config.kind != "local" or config.train is None or Path(config.weights).exists():
        return
    observer.note(f"the teacher's weights are not there yet: training {config.model} once")
    train_teacher(
        config,
        lambda done, loss: observer.progress(done, config.train.epochs),
        image_shape=image_shape,
        labelled=labelled,
    )
    observer.note(f"teacher written to {config.weights}; from here on it is only queried")
