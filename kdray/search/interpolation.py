"""What a student thinks of the candidates between two images, guessed from a few of them.

A network of ReLUs is piecewise linear along the straight line between two images, so its logits at one λ are nearly a
linear combination of those at a few others and at both ends. Linear interpolation is such a combination. A better one
is fitted by least squares to a sample of pairs of which the student has seen every λ: a few dozen numbers, the same for
all pairs and classes, which put the kinks that nobody can know of where they are on average.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kdray.scores import INFORMATIVE

_SHRINK = 1e-4  # towards linear interpolation, as a share of the data's own scale: matters for tiny samples alone


def first_knots(size: int) -> tuple[int, ...]:
    """The λ every group is asked about, as indices of a grid of `size`: where most minima are near one."""
    return _at(size, (0.3, 0.7))


def second_knots(size: int) -> tuple[int, ...]:
    """The λ that groups of the longer list are asked about, the first ones among them."""
    return tuple(sorted({*first_knots(size), *_at(size, (0.1, 0.5, 0.9))}))


def _at(size: int, shares: Sequence[float]) -> tuple[int, ...]:
    return tuple(sorted({round(share * (size - 1)) for share in shares}))


def linear(lambdas: Sequence[float], knots: Sequence[int]) -> np.ndarray:
    """Linear interpolation as a matrix, float64 [L, M + 2].

    Columns stand for the logits at λ = 0 (the pair's second image), at the M knots in order, and at λ = 1 (its first);
    row k makes of them the logits at lambdas[k]. Rows sum to 1.

    Args:
        lambdas: the grid, L values in [0, 1].
        knots: M distinct indices of it.
    """
    points = [0.0, *(lambdas[k] for k in knots), 1.0]
    matrix = np.zeros((len(lambdas), len(points)))
    for row, value in enumerate(lambdas):
        if row in knots:
            matrix[row, 1 + list(knots).index(row)] = 1.0
            continue
        low = max((k for k, point in enumerate(points) if point <= value), key=lambda k: points[k])
        high = min((k for k, point in enumerate(points) if point >= value), key=lambda k: points[k])
        share = (value - points[low]) / (points[high] - points[low]) if points[high] > points[low] else 0.0
        matrix[row, low] += 1.0 - share
        matrix[row, high] += share
    return matrix


def fit(lambdas: Sequence[float], knots: Sequence[int], ends: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The combination that comes nearest to what a sample shows, as `linear` gives it: float32 [L, M + 2].

    Least squares over all groups and classes of the sample, logits less their mean over the classes (which no
    probability depends on). Where the sample says nothing it is linear interpolation.

    Args:
        ends: logits of the sample's second and first images, [G, 2, K].
        logits: at every λ, [G, L, K].
    """
    ends, logits = (x.astype(np.float64) - x.mean(axis=2, keepdims=True, dtype=np.float64) for x in (ends, logits))
    known = np.concatenate([ends[:, :1], logits[:, list(knots)], ends[:, 1:]], axis=1)  # [G, M + 2, K]
    data = known.transpose(0, 2, 1).reshape(-1, known.shape[1])  # [G K, M + 2]
    # Not by BLAS, whose sums may depend on the number of threads: every process must guess alike.
    square = np.einsum("ni,nj->ij", data, data)
    square += (_SHRINK * np.trace(square) / len(square) + 1e-9) * np.eye(len(square))
    matrix = linear(lambdas, knots)
    for row in range(len(lambdas)):
        if row not in knots:
            rest = logits[:, row].reshape(-1) - np.einsum("ni,i->n", data, matrix[row])
            matrix[row] += np.linalg.solve(square, np.einsum("ni,n->i", data, rest))
    return matrix.astype(np.float32)


def guess(known: Tensor, matrix: Tensor, score: str) -> Tensor:
    """The guessed score of each group at every λ; its own is the lowest.

    Args:
        known: logits float32 [G, M + 2, K], in the order of the columns of `matrix`.
        matrix: float32 [L, M + 2], see `fit`.
        score: a key of `kdray.scores.INFORMATIVE`.

    Returns:
        float32 [G, L].
    """
    groups, _, classes = known.shape
    guessed = torch.matmul(matrix, known)  # [G, L, K]
    scores = INFORMATIVE[score](guessed.view(-1, classes).softmax(dim=1))
    return scores.view(groups, len(matrix))
