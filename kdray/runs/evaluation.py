"""How the student is measured: accuracy where the test images have labels, agreement with the teacher where it is asked
about them."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdray.models.predict import accuracy
from kdray.utils.intervals import clopper_pearson
from kdray.utils.seeds import numpy_generator


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What was measured on the test images; None where something was not.

    Attributes:
        student, teacher: accuracy, where there are labels.
        success: student / teacher, on the images that the teacher answered.
        agreement: share of these images for which both name the same class.
        agreement_low, agreement_high: its 95 % interval (Clopper-Pearson).
        compared: number of these images.
    """

    student: float | None = None
    teacher: float | None = None
    success: float | None = None
    agreement: float | None = None
    agreement_low: float | None = None
    agreement_high: float | None = None
    compared: int = 0


def queries_allowed(evaluation: int | Literal["auto"], test: int, *, metered: bool) -> int:
    """Most queries on `test` test images under `budget.evaluation`; auto asks about all of them, or none where that may
    be billed."""
    if evaluation == "auto":
        return 0 if metered else test
    return min(evaluation, test)


def rows_to_ask(test: int, allowed: int, seed: int) -> Tensor:
    """Rows of `test` images that the teacher is asked about, int64, ascending: the same in every round of a run.

    They are a random sample, as the images may be sorted by class. A larger cap adds rows to the sample of a smaller
    one, so answers that were paid for are used again.
    """
    return asking_order(test, seed)[:allowed].sort().values


def asking_order(test: int, seed: int) -> Tensor:
    """Rows of `test` images in the order in which a growing cap asks about them, int64 [test]."""
    return torch.from_numpy(numpy_generator(seed, "evaluation").permutation(test))


def score(predictions: Tensor, labels: Tensor | None, rows: Tensor, answers: Tensor) -> Scores:
    """What student and teacher make of the test images.

    Args:
        predictions: the student's classes, int64 [N].
        labels: the true ones, int64 [N], or None.
        rows: the images that the teacher answered, int64 [M].
        answers: its classes for them, int64 [M].
    """
    student = None if labels is None else accuracy(predictions, labels)
    if len(rows) == 0:
        return Scores(student=student)
    own = predictions[rows]
    low, high = clopper_pearson(int((own == answers).sum()), len(rows))
    teacher = None if labels is None else accuracy(answers, labels[rows])
    return Scores(
        student=student,
        teacher=teacher,
        success=accuracy(own, labels[rows]) / teacher if labels is not None and teacher else None,
        agreement=accuracy(own, answers),
        agreement_low=low,
        agreement_high=high,
        compared=len(rows),
    )


def unlabelled_note(test: int, asked: int) -> str:
    """What the user should know of a test set without labels.

    Args:
        test: number of its images.
        asked: queries allowed on them.
    """
    if asked:
        which = f"all {test:,}" if asked == test else f"{asked:,} of {test:,}"
        return f"test has no labels: student and teacher are compared on {which} of its images (agreement)"
    example = min(test, 200)
    return (
        "test has no labels, and budget.evaluation allows no queries on its images, so nothing will be measured; for "
        f"the agreement of student and teacher set budget.evaluation to a number of queries, up to {test:,}: "
        f"budget.evaluation={example}, for example"
    )
