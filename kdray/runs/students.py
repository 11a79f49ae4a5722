"""Students of the first n of given answers, one for each n: a folder with their files and a table."""

import csv
import io
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdray.errors import ConfigError, RunDirectoryError
from kdray.images import ImageSet
from kdray.models.checkpoint import load_student
from kdray.models.predict import predict
from kdray.observers import Observer
from kdray.runs.answered import Known
from kdray.runs.evaluation import Scores, score
from kdray.training.fitting import StudentSpec, fit
from kdray.utils.files import why_unwritable, write_bytes

BEGINS_ANEW = (
    "student.start is last, and a student here begins anew: it has all answers at once and the steps of one round, "
    "where one of a run learns round after round; set student.steps to more if it learns too little"
)
"""What is said of students that learn at once what others learnt one round after the other."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One student of a learning curve.

    Attributes:
        first: n, number of bought images that it was trained on.
        images: these, and the images with true labels beside them.
        round: of the run, the round in which the last of the n was bought; it names the random numbers of training.
        scores: what was measured on the test images.
        loss: mean training loss of the last epoch.
        seconds: of training.
        student: its file.
    """

    first: int
    images: int
    round: int
    scores: Scores
    loss: float
    seconds: float
    student: Path

    def row(self) -> dict[str, object]:
        """The point as a row of learning_curve.csv."""
        return {
            "first": self.first,
            "images": self.images,
            "round": self.round,
            "student_accuracy": self.scores.student,
            "teacher_accuracy": self.scores.teacher,
            "success_rate": self.scores.success,
            "agreement": self.scores.agreement,
            "agreement_low": self.scores.agreement_low,
            "agreement_high": self.scores.agreement_high,
            "compared": self.scores.compared,
            "loss": self.loss,
            "seconds": round(self.seconds, 3),
            "student": f"{self.student.parent.name}/{self.student.name}",
        }


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """Students, as `train_each` makes them.

    Attributes:
        directory: where it is: learning_curve.csv, config.yaml, N/student.safetensors.
        points: a student each, in ascending order of n.
    """

    directory: Path
    points: list[Point]

    @property
    def table(self) -> Path:
        """The points as a file."""
        return self.directory / "learning_curve.csv"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one student is trained on.

    Attributes:
        spec: all else that it depends on.
        images: uint8 [N, C, H, W].
        targets: float32 [N, K].
        round: it names the random numbers of training.
    """

    spec: StudentSpec
    images: Tensor
    targets: Tensor
    round: int


def train_each(
    curve: LearningCurve,
    counts: Sequence[int],
    work_of: Callable[[int], Work],
    measure: Callable[[Path], Scores],
    observer: Observer,
) -> None:
    """Train a student for each n of `counts` and append it to `curve`, whose table is written after each."""
    for count in counts:
        begin, work = time.monotonic(), work_of(count)
        observer.phase(work.round, "train")
        data, result = fit(
            work.spec, work.images, work.targets, work.round, lambda done, of, loss: observer.progress(done, of)
        )
        seconds, path = time.monotonic() - begin, curve.directory / str(count) / "student.safetensors"
        write_bytes(path, data)
        curve.points.append(
            Point(
                first=count,
                images=len(work.images),
                round=work.round,
                scores=measure(path),
                loss=result.losses[-1],
                seconds=seconds,
                student=path,
            )
        )
        _write_table(curve)
        for note in result.notes():
            observer.note(note)
        observer.note(f"trained a student on the first {count:,} images in {seconds:.1f} s")


def check_counts(wanted: Sequence[int] | None, total: int, where: Path) -> list[int]:
    """The numbers n, checked, ascending; None: all answers, once.

    Raises:
        ConfigError: one is not positive, or larger than `total`.
    """
    for count in wanted if wanted is not None else ():
        if count < 1:
            raise ConfigError(f"--first: a student cannot be trained on {count:,} images; give at least 1")
        if count > total:
            raise ConfigError(f"--first: {count:,} images wanted, but {where} has bought {total:,}")
    return sorted(set(wanted)) if wanted else [total]


def measured(student: Path, test: ImageSet, known: Known, *, threads: int) -> Scores:
    """What a student makes of test images, beside the teacher's answers to some of them."""
    if test.labels is None and len(known.rows) == 0:
        return Scores()
    predictions = predict(load_student(student), test.images, threads=threads).argmax(dim=1)
    return score(predictions, test.labels, known.rows, known.labels)


def make_folder(beside: Path, out: Path | None) -> Path:
    """A new folder: `out`, or the first of `beside`, `beside`-2, ... that is not there.

    Raises:
        RunDirectoryError: it is there already, or cannot be made.
    """
    names = (beside if number == 1 else beside.with_name(f"{beside.name}-{number}") for number in itertools.count(1))
    folder = out.absolute() if out is not None else next(path for path in names if not path.exists())
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RunDirectoryError(f"{folder} is there already, and nothing is overwritten; choose another --out")
    reason = why_unwritable(folder / "config.yaml")
    try:
        if reason is None:
            folder.mkdir(parents=True, exist_ok=out is not None)
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise RunDirectoryError(f"cannot write students to {folder}: {reason}; choose another --out")
    return folder


def _write_table(curve: LearningCurve) -> None:
    text = io.StringIO()
    rows = [point.row() for point in curve.points]
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(curve.table, text.getvalue().encode())
