"""A random order of [0, n) that nobody has to list: the k-th number of it by arithmetic alone.

A Feistel network permutes the numbers of an even count of bits; a number it sends out of [0, n) is sent on until it
falls inside (cycle walking), which keeps it a permutation of [0, n). The first m of the order are a sample of m without
replacement, and those of a larger m hold those of a smaller one.
"""

import numpy as np
import torch
from torch import Tensor

from kdray.errors import PoolExhausted
from kdray.seeds import seed_sequence

_ROUNDS = 8
_FIRST, _SECOND = 0x2C1B3C6D, 0x297A2D39  # odd, below 2^30: products with numbers below 2^31 stay within int64


class RandomOrder:
    """A permutation of [0, n), the same for the same seed on every device.

    Args:
        n: how many numbers, 1 to 2^62.
        seed: of the order.
    """

    def __init__(self, n: int, seed: int) -> None:
        if not 1 <= n <= 1 << 62:
            raise ValueError(f"n must lie in [1, 2^62], got {n}")
        self._n = n
        self._half = max(1, ((n - 1).bit_length() + 1) // 2)  # bits of half a number; all of them hold at most 4 n
        keys = seed_sequence(seed, "order").generate_state(_ROUNDS) >> 2
        self._keys = [int(key) for key in keys]

    def __call__(self, ranks: Tensor) -> Tensor:
        """The numbers at `ranks`, int64 [B] of [0, n), in the order; int64 [B]."""
        numbers = self._once(ranks)
        while bool((outside := numbers >= self._n).any()):
            numbers[outside] = self._once(numbers[outside])
        return numbers

    def _once(self, numbers: Tensor) -> Tensor:
        mask = (1 << self._half) - 1
        left, right = numbers >> self._half, numbers & mask
        for key in self._keys:
            mixed = (right + key) & 0x7FFFFFFF
            mixed = mixed * _FIRST
            mixed = ((mixed ^ (mixed >> 19)) & 0x7FFFFFFF) * _SECOND
            left, right = right, left ^ (((mixed >> 15) ^ mixed) & mask)
        return (left << self._half) | right


def sample_without(n: int, k: int, taken: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """k distinct numbers of [0, n), none of `taken` (sorted, distinct), uniformly, without listing [0, n); int64.

    Draws ranks among the free numbers, then shifts each past the taken numbers at or before it.

    Raises:
        PoolExhausted: fewer than `k` are free.
    """
    free = n - len(taken)
    if k > free:
        raise PoolExhausted(
            f"{k:,} pairs wanted, {free:,} of {n:,} are left; lower budget.queries or raise images.count"
        )
    if k == 0:
        return np.empty(0, dtype=np.int64)
    # numpy's own choice lists all n where k is more than a fiftieth of them.
    order = RandomOrder(free, int(generator.integers(1 << 62)))
    return free_numbers(order(torch.arange(k)).numpy(), taken)


def free_numbers(ranks: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The numbers at `ranks`, int64, among those that are not `taken` (sorted, distinct): 0, 1, ... without them."""
    # The free number of rank r is r + t, where t counts taken numbers below it: taken[t] - t is the rank at which
    # the t-th taken number is passed.
    return ranks + np.searchsorted(taken - np.arange(len(taken)), ranks, side="right")
