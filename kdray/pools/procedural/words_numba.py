"""Random words for compiled drawing, and how it is compiled.

numba keeps what it has compiled until the file of the compiled function changes, and does not look at this one. So what
is here stays as it is: it is inlined into kept functions of other files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Numbers = npt.NDArray[Any]
"""Arrays of compiled functions."""
_STEP, _FIRST, _SECOND = (np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

inlined = njit(error_model="numpy", forceinline=True)  # numpy's: no check for division by 0, which does not occur
"""Compiles a function into those that call it."""


def kept(function: Callable[..., Any]) -> Any:
    """`function`, compiled at its first call and kept on disk, where numba finds a folder that it may write to."""
    try:
        return njit(error_model="numpy", nogil=True, cache=True)(function)
    except RuntimeError:  # neither beside the function's file nor in the user's folder: each process compiles it
        return njit(error_model="numpy", nogil=True)(function)


@inlined
def random_word(start: np.uint64, number: int) -> np.uint64:
    """Random word uint64 `number`, from 0 on, of SplitMix64 started at `start` uint64.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014, with the constants of Vigna's
    splitmix64.c.
    """
    mixed = start + np.uint64(number + 1) * _STEP
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
    return mixed ^ (mixed >> np.uint64(31))


@inlined
def bits(word: np.uint64, first: int, count: int) -> Any:
    """The number in the `count` bits of a word from bit `first` on, int64."""
    return np.int64((word >> np.uint64(first)) & np.uint64((1 << count) - 1))


@inlined
def part_below(word: np.uint64, first: int, count: int, end: int) -> int:
    """The number in these bits, mapped to [0, end)."""
    number: int = bits(word, first, count)
    return (number * end) >> count


@inlined
def random_colours(start: np.uint64, first: int, colours: Numbers) -> None:
    """Write random colours int64 [K, C], from the words of `start` from `first` on: a byte a channel, each colour in
    words of its own."""
    count, channels = colours.shape
    for colour in range(count):
        for channel in range(channels):
            number = first + colour * ((channels + 7) // 8) + channel // 8
            colours[colour, channel] = bits(random_word(start, number), 8 * (channel % 8), 8)
