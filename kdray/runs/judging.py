"""What `kdray evaluate` measures: a student, or the one of a run, on images, beside the teacher's answers to them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from kdray.config.load import apply_overrides, load_config, parse_section
from kdray.config.root import Config
from kdray.errors import ConfigError, ImageSetError
from kdray.images import ImageSet, read_images
from kdray.images.base import ImageSource, sources
from kdray.images.labels import with_teachers_labels
from kdray.metrics.evaluation import Evaluation, evaluate
from kdray.models.checkpoint import ModelCard, load_student, read_own_card
from kdray.observers import Observer
from kdray.runs.answered import Known, answers_of_file, answers_of_run, trained_on
from kdray.runs.directory import RunDirectory, find_student
from kdray.sections.base import Section
from kdray.utils.seeds import numpy_generator


class _Test(Section):
    """The section of the images to measure on."""

    test: Annotated[ImageSource, sources]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What was measured, and of what.

    Attributes:
        student: the model file.
        card: what it says of itself.
        names: of the classes.
        test: the section of the images.
        found: the figures.
    """

    student: Path
    card: ModelCard
    names: tuple[str, ...]
    test: ImageSource
    found: Evaluation

    def as_json(self) -> str:
        """All of it; a share is in [0, 1], and null where it could not be measured."""
        about = {
            "student": str(self.student),
            "model": self.card.model,
            "image_shape": self.card.image_shape,
            "classes": self.names,
            "test": self.test.model_dump(mode="json"),
        }
        return json.dumps(_finite(about | asdict(self.found)), indent=2)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be measured.

    Attributes:
        data: images, see `section_of_data`; None: the test images of a run.
        overrides: `test.key=value`, as on the command line.
        answers: a ledger, or the parquet file that `kdray ledger --export` wrote.
        ask: of a run: most queries for images that have no answer yet.
        attacked: most images that are attacked.
        seconds: for each of the two measurements of speed.
    """

    data: Path | None = None
    overrides: Sequence[str] = ()
    answers: Path | None = None
    ask: int = 0
    attacked: int = 1000
    seconds: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A student, and the images that it is to be measured on.

    Attributes:
        student: the model file.
        card: what it says of itself.
        names: of the classes.
        section: that of the images.
        test: the images, with labels in the student's numbers where they have some.
        known: the teacher's answers to them, as far as there are any.
        seed: of the run; 0 of a model file.
        threads: of the run's trainer; None of a model file.
    """

    student: Path
    card: ModelCard
    names: tuple[str, ...]
    section: ImageSource
    test: ImageSet
    known: Known
    seed: int
    threads: int | None


def judge(where: Path, wanted: Wanted, observer: Observer | None = None) -> Judged:
    """Measure a student.

    Args:
        where: a run directory, then its newest student; or a model file that kdray wrote.
        observer: told what happens; not closed.

    Raises:
        KdrayError: see `read_subject`.
    """
    subject = read_subject(where, wanted, observer)
    found = evaluate(
        load_student(subject.student),
        subject.test.images,
        subject.test.labels,
        rows=subject.known.rows,
        answers=subject.known.labels,
        attacked=wanted.attacked,
        seconds=wanted.seconds,
        seed=subject.seed,
        threads=subject.threads,
    )
    return Judged(student=subject.student, card=subject.card, names=subject.names, test=subject.section, found=found)


def read_subject(where: Path, wanted: Wanted, observer: Observer | None = None) -> Subject:
    """Read what a student is measured on.

    Args:
        where: see `judge`.

    Raises:
        KdrayError: no run and no model file, images that do not fit, no image to measure on, or answers that cannot be
            read. Nothing was paid then.
    """
    observer = observer or Observer()
    run, student = find_student(where)
    config = None if run is None else load_config(run.config)
    if config is None and wanted.ask:
        raise ConfigError(f"--ask {wanted.ask:,} needs a run, whose teacher is asked, and {where} is none")
    card = read_own_card(student)
    section = _section(config, wanted, card, where)
    seed = config.seed if config is not None else 0
    test = read_measured(section, card, seed, observer)
    if run is not None and (count := trained_on(run, test.images, card.num_classes)):
        observer.note(
            f"the student was trained on {count:,} of these {len(test):,} images, which the run has bought: figures of "
            "images that it never saw are usually lower; leave them out, for example with test.rows"
        )
    names = card.classes or test.classes or tuple(map(str, range(card.num_classes)))
    return Subject(
        student=student,
        card=card,
        names=tuple(map(str, names)),
        section=section,
        test=test,
        known=_known(run, config, wanted, test, card, seed, observer),
        seed=seed,
        threads=None if config is None else config.resources.trainer.thread_count,
    )


