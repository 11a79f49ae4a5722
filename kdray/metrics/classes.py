"""What a classifier gets right, by class. All figures are scikit-learn's on the same predictions."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """What is found of one class; a share of nothing is None.

    Attributes:
        support: images of the class.
        predicted: images that were called so.
        precision: share of the predicted that are of the class.
        recall: share of the class that was predicted.
        f1: harmonic mean of both; 0 where the class has images or predictions, and none agree.
    """

    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Counts int64 [K, K] of images of class i (row) that were called j (column).

    Args:
        labels, predictions: int64 [N], each in [0, K).

    Raises:
        ValueError: lengths differ, or a class is out of range.
    """
    if len(labels) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions of {len(labels)} labels; each image needs both")
    for name, values in (("labels", labels), ("predictions", predictions)):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            raise ValueError(f"{name} must lie in [0, {num_classes}), got {int(values.min())}..{int(values.max())}")
    counts = torch.bincount(labels * num_classes + predictions, minlength=num_classes * num_classes)
    return counts.view(num_classes, num_classes)


def class_figures(confusion: Tensor) -> list[ClassFigures]:
    """The figures of each class, of a `confusion_matrix` [K, K]."""
    right = confusion.diagonal().tolist()
    support, predicted = confusion.sum(dim=1).tolist(), confusion.sum(dim=0).tolist()
    return [
        ClassFigures(
            support=of,
            predicted=called,
            precision=hits / called if called else None,
            recall=hits / of if of else None,
            f1=2 * hits / (of + called) if of + called else None,
        )
        for hits, of, called in zip(right, support, predicted, strict=True)
    ]


def top_k_accuracy(probs: Tensor, labels: Tensor, k: int) -> float:
    """Share of images whose class is among the k likeliest.

    Args:
        probs: float [N, K], probabilities or logits.
        labels: int64 [N].
        k: in 1..K.

    Raises:
        ValueError: k is out of range, or there is no image.
    """
    if not 1 <= k <= probs.shape[1]:
        raise ValueError(f"k is {k}; give 1 to {probs.shape[1]}, the number of classes")
    if len(labels) == 0:
        raise ValueError("there is no image")
    return float((probs.topk(k, dim=1).indices == labels[:, None]).any(dim=1).double().mean())
