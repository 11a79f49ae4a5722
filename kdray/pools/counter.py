"""Random numbers that follow from a counter: the numbers of a candidate are a function of its id and the run's seed.

Whoever renders a candidate computes the same numbers, in any order and any company, on a CPU or a GPU: all is integer
arithmetic whose products stay below 2^62.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdray.utils.lazy import torch
from kdray.utils.seeds import seed_sequence

if TYPE_CHECKING:
    from torch import Tensor

BITS = 31
"""Random bits of a number."""
_MASK = (1 << BITS) - 1
_ROUNDS = 4
_FIRST, _SECOND = 0x2C1B3C6D, 0x297A2D39  # odd, below 2^30: products with numbers below 2^31 stay within int64


def scramble(numbers: Tensor, keys: Tensor | int) -> Tensor:
    """Mix the bits of numbers int64 in [0, 2^31) with keys in [0, 2^30); the low 31 bits of the result are mixed."""
    mixed = ((numbers + keys) & _MASK) * _FIRST
    mixed = ((mixed ^ (mixed >> 19)) & _MASK) * _SECOND
    return (mixed >> 15) ^ mixed


class CounterRandom:
    """Maps each counter to `count` random numbers.

    Args:
        seed: seed of the numbers.
        purpose: what they are for; numbers for other purposes are independent.
        count: numbers for each counter.
    """

    def __init__(self, seed: int, purpose: str, count: int) -> None:
        keys = seed_sequence(seed, purpose).generate_state(_ROUNDS * count) >> 2
        self._keys = torch.tensor(keys.astype("int64")).view(_ROUNDS, count, 1)

    def __call__(self, counters: Tensor) -> Tensor:
        """Random numbers int64 [count, B], uniform in [0, 2^31), for counters int64 [B] in [0, 2^62)."""
        keys = self._keys.to(counters.device)
        low, high = counters & _MASK, counters >> BITS
        numbers = scramble(low, keys[0]) & _MASK
        numbers = scramble(numbers ^ high, keys[1]) & _MASK
        for key in keys[2:]:
            numbers = scramble(numbers, key) & _MASK
        return numbers


def below(numbers: Tensor, end: Tensor | int) -> Tensor:
    """Map random numbers of 31 bits to integers in [0, end), `end` at most 2^31: uniform to end / 2^31."""
    return (numbers * end) >> BITS
