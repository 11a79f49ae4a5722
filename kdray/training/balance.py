"""Classes that count alike in training, however many answers name each ("What Makes a Good Dataset for Knowledge
Distillation?", section 3.2).

An epoch has as many images with balance as without. What changes is how often each image is among them. So length,
batches, losses of your own, mixes, unpaid candidates and training in several processes need not know of it. A weight in
the loss would have the same expectation, but a loss gives a mean, and one image of weight ten is a step ten times as
long.
"""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING, Literal

from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Balance = Literal["none", "equal", "replicate"]

MOST = 10.0
"""An image is trained on at most so many times as often as without balance: a class with one answer stays rare."""


def repeats(labels: Tensor, balance: Balance) -> Tensor:
    """How often each image is in an epoch, on average.

    equal: all classes that have images are trained on equally often; what the bound `MOST` keeps from a class goes to
    the others. It is the paper's N_i for each class, but no image of a large class is left out for good: these are
    drawn anew in each epoch. replicate: images of rare classes are repeated up to the mean number of images of a class,
    and an epoch is a sample of all images and repetitions.

    Args:
        labels: int64 [N], the top class of each answer.

    Returns:
        float64 [N], with a sum of N. All are 1 if all classes that have images have equally many.
    """
    counts = torch.bincount(labels).double()
    mean = len(labels) / max(1, int((counts > 0).sum()))
    if balance == "none":
        shares = counts
    elif balance == "equal":
        shares = (MOST * counts).clamp(max=_level((MOST * counts[counts > 0]).tolist(), len(labels)))
    else:
        shares = counts.maximum((MOST * counts).clamp(max=mean))
    shares = shares * (len(labels) / fsum(shares.tolist()))  # the same bits on each CPU, as processes share an order
    return (shares / counts)[labels]


def _level(bounds: list[float], total: float) -> float:
    """The level for which the sum of min(level, bound) is `total`, which is at most the sum of all bounds."""
    left = sorted(bounds)
    while left[0] < total / len(left):
        total -= left.pop(0)
    return total / len(left)


def balanced_order(labels: Tensor, often: Tensor, generator: torch.Generator) -> Tensor:
    """The images of an epoch, in random order: systematic sampling, which draws each image its number of times, rounded
    up or down at random, and each class as well.

    Args:
        labels: int64 [N].
        often: see `repeats`.
        generator: on the CPU.

    Returns:
        int64 [N], row numbers, some of them several times.
    """
    count = len(labels)
    order = torch.randperm(count, generator=generator)
    order = order[labels[order].argsort(stable=True)]
    ends = often[order].cumsum(dim=0)
    points = torch.arange(count) + torch.rand((), generator=generator, dtype=torch.float64)
    rows = torch.searchsorted(ends, points, right=True).clamp_(max=count - 1)  # the last sum may be a little short
    return order[rows][torch.randperm(count, generator=generator)]
