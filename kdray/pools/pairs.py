"""Ranking and unranking of unordered pairs i < j, in row-major order, in exact int64 arithmetic.

Pair 0 is (0, 1), pair 1 is (0, 2), ..., the last is (n-2, n-1). The pairs are never listed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def count_pairs(n: int) -> int:
    """Number of pairs i < j among `n` images."""
    return n * (n - 1) // 2


def rank_pairs(i: Tensor, j: Tensor, n: int) -> Tensor:
    """Map pairs (i, j), i < j, int64 [B] each, to their numbers int64 [B]."""
    return i * (2 * n - i - 1) // 2 + (j - i - 1)


def unrank_pairs(pairs: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Map pair numbers int64 [B] to (i, j), int64 [B] each, with i < j.

    The float64 square root may be slightly off for large n, so it gives only a first guess of the row. Integer
    steps then correct the row until row_start(i) <= pair < row_start(i + 1).

    Raises:
        IndexError: a pair number is negative or not below n (n - 1) / 2.
    """
    check_range(pairs, count_pairs(n), "pair numbers")
    b = 2 * n - 1
    root = (float(b) * float(b) - 8.0 * pairs.to(torch.float64)).clamp_min(0.0).sqrt()
    i = ((b - root) / 2).floor().to(torch.int64).clamp_(0, max(n - 2, 0))

    def row_start(row: Tensor) -> Tensor:
        return row * (b - row) // 2

    while True:
        too_far = row_start(i) > pairs
        too_short = row_start(i + 1) <= pairs
        if not bool((too_far | too_short).any()):
            break
        i = i - too_far.to(torch.int64) + too_short.to(torch.int64)
    return i, pairs - row_start(i) + i + 1


def check_range(numbers: Tensor, end: int, what: str) -> None:
    """Refuse numbers outside [0, end).

    Raises:
        IndexError: a number is out of range; the message calls the numbers `what`.
    """
    if numbers.numel() and (int(numbers.min()) < 0 or int(numbers.max()) >= end):
        raise IndexError(f"{what} must lie in [0, {end}), got {int(numbers.min())}..{int(numbers.max())}")
