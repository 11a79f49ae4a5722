"""Where does the student fail? Its test images, what it calls them, and those it gets wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdray.errors import KdrayError
from kdray.metrics.calibration import Calibration, calibrate
from kdray.metrics.classes import ClassFigures, class_figures, confusion_matrix
from kdray.models.classifier import ImageClassifier
from kdray.models.predict import predict_log_probs
from kdray.report.pictures import picture
from kdray.runs.directory import RunDirectory
from kdray.runs.judging import Subject, Wanted, read_subject
from kdray.utils.seeds import numpy_generator

_PAIRS = 6  # confusions shown, the most frequent
_EACH = 6  # images of each
_WORST = 10  # classes of the table


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image that the student gets wrong.

    Attributes:
        picture: see `kdray.report.pictures`.
        row: of the test images.
        confidence: probability that the student gives to the wrong class.
        teacher: what the teacher calls it, if it was asked.
    """

    picture: str
    row: int
    confidence: float
    teacher: str | None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A class, and another that the student takes it for.

    Attributes:
        right, called: names of both.
        count: images.
        share: of the images of the class.
        mistakes: some of them; those of which the student is surest.
    """

    right: str
    called: str
    count: int
    share: float
    mistakes: Sequence[Mistake]


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What the student makes of the test images.

    Attributes:
        count: all test images.
        compared: those whose right class is known.
        against: how it is known: "true labels" or "the teacher's answers".
        wrong: how many of them the student gets wrong.
        shared: of these, how many the teacher was asked about and calls as the student does; None where the right class
            is the teacher's, or it was asked about none of them.
        asked: of these, how many the teacher was asked about.
        confusions: the most frequent, in descending order.
        matrix: int64 [K, K], see `confusion_matrix`.
        worst: names and figures of the classes with the lowest F1, ascending; those without an image left out.
        classes: how many have an image.
        calibration: of the student; None of fewer than two images.
        names: of the classes.
    """

    count: int
    compared: int
    against: str
    wrong: int
    shared: int | None
    asked: int
    confusions: Sequence[Confusion]
    matrix: Tensor
    worst: Sequence[tuple[str, ClassFigures]]
    classes: int
    calibration: Calibration | None
    names: Sequence[str]


def read_failures(directory: RunDirectory, student: ImageClassifier) -> Failures | str:
    """What the student of a run makes of its test images, or why that is not known, as a sentence."""
    try:
        subject = read_subject(directory.path, Wanted())
    except KdrayError as error:
        return f"Not known: {error}."
    rows, right, against = _right(subject)
    if len(rows) == 0:
        return (
            "Not known: the test images have no labels, and the teacher was asked about none of them; "
            "budget.evaluation allows such queries."
        )
    log_probs = predict_log_probs(student, subject.test.images, threads=subject.threads)[rows]
    called = log_probs.argmax(dim=1)
    matrix = confusion_matrix(right, called, subject.card.num_classes)
    figures = sorted(
        ((name, one) for name, one in zip(subject.names, class_figures(matrix), strict=True) if one.support),
        key=lambda item: item[1].f1 or 0.0,
    )
    said = dict(zip(subject.known.rows.tolist(), subject.known.labels.tolist(), strict=True))
    wrong = (called != right).nonzero().flatten()
    answered = [(said[rows[k]], int(called[k])) for k in wrong.tolist() if rows[k] in said]
    by_labels = subject.test.labels is not None
    return Failures(
        count=len(subject.test.images),
        compared=len(rows),
        against=against,
        wrong=len(wrong),
        shared=sum(theirs == ours for theirs, ours in answered) if by_labels and answered else None,
        asked=len(answered),
        confusions=_confusions(subject, rows, right, log_probs, matrix, said if by_labels else {}),
        matrix=matrix,
        worst=figures[:_WORST],
        classes=len(figures),
        calibration=calibrate(log_probs, right, numpy_generator(subject.seed, "halves")) if len(rows) > 1 else None,
        names=subject.names,
    )


def _right(subject: Subject) -> tuple[list[int], Tensor, str]:
    """Rows of the test images whose class is known, their classes int64 [M], and how these are known."""
    if subject.test.labels is not None:
        return list(range(len(subject.test.images))), subject.test.labels, "true labels"
    return subject.known.rows.tolist(), subject.known.labels, "the teacher's answers"


def _confusions(
    subject: Subject, rows: Sequence[int], right: Tensor, log_probs: Tensor, matrix: Tensor, said: dict[int, int]
) -> list[Confusion]:
    """The most frequent confusions, each with the images of which the student is surest."""
    confidence, called = log_probs.exp().max(dim=1)
    off = matrix.clone().fill_diagonal_(0).flatten()
    order = torch.argsort(off, descending=True, stable=True)[:_PAIRS].tolist()
    found = []
    for place in order:
        if not off[place]:
            break
        of, other = divmod(place, len(matrix))
        hit = ((right == of) & (called == other)).nonzero().flatten()
        surest = hit[torch.argsort(confidence[hit], descending=True, stable=True)][:_EACH].tolist()
        mistakes = [
            Mistake(
                picture=picture(subject.test.images[rows[k]].numpy()),
                row=rows[k],
                confidence=float(confidence[k]),
                teacher=subject.names[said[rows[k]]] if rows[k] in said else None,
            )
            for k in surest
        ]
        found.append(
            Confusion(
                right=subject.names[of],
                called=subject.names[other],
                count=len(hit),
                share=len(hit) / int(matrix[of].sum()),
                mistakes=mistakes,
            )
        )
    return found
