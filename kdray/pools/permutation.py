"""A random order of [0, n) that is not stored: the k-th number is computed by arithmetic alone.

A Feistel network permutes the numbers with an even count of bits. A number that it maps outside [0, n) is mapped again
until it falls inside (cycle walking), so the result is a permutation of [0, n). The first m numbers of the order are a
sample of m without replacement, and a larger sample contains the smaller one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kdray.errors import PoolExhausted
from kdray.pools.counter import scramble
from kdray.utils.lazy import torch
from kdray.utils.seeds import seed_sequence

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDS = 8


class RandomOrder:
    """A permutation of [0, n), the same for the same seed on every device.

    Args:
        n: count of numbers, 1 to 2^62.
        seed: seed of the order.
    """

    def __init__(self, n: int, seed: int) -> None:
        if not 1 <= n <= 1 << 62:
            raise ValueError(f"n must lie in [1, 2^62], got {n}")
        self._n = n
        self._half = max(1, ((n - 1).bit_length() + 1) // 2)  # bits of half a number; all bits hold at most 4 n numbers
        keys = seed_sequence(seed, "order").generate_state(_ROUNDS) >> 2
        self._keys = [int(key) for key in keys]

    def __call__(self, ranks: Tensor) -> Tensor:
        """The numbers int64 [B] at the positions `ranks` of the order, int64 [B] in [0, n)."""
        numbers = self._once(ranks)
        while bool((outside := numbers >= self._n).any()):
            numbers[outside] = self._once(numbers[outside])
        return numbers

    def _once(self, numbers: Tensor) -> Tensor:
        mask = (1 << self._half) - 1
        left, right = numbers >> self._half, numbers & mask
        for key in self._keys:
            left, right = right, left ^ (scramble(right, key) & mask)
        return (left << self._half) | right


def sample_without(n: int, k: int, taken: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw k distinct numbers of [0, n) uniformly, none of them in `taken` (sorted, distinct); int64.

    This does not list [0, n). It draws ranks among the free numbers, then shifts each past the taken numbers at or
    before it.

    Raises:
        PoolExhausted: fewer than `k` numbers are free.
    """
    free = n - len(taken)
    if k > free:
        raise PoolExhausted(
            f"{k:,} candidates wanted, {free:,} of {n:,} are left; lower budget.queries, or give more images "
            "(images.count)"
        )
    if k == 0:
        return np.empty(0, dtype=np.int64)
    # numpy's own choice lists all n numbers if k is more than a fiftieth of n.
    order = RandomOrder(free, int(generator.integers(1 << 62)))
    return free_numbers(order(torch.arange(k)).numpy(), taken)


def free_numbers(ranks: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The numbers, int64, at positions `ranks` of the sequence 0, 1, ... without `taken` (sorted, distinct)."""
    # The free number of rank r is r + t, where t counts the taken numbers below it. taken[t] - t is the rank at which
    # the t-th taken number is passed.
    return ranks + np.searchsorted(taken - np.arange(len(taken)), ranks, side="right")
