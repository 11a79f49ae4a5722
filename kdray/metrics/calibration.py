"""Whether a classifier's confidence is the share of images that it gets right (Guo et al., ICML 2017)."""

from dataclasses import dataclass
from math import exp, log

import numpy as np
import torch
from torch import Tensor

BINS = 15
"""Bins of confidence, as Guo et al. have them."""
_HOTTEST = 100.0  # the temperature is sought between this and its inverse


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Images by the confidence of the class that they are called, in bins of one width over (0, 1].

    Attributes:
        counts: images of each bin.
        confidence: their mean confidence; None for an empty bin.
        accuracy: share of them that are right; None for an empty bin.
        error: expected calibration error: mean distance of both over all images, in [0, 1].
        nll: mean negative log-likelihood of the true classes, in nats.
    """

    counts: tuple[int, ...]
    confidence: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    error: float
    nll: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Confidence as it is, and as a temperature mends it.

    Attributes:
        before: as it is.
        temperature: by which the logits are to be divided: above 1 where the classifier is too sure.
        after: with temperatures that other images gave: each half of the images has that of the other half.
    """

    before: Reliability
    temperature: float
    after: Reliability


def reliability(log_probs: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """The bins and the error of predictions.

    Args:
        log_probs: natural logarithms of probabilities, float [N, K].
        labels: true classes, int64 [N].
        bins: at least 1.

    Raises:
        ValueError: there is no image, not one label for each, or no bin.
    """
    _check(log_probs, labels)
    if bins < 1:
        raise ValueError(f"bins is {bins}; give at least one")
    confidence, called = log_probs.double().exp().max(dim=1)
    right = (called == labels).double()
    # A bin holds its upper edge: (0, 1/15], (1/15, 2/15], ...
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    counts = torch.bincount(place, minlength=bins)
    sums = [torch.zeros(bins, dtype=torch.float64).index_add_(0, place, values) for values in (confidence, right)]
    distance = (sums[0] - sums[1]).abs().sum() / len(labels)
    means = [
        tuple(total / count if count else None for total, count in zip(some.tolist(), counts.tolist(), strict=True))
        for some in sums
    ]
    return Reliability(
        counts=tuple(counts.tolist()),
        confidence=means[0],
        accuracy=means[1],
        error=float(distance),
        nll=_nll(log_probs.double(), labels),
    )


def best_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """The temperature T with the lowest mean negative log-likelihood of softmax(log_probs / T), in [0.01, 100].

    Log-probabilities serve as well as logits, since softmax ignores a shift. Where all predictions are right, it is the
    lower end.

    Raises:
        ValueError: there is no image, or not one label for each.
    """
    _check(log_probs, labels)
    from scipy.optimize import minimize_scalar

    rows = log_probs.double().clamp_min(-1e4)  # a probability of 0 is no number
    found = minimize_scalar(
        lambda power: _nll(at_temperature(rows, exp(power)), labels),
        bounds=(-log(_HOTTEST), log(_HOTTEST)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return exp(found.x)


def at_temperature(log_probs: Tensor, temperature: float) -> Tensor:
    """log softmax(log_probs / T), float [N, K]."""
    return (log_probs / temperature).log_softmax(dim=1)


def calibrate(log_probs: Tensor, labels: Tensor, generator: np.random.Generator, bins: int = BINS) -> Calibration:
    """How well calibrated predictions are, and what a temperature mends.

    Args:
        log_probs: float [N, K].
        labels: int64 [N], N at least 2.
        generator: divides the images into halves.

    Raises:
        ValueError: see `reliability`; or there is one image alone.
    """
    _check(log_probs, labels)
    if len(labels) < 2:
        raise ValueError("a temperature is tried on other images than it comes from: give two at least")
    rows = log_probs.double().clamp_min(-1e4)
    order = torch.from_numpy(generator.permutation(len(labels)))
    halves = order.tensor_split(2)
    mended = torch.empty_like(rows)
    for here, there in (halves, halves[::-1]):
        mended[here] = at_temperature(rows[here], best_temperature(rows[there], labels[there]))
    return Calibration(
        before=reliability(log_probs, labels, bins),
        temperature=best_temperature(rows, labels),
        after=reliability(mended, labels, bins),
    )


def _nll(log_probs: Tensor, labels: Tensor) -> float:
    return float(-log_probs.gather(1, labels[:, None]).mean())


def _check(log_probs: Tensor, labels: Tensor) -> None:
    if len(labels) == 0:
        raise ValueError("there is no image")
    if len(log_probs) != len(labels):
        raise ValueError(f"{len(labels)} labels of {len(log_probs)} predictions; each image needs one")
