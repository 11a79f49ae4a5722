"""From a config to what it names: images, pool, teacher and student, read and checked before anything is paid."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdray.config.root import Config
from kdray.errors import ConfigError, ImageSetError, TeacherError
from kdray.images import ImageSet, read_images
from kdray.images.labels import with_teachers_labels
from kdray.ledger.check import check_ledger
from kdray.models.base import find_model
from kdray.models.checkpoint import ModelCard
from kdray.models.classifier import pixel_statistics
from kdray.models.start import with_digest
from kdray.observers import Observer
from kdray.pools.base import Pool
from kdray.runs.overlap import overlap_note
from kdray.runs.pool_schedule import PoolSchedule, read_pool
from kdray.runs.student_check import check_student_and_search, read_start
from kdray.sections.base import Section
from kdray.select.rad.estimate import Estimation
from kdray.teachers.base import Teacher
from kdray.teachers.function import PythonTeacherConfig
from kdray.teachers.http.secrets import Secrets
from kdray.teachers.local import LocalTeacher
from kdray.training.fitting import StudentSpec
from kdray.training.losses.base import check_loss
from kdray.utils.devices import auto_threads
from kdray.utils.seeds import numpy_generator

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything a config names, read and checked. Nothing is spent and nothing written to get here.

    Attributes:
        config: with paths made absolute, `trainer.threads` a number, and what pool and images record.
        images, labelled, test: the image sets; `labelled` and `test` may be None.
        pool: the candidates.
        kinds: the pools that a round may choose from, see `PoolSchedule`.
        schedule: queries of each round, without those for an estimate.
        copies: queries of the last round, if that asks about augmented copies; else 0.
        again: of the queries of each round those about images that an earlier round has asked about.
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
    pool: Pool
    kinds: tuple[Pool, ...]
    schedule: list[int]
    copies: int
    again: list[int]
    estimation: Estimation | None
    spec: StudentSpec
    build: Callable[[], Teacher]
    teacher: Teacher
    classes: tuple[str, ...] | None

    def new(self, number: int) -> int:
        """Queries of a round about images that no earlier round has asked about."""
        return self.schedule[number] - self.again[number]

    @property
    def white_box(self) -> "nn.Module | None":
        """The teacher's network, where the config lets the pool look into it."""
        return self.teacher.network if self.config.pool.white_box and isinstance(self.teacher, LocalTeacher) else None


@dataclass(frozen=True, kw_only=True)
class InMemoryInputs:
    """What comes from Python, where a config can only name files and modules.

    Attributes:
        images, labelled, validation, test: image sets; written into the run directory, where the config says they are.
        function: a python teacher's function, in place of its import.
    """

    images: ImageSet | None = None
    labelled: ImageSet | None = None
    validation: ImageSet | None = None
    test: ImageSet | None = None
    function: Callable[..., Any] | None = None

    def image_sets(self) -> dict[str, ImageSet]:
        """Those that are there, by the config section that names them."""
        found = {"images": self.images, "labelled": self.labelled, "validation": self.validation, "test": self.test}
        return {name: data for name, data in found.items() if data is not None}