def section_of_data(path: Path) -> dict[str, Any]:
    """The section of images at a path: a parquet file or a folder of some, or a folder of image files.

    Raises:
        ConfigError: there is neither.
    """
    path = path.absolute()
    if path.is_dir():
        parquet = any(entry.suffix == ".parquet" for entry in path.iterdir())
        return {"source": "parquet" if parquet else "folder", "path": str(path)}
    if path.suffix == ".parquet" and path.exists():
        return {"source": "parquet", "path": str(path)}
    what = "is neither a folder nor a parquet file" if path.exists() else "is not there"
    raise ConfigError(
        f"--data: {path} {what}; give a folder of images, or of parquet files, or a parquet file; for any other source "
        "set test.source and its fields, as in a config"
    )


def _section(config: Config | None, wanted: Wanted, card: ModelCard, where: Path) -> ImageSource:
    """The images to measure on; of --data and of other sources in the size and the colour that the student takes."""
    for text in wanted.overrides:
        field = text.partition("=")[0]
        if field.partition(".")[0] != "test":
            raise ConfigError(f"override {text!r}: only fields of test can be changed here; {field} measures nothing")
    data: dict[str, Any] = {}
    if wanted.data is not None:
        data = {"test": section_of_data(wanted.data)}
    elif config is not None and config.test is not None and not _names_a_source(wanted.overrides):
        data = {"test": config.test.model_dump(mode="json")}
        if wanted.overrides:
            data["test"]["digest"] = None  # of the images that the run named
    data = apply_overrides(data, wanted.overrides)
    if "test" not in data:
        raise ConfigError(f"{where} names no images to measure on; give --data PATH, or fields of test")
    return fitted(parse_section(_Test, data, origin="evaluate").test, card)


def fitted(section: ImageSource, card: ModelCard) -> ImageSource:
    """The same images in the size and the colour that a student takes, where the section names none."""
    height, width = card.image_shape[1:]
    changes: dict[str, Any] = {}
    if section.size is None:
        changes["size"] = [height, width]
    if section.colour is None:
        changes["colour"] = {1: "grey", 3: "rgb"}.get(card.image_shape[0])
    return parse_section(_Test, {"test": section.with_absolute_paths() | changes}, origin="evaluate").test


def _names_a_source(overrides: Sequence[str]) -> bool:
    """Whether all fields are given anew: those of another source mean nothing to it."""
    return any(text.partition("=")[0] in ("test", "test.source") for text in overrides)


def read_measured(section: ImageSource, card: ModelCard, seed: int, observer: Observer) -> ImageSet:
    """The images to measure a student on, with labels in its numbers where they have some.

    Raises:
        ImageSetError: they cannot be read, or the student does not take them.
    """
    test = read_images(section, generator=numpy_generator(seed, "test"), field="test", with_labels=None)
    for note in test.notes:
        observer.note(note)
    if test.image_shape != card.image_shape:
        raise ImageSetError(
            f"test: its images have shape {test.image_shape}, the student takes {card.image_shape}; set test.size and "
            "test.colour"
        )
    if test.labels is None or bool((test.labels == -1).all()):  # so Hugging Face marks labels that are held back
        return ImageSet(images=test.images, classes=test.classes)
    return with_teachers_labels(test, card.classes, card.num_classes, field="test", on_note=observer.note)


def _known(
    run: RunDirectory | None,
    config: Config | None,
    wanted: Wanted,
    test: ImageSet,
    card: ModelCard,
    seed: int,
    observer: Observer,
) -> Known:
    if run is not None and config is not None:
        known = answers_of_run(run, config, test.images, card.num_classes, observer)
        if wanted.ask:
            from kdray.runs.asking_more import ask_more

            known = ask_more(run, config, test.images, known, wanted.ask, card, observer)
        if wanted.answers is None:
            return known
    if wanted.answers is None:
        return Known.none()
    teacher_input = None if config is None else config.teacher.input
    return answers_of_file(wanted.answers, test.images, teacher_input, card.num_classes)


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for: an infinite likelihood."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
