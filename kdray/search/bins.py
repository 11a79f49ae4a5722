"""Bins of gains, so narrow that all gains of a bin may be taken for one value.

A bin is a float32 without its last 14 bits: 512 bins from each power of two to the next. The value of a bin is its
middle, so a gain differs from the value of its bin by less than a 1,024th (`WIDTH`). Bin 0 holds the gains below
2^-100, which count as 0.
"""

import numpy as np

_CUT = 14
_FIRST, _END = (127 - 100) << (23 - _CUT), (127 + 8) << (23 - _CUT)

BINS = 1 + _END - _FIRST
"""Number of bins. Gains must be below 2^8; the entropy of K classes is at most ln K."""
WIDTH = 2.0**-10
"""Most relative difference between a gain and the value of its bin."""


def bins_of(gains: np.ndarray) -> np.ndarray:
    """The bin of each gain, float32 [n]; int64 [n].

    Raises:
        ValueError: a gain is negative, not a number, or 2^8 or more.
    """
    gains = np.ascontiguousarray(gains, dtype=np.float32)
    if len(gains) and not (gains.min() >= 0 and gains.max() < 256):
        raise ValueError("gains must be finite and not negative: 1 - margin, 1 - confidence and entropy are")
    # +0.0 turns a negative zero into zero, whose bits are 0.
    bits = (gains + np.float32(0.0)).view(np.int32).astype(np.int64) >> _CUT
    bins: np.ndarray = np.maximum(bits - (_FIRST - 1), 0)
    return bins


def bin_values() -> np.ndarray:
    """The value of each bin, float64 [BINS], ascending."""
    bits = (np.arange(_FIRST, _END, dtype=np.int64) << _CUT) | (1 << (_CUT - 1))
    return np.concatenate([[0.0], bits.astype(np.int32).view(np.float32).astype(np.float64)])