def resolve(config: Config, recorded: Config | None = None) -> Config:
    """The config as it goes into the run directory: absolute paths, a number for `auto` threads, and the digest of the
    weights that students start from.

    Args:
        recorded: the config a run directory already holds: a resumed run keeps its thread count.
    """
    data = config.with_absolute_paths()
    if recorded is not None:
        config = Config.model_validate(data)
        kept: dict[str, Any] = {"pool": config.pool.recorded(recorded.pool)}
        for name in ("images", "labelled", "validation", "test"):
            if (own := getattr(config, name)) is not None and (its := getattr(recorded, name)) is not None:
                kept[name] = own.recorded(its)
        data = config.model_copy(update=kept).model_dump(mode="json")
    if (init := data["student"]["init"]) is not None:
        data["student"]["init"] = with_digest(init, recorded.student.init if recorded else None)
    trainer = data["resources"]["trainer"]
    if trainer["threads"] == "auto":
        light = find_model(config.student.model).light
        trainer["threads"] = recorded.resources.trainer.threads if recorded else auto_threads(light)
    return Config.model_validate(data)


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images that a config names, read and checked as far as that needs no teacher.

    Attributes:
        pooled: what there is to choose from.
        labelled, validation, test: with labels as their sources number them; see `of_teacher`. `validation` is None
            where nothing is estimated; `test` may have no labels.
        sections: what a run records in its config, by field.
    """

    pooled: PoolSchedule
    labelled: ImageSet | None
    validation: ImageSet | None
    test: ImageSet | None
    sections: dict[str, Section]

    def notes(self) -> list[str]:
        """What the user should know of how the images were read."""
        sets = (self.pooled.images, self.labelled, self.validation, self.test)
        notes = [*(note for data in sets if data is not None for note in data.notes), *self.pooled.notes]
        return notes + overlap_note(self.test, {"images": self.pooled.images, "labelled": self.labelled})

    def of_teacher(
        self, config: Config, count: int | None, names: tuple[str, ...] | None, observer: Observer | None = None
    ) -> "Data":
        """The same, with labels in the numbers of a teacher; see `kdray.sections.classes.match_classes`.

        Args:
            count: number of its classes, or None where that is not known yet.
            names: their names, or None.
            observer: told how classes were matched, where that is an assumption.

        Raises:
            ImageSetError: a class that the teacher does not have.
            ConfigError: a loss that does not fit so many classes.
        """
        if count is not None:
            check_loss(config.student.loss, count, "student.loss")
        note = observer.note if observer else None

        def matched(field: str, data: ImageSet | None) -> ImageSet | None:
            if data is None or data.labels is None:
                return data
            return with_teachers_labels(data, names, count, field=field, on_note=note)

        return replace(
            self,
            labelled=matched("labelled", self.labelled),
            validation=matched("validation", self.validation),
            test=matched("test", self.test),
        )


def read_data(config: Config, in_memory: InMemoryInputs | None = None, *, ledger_here: bool = True) -> Data:
    """Read and check all that costs nothing and needs no teacher: before a teacher is trained, and for a plan.

    Args:
        in_memory: what comes from Python in place of files.
        ledger_here: check the file of a shared ledger; it may be on another node.

    Raises:
        KdrayError: of the kind and with the field of what is wrong.
    """
    in_memory = in_memory or InMemoryInputs()
    if config.ledger.path is not None and ledger_here:
        check_ledger(Path(config.ledger.path), config.ledger.queries)
    pooled = read_pool(config, in_memory.images)
    shape = pooled.images.image_shape
    labelled = read_labelled(config, "labelled", in_memory.labelled, shape)
    validation = read_labelled(config, "validation", in_memory.validation, shape) if pooled.estimate else None
    test = read_test(config, in_memory.test, shape)
    if validation is not None and pooled.estimate > len(validation):
        raise ConfigError(
            f"select.estimate_queries: {pooled.estimate:,} labelled images wanted for the estimate of m, but "
            f"validation has {len(validation):,}; lower it to {len(validation):,}"
        )
    check_student_and_search(config, shape)
    sections: dict[str, Section] = {"images": pooled.source, "pool": pooled.section}
    for field, images in (("labelled", labelled), ("validation", validation), ("test", test)):
        if images is not None and field not in in_memory.image_sets():
            sections[field], _ = getattr(config, field).resolved(field)
    data = Data(pooled=pooled, labelled=labelled, validation=validation, test=test, sections=sections)
    if config.teacher.missing():
        data.of_teacher(config, *config.teacher.expected_classes(labelled))
    return data


def read_inputs(
    config: Config,
    *,
    observer: Observer | None = None,
    in_memory: InMemoryInputs | None = None,
    secrets: Secrets | None = None,
    ledger_here: bool = True,
) -> Inputs:
    """Read and check what `config` names; trains a local teacher whose weights are not there but whose recipe is.

    Args:
        in_memory, ledger_here: see `read_data`.
        secrets: what the teacher's section read in another process; None: read them here.

    Raises:
        KdrayError: of the kind and with the field of what is wrong.
    """
    observer = observer or Observer()
    in_memory = in_memory or InMemoryInputs()
    data = read_data(config, in_memory, ledger_here=ledger_here)
    pooled, images = data.pooled, data.pooled.images
    for note in data.notes():
        observer.note(note)
    section = config.teacher
    seen = section.input.shape(images.image_shape)
    section.prepare(seen, data.labelled, observer)
    if in_memory.function is not None and isinstance(section, PythonTeacherConfig):
        build: Callable[[], Teacher] = partial(section.around, in_memory.function)
    else:
        build = partial(section.build, seen, folder=os.getcwd(), secrets=secrets or section.read_secrets())
    teacher = build()
    if not isinstance(teacher.identity, str) or not teacher.identity.strip():
        raise TeacherError(
            f"teacher.kind: {section.kind} made a teacher whose identity is {teacher.identity!r}; it must be text that "
            "names the model, since the ledger keeps answers under it"
        )
    section.check(teacher)
    classes = section.class_names()
    data = data.of_teacher(config, teacher.num_classes, classes, observer)
    mean, std = pixel_statistics(images.images)
    card = ModelCard(
        model=config.student.model, image_shape=images.image_shape, num_classes=teacher.num_classes, classes=classes
    )
    threads = config.resources.trainer.thread_count
    spec = StudentSpec(
        card=card,
        mean=mean,
        std=std,
        recipe=config.student.for_images(images.image_shape),
        seed=config.seed,
        threads=threads,
        start=read_start(config.student, card),
        pool=pooled.pool if config.student.unpaid is not None else None,
    )
    estimation = Estimation(queries=pooled.estimate, validation=data.validation) if pooled.estimate else None
    return Inputs(
        config=config.model_copy(update=data.sections),
        images=images,
        labelled=data.labelled,
        test=data.test,
        pool=pooled.pool,
        kinds=pooled.kinds,
        schedule=pooled.schedule,
        copies=pooled.copies,
        again=pooled.again,
        estimation=estimation,
        spec=spec,
        build=build,
        teacher=teacher,
        classes=classes,
    )


def read_labelled(
    config: Config, field: str, in_memory: ImageSet | None = None, shape: tuple[int, int, int] | None = None
) -> ImageSet | None:
    """The labelled images of a section (`in_memory`, or read); None where it is not there.

    Args:
        field: labelled or validation; for test see `read_test`.
        shape: of the images to distil with, where that is known.

    Raises:
        ImageSetError: images that cannot be read, or of another shape; a label that is none.
    """
    data = _read_set(config, field, in_memory, shape, with_labels=True)
    return None if data is None else _with_true_labels(data, field)


def read_test(
    config: Config, in_memory: ImageSet | None = None, shape: tuple[int, int, int] | None = None
) -> ImageSet | None:
    """The test images, `in_memory` or read; None where there are none. They have labels where their source has them:
    where it has none, or -1 alone (so Hugging Face marks labels that are held back), the set has no labels.

    Raises:
        ImageSetError: see `read_labelled`.
    """
    data = _read_set(config, "test", in_memory, shape, with_labels=None)
    if data is None or data.labels is None:
        return data
    if bool((data.labels == -1).all()):
        return replace(data, labels=None)
    return _with_true_labels(data, "test")


def _read_set(
    config: Config,
    field: str,
    in_memory: ImageSet | None,
    shape: tuple[int, int, int] | None,
    with_labels: bool | None,
) -> ImageSet | None:
    """The images of a section, of the shape of those to distil with."""
    section = getattr(config, field)
    if section is None:
        return None
    data = in_memory or read_images(
        section, generator=numpy_generator(config.seed, field), field=field, with_labels=with_labels
    )
    if shape is not None and data.image_shape != shape:
        advice = "bring them to one size and colour first" if data.given else "set size and colour of both alike"
        raise ImageSetError(
            f"{field}: its images have shape {data.image_shape}, the images to distil with {shape}; {advice}"
        )
    return data


def _with_true_labels(data: ImageSet, field: str) -> ImageSet:
    """The set; refused where a label is none."""
    if (lowest := int(data.true_labels.min())) < 0:
        raise ImageSetError(f"{field}: label {lowest} found; every image of it needs its true label")
    return data
