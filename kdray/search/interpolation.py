"""Guesses of the student's scores for all mixes of two images, from its logits at a few λ.

A ReLU network is piecewise linear along the straight line between two images. So its logits at one λ are nearly a
linear combination of its logits at a few other λ and at both ends. Linear interpolation is such a combination. A better
one is fitted by least squares to a sample of pairs, for which the student's logits are computed at every λ. It is a
matrix of a few dozen numbers, the same for all pairs and classes. The fit accounts for the kinks of the network between
the known points, at their average positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdray.search.acquisition import INFORMATIVE, Score
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_SHRINK = 1e-4  # penalty towards linear interpolation, relative to the data's scale; it affects only tiny samples


def first_knots(size: int) -> tuple[int, ...]:
    """Indices, in a grid of `size`, of the λ at which every group is evaluated. Most minima lie near one of them."""
    return _at(size, (0.3, 0.7))


def second_knots(size: int) -> tuple[int, ...]:
    """Indices of the λ at which the groups of the longer list are evaluated. They include the first knots."""
    return tuple(sorted({*first_knots(size), *_at(size, (0.1, 0.5, 0.9))}))


def _at(size: int, shares: Sequence[float]) -> tuple[int, ...]:
    return tuple(sorted({round(share * (size - 1)) for share in shares}))


def linear(lambdas: Sequence[float], knots: Sequence[int]) -> np.ndarray:
    """Linear interpolation as a matrix, float64 [L, M + 2].

    The columns stand for the logits at λ = 0 (the pair's second image), at the M knots in order, and at λ = 1 (its
    first image). Row k combines them into the logits at lambdas[k]. Each row sums to 1.

    Args:
        lambdas: the grid, L values in [0, 1].
        knots: M distinct indices of the grid.
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
    """Fit the matrix to a sample of groups. It has the form of the matrix of `linear`: float32 [L, M + 2].

    The fit is by least squares over all groups and classes of the sample. The mean over the classes is subtracted from
    the logits, as no probability depends on it. Without information from the sample, the result is linear
    interpolation.

    Args:
        lambdas, knots: see `linear`.
        ends: logits of the second and the first image of each group, [G, 2, K].
        logits: logits of each group at every λ, [G, L, K].
    """
    ends, logits = (x.astype(np.float64) - x.mean(axis=2, keepdims=True, dtype=np.float64) for x in (ends, logits))
    known = np.concatenate([ends[:, :1], logits[:, list(knots)], ends[:, 1:]], axis=1)  # [G, M + 2, K]
    data = known.transpose(0, 2, 1).reshape(-1, known.shape[1])  # [G K, M + 2]
    # No BLAS: its sums may depend on the number of threads, and every process must compute the same matrix.
    square = np.einsum("ni,nj->ij", data, data)
    square += (_SHRINK * np.trace(square) / len(square) + 1e-9) * np.eye(len(square))
    matrix = linear(lambdas, knots)
    for row in range(len(lambdas)):
        if row not in knots:
            rest = logits[:, row].reshape(-1) - np.einsum("ni,i->n", data, matrix[row])
            matrix[row] += np.linalg.solve(square, np.einsum("ni,n->i", data, rest))
    return matrix.astype(np.float32)


def guess(known: Tensor, matrix: Tensor, score: Score) -> Tensor:
    """Guessed scores of each group at every λ.

    Args:
        known: logits float32 [G, M + 2, K], in the order of the columns of `matrix`.
        matrix: float32 [L, M + 2], see `fit`.
        score: a key of `kdray.search.acquisition.INFORMATIVE`.

    Returns:
        float32 [G, L].
    """
    groups, _, classes = known.shape
    guessed = torch.matmul(matrix, known)  # [G, L, K]
    scores = INFORMATIVE[score](guessed.view(-1, classes).softmax(dim=1))
    return scores.view(groups, len(matrix))
