"""Rectangles of random area and shape, as shares of an image's sides."""

from functools import lru_cache

import numpy as np

AREAS, SHAPES = 256, 32  # levels between the smallest and the largest area, and between square and the longest shape


@lru_cache(maxsize=64)
def boxes(least: float, most: float, longest: float) -> np.ndarray:
    """Rectangles that fit into an image, float64 [AREAS * SHAPES, 2]: height and width as shares of the image's sides.

    Areas are spread evenly from `least` to `most`, as shares of the image. For each of them the ratio of the two sides
    is spread evenly from 1 to `longest`, or as far as the rectangle fits; half of the rectangles are tall, half are
    wide. Only sums, products, quotients and square roots are taken, which are the same on every machine.
    """
    area = (least + (most - least) * ((np.arange(AREAS) + 0.5) / AREAS))[:, None]
    area = np.maximum(area, 1e-9)  # a rectangle without an area has no shape
    ratio = 1.0 + (np.minimum(longest, 1.0 / area) - 1.0) * ((np.arange(SHAPES) // 2 + 0.5) / (SHAPES // 2))
    long, short = np.minimum(1.0, np.sqrt(area * ratio)), np.sqrt(area / ratio)
    tall = np.arange(SHAPES) % 2 == 0
    found = np.stack([np.where(tall, long, short), np.where(tall, short, long)], axis=2).reshape(-1, 2)
    found.setflags(write=False)  # it is shared
    return found
