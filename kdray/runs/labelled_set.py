"""Bought answers without the run that bought them: several runs' in one folder, and students trained on it."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from kdray.config.load import apply_overrides, load_config, parse_section
from kdray.errors import ConfigError, RunDirectoryError
from kdray.images.base import ImageSource, sources
from kdray.ledger.records import hash_images
from kdray.ledger.store import Ledger
from kdray.models.base import find_model
from kdray.models.checkpoint import ModelCard
from kdray.models.classifier import pixel_statistics
from kdray.observers import Observer
from kdray.runs.answered import Known
from kdray.runs.directory import RunDirectory
from kdray.runs.evaluation import Scores
from kdray.runs.judging import fitted, read_measured
from kdray.runs.student_check import check_student, read_start
from kdray.runs.students import BEGINS_ANEW, LearningCurve, Work, check_counts, make_folder, measured, train_each
from kdray.runs.tables import Labelled, count_rows, read_classes, read_labelled, read_rows, read_top, write_labelled
from kdray.runs.training_set import with_bought
from kdray.sections.base import Section
from kdray.teachers.answers import Answers
from kdray.training.fitting import StudentSpec
from kdray.training.losses.base import check_loss
from kdray.training.recipe import StudentSection
from kdray.utils.devices import auto_threads
from kdray.utils.files import write_bytes


class SetTraining(Section):
    """What a student of a labelled set depends on, beside the set."""

    seed: Annotated[int, Field(ge=0)] = 0
    """The seed of training."""
    student: StudentSection = StudentSection()
    """The student, and how it is trained."""
    test: Annotated[ImageSource, sources] | None = None
    """Images on which it is measured."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What `merge` has done.

    Attributes:
        folder: of the set.
        images: in it.
        twice: later answers to images in it, of another run or of one that asked again; the first was kept.
    """

    folder: Path
    images: int
    twice: int


_HALF = ".half"  # of a file of a set that is not whole yet


def merge(runs: Sequence[RunDirectory], out: Path) -> Merged:
    """Write all answers that runs have bought for training as one labelled set: a parquet file for each run, each image
    once.

    Raises:
        ConfigError: the runs have answers of different teachers, other classes, or images of other shapes; or `out` is
            there already, or cannot be written. Then nothing was written.
        RunDirectoryError: one is no run, or has bought nothing.
    """
    for run in runs:
        if not run.is_run():
            raise RunDirectoryError(f"{run.path} holds no run")
    _check_alike(runs)
    folder = make_folder(out, out) if not out.exists() else _empty(out)
    seen: set[bytes] = set()
    total = twice = 0
    written: list[Path] = []
    for number, run in enumerate(runs):
        classes = run.read_classes(run.asked_rounds()[0])
        parts = [_unseen(part, seen) for part in _bought(run, len(classes))]
        twice += sum(count for _, count in parts)
        kept = [part for part, _ in parts if len(part)]
        if kept:
            joined = _joined(kept)
            top = load_config(run.config).teacher.form.top
            written.append(folder / f"part-{number:03d}{_HALF}")
            write_labelled(written[-1], joined, classes, top=top)
            total += len(joined)
    for path in written:  # a set that lacks a run's answers must not look like one
        path.rename(path.with_suffix(".parquet"))
    return Merged(folder=folder, images=total, twice=twice)


def _check_alike(runs: Sequence[RunDirectory]) -> None:
    first: tuple[str, Any, Any] | None = None
    for run in runs:
        number = next((one for one in run.asked_rounds() if run.count_labelled(one)), None)
        if number is None:
            raise RunDirectoryError(f"{run.path} has bought no images; go on with: kdray resume {run.path}")
        classes = run.read_classes(number)
        shape = tuple(run.read_labelled(number, len(classes), count=1).images.shape[1:])
        found = (_teacher(run), classes, shape)
        if first is None:
            first = found
            continue
        for what, one, other in zip(("teacher", "classes", "image shape"), first, found, strict=True):
            if one != other:
                raise ConfigError(
                    f"--merge: {runs[0].path} has the {what} {_words(one)}, and {run.path} {_words(other)}; answers of "
                    "one kind alone make a set that a student can learn: merge each kind apart"
                )


def _words(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _teacher(run: RunDirectory) -> str:
    """The identity under which the run's ledger has its answers.

    Raises:
        RunDirectoryError: the ledger is not there.
    """
    path = run.ledger_of(load_config(run.config).ledger)
    if not path.exists():
        raise RunDirectoryError(f"{run.path}: its ledger {path} is not there, so nothing says whose its answers are")
    ledger = Ledger(path, read_only=True)
    try:
        return ", ".join(ledger.teachers(run.owner()))
    finally:
        ledger.close()


def _empty(out: Path) -> Path:
    if out.is_dir() and all(path.suffix == _HALF for path in out.iterdir()):
        return out.absolute()
    raise ConfigError(f"--merge: {out} is there already, and nothing is overwritten; name another folder")


def _bought(run: RunDirectory, num_classes: int) -> Iterator[Labelled]:
    for number in run.asked_rounds():
        for sample in (True, False) if run.has_sample(number) else (False,):
            yield run.read_labelled(number, num_classes, sample=sample)


def _unseen(part: Labelled, seen: set[bytes]) -> tuple[Labelled, int]:
    """The images of a part that are not in `seen`, which learns of them, and how many others there are."""
    rows = []
    for row, key in enumerate(hash_images(part.images)):
        if key not in seen:
            seen.add(key)
            rows.append(row)
    probs = part.answers.probs
    chosen = torch.tensor(rows, dtype=torch.int64)
    some = Answers(
        probs=None if probs is None else probs[chosen],
        labels=part.answers.labels[chosen],
        num_classes=part.answers.num_classes,
    )
    left = Labelled(
        images=part.images[chosen], answers=some, ids=part.ids[rows], source=tuple(part.source[row] for row in rows)
    )
    return left, len(part) - len(rows)


def _joined(parts: Sequence[Labelled]) -> Labelled:
    probs = [part.answers.probs for part in parts]
    answers = Answers(
        probs=None if any(one is None for one in probs) else torch.cat([one for one in probs if one is not None]),
        labels=torch.cat([part.answers.labels for part in parts]),
        num_classes=parts[0].answers.num_classes,
    )
    return Labelled(
        images=torch.cat([part.images for part in parts]),
        answers=answers,
        ids=np.concatenate([part.ids for part in parts]),
        source=tuple(itertools.chain.from_iterable(part.source for part in parts)),
    )


def files_of(folder: Path) -> list[Path]:
    """The parquet files of a labelled set, in order of their names.

    Raises:
        RunDirectoryError: there are none, or one is not of that kind.
    """
    paths = sorted(folder.glob("*.parquet"))
    for path in paths:
        try:
            names = read_classes(path)
            if count_rows(path):
                read_rows(path, len(names), np.array([0]))
        except (KeyError, TypeError, ValueError):
            raise RunDirectoryError(
                f"{path} has no images with a teacher's answers; give a folder of such files as RUN/labelled has"
            ) from None
    if not paths:
        raise RunDirectoryError(f"{folder} has no parquet files; give a folder of such files as RUN/labelled has")
    return paths


def learn_set(
    folder: Path,
    changes: Sequence[str] = (),
    *,
    first: Sequence[int] | None = None,
    out: Path | None = None,
    observer: Observer | None = None,
) -> LearningCurve:
    """Train a student on the first n images of a labelled set, for each n. Nothing is asked.

    Args:
        folder: of parquet files, as RUN/labelled or as `merge` writes them.
        changes: fields of `SetTraining`, as on the command line; all others have their defaults.
        first: the numbers n; None: all images.
        out: folder for the students; None: FOLDER-students, or the next free one.
        observer: told what happens; not closed.

    Raises:
        ConfigError: a field is wrong, or an n.
        RunDirectoryError: the folder has no labelled images, or `out` cannot be used.
        KdrayError: of the kind and with the field of what else is wrong; then nothing was written.
    """
    observer = observer or Observer()
    paths = files_of(folder)
    config = parse_section(SetTraining, apply_overrides({}, changes), origin="kdray train")
    names = read_classes(paths[0])
    held: list[torch.Tensor] = []
    for path in paths:
        if read_classes(path) != names:
            raise ConfigError(f"{path} has other classes than {paths[0].name}; train on each alone")
        part = read_labelled(path, len(names))
        if held and part.images.shape[1:] != held[0].shape[1:]:
            shapes = list(part.images.shape[1:]), list(held[0].shape[1:])
            raise ConfigError(
                f"{path} has images of {shapes[0]}, and {paths[0].name} of {shapes[1]}; train on each alone"
            )
        held = with_bought(held, part, read_top(path))
    if config.student.start == "last":
        observer.note(BEGINS_ANEW)
    counts = check_counts(first, len(held[0]) if held else 0, folder)
    if not held:
        raise RunDirectoryError(f"{folder} has no labelled images")
    images, targets = held
    spec = _spec(config, images, names)
    test = None
    if config.test is not None:
        test = read_measured(fitted(config.test, spec.card), spec.card, config.seed, observer)
    place = make_folder(folder.with_name(f"{folder.name}-students"), out)
    curve = LearningCurve(directory=place, points=[])
    write_bytes(place / "config.yaml", config_text(config).encode())
    train_each(
        curve,
        counts,
        lambda count: Work(spec=spec, images=images[:count], targets=targets[:count], round=0),
        lambda path: Scores() if test is None else measured(path, test, Known.none(), threads=spec.threads),
        observer,
    )
    return curve


def config_text(config: SetTraining) -> str:
    """The fields as YAML, including defaults."""
    import yaml

    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


def _spec(config: SetTraining, images: torch.Tensor, names: tuple[str, ...]) -> StudentSpec:
    channels, height, width = images.shape[1:]
    shape = (channels, height, width)
    if config.student.unpaid is not None:
        raise ConfigError("student.unpaid needs a run's candidates, and a labelled set has none; set it to null")
    check_loss(config.student.loss, len(names), "student.loss")
    check_student(config.student, shape)
    mean, std = pixel_statistics(images)
    numbers = names == tuple(map(str, range(len(names))))
    card = ModelCard(
        model=config.student.model, image_shape=shape, num_classes=len(names), classes=None if numbers else names
    )
    return StudentSpec(
        card=card,
        mean=mean,
        std=std,
        recipe=config.student.for_images(shape),
        seed=config.seed,
        threads=auto_threads(find_model(config.student.model).light),
        start=read_start(config.student, card),
    )
