"""What a student thinks of the candidates between two images, guessed from a few of them.

A network of ReLUs is piecewise linear along the straight line between two images, and the pieces are long: logits known
at both ends and at a few λ between them, interpolated linearly, rank pairs almost as the logits themselves would.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdray.scores import INFORMATIVE


def spread(size: int, count: int) -> list[int]:
    """`count` indices of a grid of `size` λ, spread evenly; one is the middle, more include both ends of the grid."""
    if count >= size:
        return list(range(size))
    if count == 1:
        return [size // 2]
    return [round(k * (size - 1) / (count - 1)) for k in range(count)]


def weights(lambdas: Sequence[float], knots: Sequence[int]) -> Tensor:
    """Linear interpolation as a matrix, float32 [L, M + 2].

    Columns stand for the logits at λ = 0 (the pair's second image), at the M knots in the order given, and at λ = 1
    (its first); row k makes of them the logits at lambdas[k]. Rows sum to 1.

    Args:
        lambdas: the grid, L values in [0, 1].
        knots: M distinct indices of it.
    """
    points = [0.0, *(lambdas[k] for k in knots), 1.0]
    order = sorted(range(len(points)), key=lambda k: points[k])
    matrix = torch.zeros(len(lambdas), len(points))
    for row, value in enumerate(lambdas):
        if row in knots:
            matrix[row, 1 + list(knots).index(row)] = 1.0
            continue
        low = max((k for k in order if points[k] <= value), key=lambda k: points[k])
        high = min((k for k in order if points[k] >= value), key=lambda k: points[k])
        share = (value - points[low]) / (points[high] - points[low]) if points[high] > points[low] else 0.0
        matrix[row, low] += 1.0 - share
        matrix[row, high] += share
    return matrix


def proxy(known: Tensor, matrix: Tensor, score: str) -> Tensor:
    """The guessed score of each group: the lowest over its λ.

    Args:
        known: logits float32 [G, M + 2, K], in the order of the columns of `matrix`.
        matrix: float32 [L, M + 2], see `weights`.
        score: a key of `kdray.scores.INFORMATIVE`.

    Returns:
        float32 [G].
    """
    groups, _, classes = known.shape
    guessed = torch.matmul(matrix, known)  # [G, L, K]
    scores = INFORMATIVE[score](guessed.view(-1, classes).softmax(dim=1))
    return scores.view(groups, len(matrix)).amin(dim=1)
