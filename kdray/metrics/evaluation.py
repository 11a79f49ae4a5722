"""All figures of a student at once: classes, calibration, agreement with the teacher, attacks, features, speed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdray.errors import ModelError
from kdray.metrics.calibration import Calibration, calibrate
from kdray.metrics.classes import ClassFigures, class_figures, confusion_matrix, top_k_accuracy
from kdray.metrics.speed import Size, Speed, measure_speed, size_of
from kdray.models.features import head, penultimate
from kdray.models.predict import accuracy, images_at_a_time, predict_log_probs
from kdray.models.robustness import EPSILONS, fgsm, ifgsm, robust_accuracy
from kdray.models.smoothness import v_measure
from kdray.utils.intervals import clopper_pearson
from kdray.utils.seeds import numpy_generator

TOP = 5
"""k of the second accuracy, where there are more classes than that."""
_CLUSTERED = 10_000  # most images whose features are clustered


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of images.

    Attributes:
        value: in [0, 1].
        low, high: its 95 % interval (Clopper-Pearson).
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What is found with true labels.

    Attributes:
        top1: share of images whose likeliest class is the true one.
        top5: share of those whose true class is among the five likeliest; None with five classes or fewer.
        classes: of each class.
        confusion: K rows of K counts: images of the row's class that were called the column's.
        calibration: of the likeliest class's probability; None of one image.
    """

    top1: Share
    top5: float | None
    classes: tuple[ClassFigures, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration: Calibration | None


@dataclass(frozen=True, kw_only=True)
class BesideTeacher:
    """What is found on images that the teacher answered.

    Attributes:
        images: number of them.
        agreement: share for which both name the same class.
        teacher, student: accuracy of each on these images; None without true labels.
        success: student / teacher.
    """

    images: int
    agreement: Share
    teacher: float | None
    student: float | None
    success: float | None


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Accuracy on images that are changed against the student (MIX-KD, Table 3).

    Attributes:
        images: number of them.
        epsilons: largest change of a pixel, in units of pixel / 255.
        none: accuracy on the images as they are.
        fgsm, ifgsm: accuracy for each of the epsilons.
    """

    images: int
    epsilons: tuple[float, ...]
    none: float
    fgsm: tuple[float, ...]
    ifgsm: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that was measured; None where it could not be, or was not wanted.

    Attributes:
        images: number of them.
        labelled: with true labels.
        teacher: beside the teacher's answers.
        attacked: against the student.
        v_measure: of the classes and the k-means clusters of the features in front of the last layer (MIX-KD, Figure
            3); None without labels, or of a network that does not end in a linear layer.
        speed: on one core.
        size: of the network.
    """

    images: int
    labelled: Labelled | None
    teacher: BesideTeacher | None
    attacked: Attacked | None
    v_measure: float | None
    speed: Speed
    size: Size


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    *,
    rows: Tensor | None = None,
    answers: Tensor | None = None,
    attacked: int = 1000,
    epsilons: Sequence[float] = EPSILONS,
    seconds: float = 1.0,
    seed: int = 0,
    threads: int | None = None,
) -> Evaluation:
    """Measure a student. It is left on the CPU.

    Args:
        model: uint8 images [B, C, H, W] to logits [B, K].
        images: uint8 [N, C, H, W], N at least 1.
        labels: true classes, int64 [N], each in [0, K); None where they are not known.
        rows: the images that the teacher answered, int64 [M]; None: none.
        answers: its classes for them, int64 [M].
        attacked: images to attack, at most; a random part of them. 0 attacks none.
        epsilons: see `kdray.models.robustness`.
        seconds: see `measure_speed`.
        seed: of what is drawn at random.
        threads: CPU threads, but for the speed, which is that of one.

    Raises:
        ValueError: see `confusion_matrix`, `robust_accuracy` and `measure_speed`; or there is no image.
    """
    if len(images) == 0:
        raise ValueError("there is no image")
    log_probs = predict_log_probs(model, images, threads=threads)
    predictions = log_probs.argmax(dim=1)
    teacher = labelled = hurt = clustered = None
    if rows is not None and answers is not None and len(rows):
        teacher = _beside(predictions, labels, rows, answers)
    if labels is not None:
        labelled = _labelled(log_probs, predictions, labels, seed)
        hurt = _attack(model, images, labels, attacked, epsilons, seed) if attacked else None
        clustered = _clustered(model, images, labels, log_probs.shape[1], seed)
    return Evaluation(
        images=len(images),
        labelled=labelled,
        teacher=teacher,
        attacked=hurt,
        v_measure=clustered,
        speed=measure_speed(model, images.shape[1:], seconds),
        size=size_of(model),
    )


def share(hits: int, count: int) -> Share:
    """A share with its interval; `count` at least 1."""
    low, high = clopper_pearson(hits, count)
    return Share(value=hits / count, low=low, high=high)


def _labelled(log_probs: Tensor, predictions: Tensor, labels: Tensor, seed: int) -> Labelled:
    confusion = confusion_matrix(labels, predictions, log_probs.shape[1])
    several = len(labels) > 1
    return Labelled(
        top1=share(int((predictions == labels).sum()), len(labels)),
        top5=top_k_accuracy(log_probs, labels, TOP) if log_probs.shape[1] > TOP else None,
        classes=tuple(class_figures(confusion)),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        calibration=calibrate(log_probs, labels, numpy_generator(seed, "halves")) if several else None,
    )


def _beside(predictions: Tensor, labels: Tensor | None, rows: Tensor, answers: Tensor) -> BesideTeacher:
    own = predictions[rows]
    student = teacher = None
    if labels is not None:
        student, teacher = accuracy(own, labels[rows]), accuracy(answers, labels[rows])
    return BesideTeacher(
        images=len(rows),
        agreement=share(int((own == answers).sum()), len(rows)),
        teacher=teacher,
        student=student,
        success=student / teacher if student is not None and teacher else None,
    )


def _attack(
    model: nn.Module, images: Tensor, labels: Tensor, most: int, epsilons: Sequence[float], seed: int
) -> Attacked:
    some = _some(len(images), most, seed, "attacked")
    images, labels = images[some], labels[some]
    found = robust_accuracy(model, images, labels, (0.0, *epsilons), fgsm)
    iterated = robust_accuracy(model, images, labels, epsilons, ifgsm)
    return Attacked(
        images=len(labels),
        epsilons=tuple(epsilons),
        none=found[0.0],
        fgsm=tuple(found[eps] for eps in epsilons),
        ifgsm=tuple(iterated[eps] for eps in epsilons),
    )


def _clustered(model: nn.Module, images: Tensor, labels: Tensor, num_classes: int, seed: int) -> float | None:
    try:
        head(model)
    except ModelError:
        return None
    some = _some(len(images), _CLUSTERED, seed, "clustered")
    step = images_at_a_time(256, images.shape[1:], "cpu")
    with torch.inference_mode():
        features = torch.cat([penultimate(model, images[rows]) for rows in some.split(step)])
    return v_measure(features, labels[some], min(num_classes, len(some)), seed)


def _some(count: int, most: int, seed: int, purpose: str) -> Tensor:
    """Rows of at most so many images, drawn at random, ascending."""
    drawn = numpy_generator(seed, purpose).permutation(count)[:most]
    return torch.from_numpy(drawn).sort().values
