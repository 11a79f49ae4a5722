"""Sines in whole numbers."""

import math


def sine_table(turn: int, bits: int) -> list[int]:
    """Sines of the angles 0 to 5/4 of a full turn, times 2^bits and rounded. The cosine of an angle is at angle +
    turn // 4.

    Args:
        turn: angles of a full turn, a multiple of 4.
        bits: fractional bits.
    """
    angles = (2 * math.pi * angle / turn for angle in range(turn + turn // 4))
    return [round(math.sin(angle) * (1 << bits)) for angle in angles]
