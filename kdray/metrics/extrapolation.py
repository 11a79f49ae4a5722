"""What more answers would bring: the learning curve of a student, continued with its error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import expit, logit

from kdray.utils.intervals import LEVEL
from kdray.utils.seeds import numpy_generator

LEAST = 3
"""Points that a curve needs: with two, nothing tells its bend from the noise."""

# The grid of curves. Exponents of image classifiers lie between 0.1 and 1 (Rosenfeld et al., ICLR 2020).
_HALF, _SPACING = 0.5, 0.025  # log-odds of the error at the last point, on both sides of those that were measured
_DEVIATIONS = 4  # of the choice of the test images, that lie on the grid on both sides where these are few
_EXPONENTS = np.geomspace(0.05, 1.5, 35)
_TYPICAL, _WIDTH = 0.4, 0.8  # median of the exponents, and the standard deviation of their logarithm, before any point
_FLOORS = np.linspace(0.0, 0.975, 40)  # part of the error at the last point that no number of answers removes
_NOISES = np.geomspace(0.02, 0.3, 8)  # standard deviation of the log-odds of the error from student to student
_DRAWS = 20_000


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a student is expected to reach with more answers.

    Attributes:
        count: images that it is trained on.
        value: median of its accuracy, or of its agreement with the teacher.
        low, high: its 95 % interval: of one student, measured on the same test images.
        gain_low, gain, gain_high: of its difference from a student of the last point, the same three.
    """

    count: int
    value: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float


def extrapolate(counts: Sequence[int], values: Sequence[float], tested: int, wanted: Sequence[int]) -> list[Expected]:
    """Continue a learning curve.

    The error of a student falls as a power of the number of images it is trained on, down to a floor: c + a n^-b. A few
    students do not settle these three numbers. So all curves on a grid are weighed by how likely they make what was
    measured: the log-odds of the error scatter from student to student, by how much is itself unknown, and with the
    choice of the test images. The answer is what these curves say together, and its interval how far they differ.

    Args:
        counts: images that each student was trained on, ascending, `LEAST` at least.
        values: share of the test images that each got right, in [0, 1].
        tested: number of test images.
        wanted: numbers of images to say what to expect of; each at least the last of `counts`.

    Raises:
        ValueError: too few points, counts that do not rise, a value that is no share, or `wanted` inside the curve.
    """
    _check(counts, values, tested, wanted)
    sizes, right = np.array(counts, dtype=np.float64), np.array(values, dtype=np.float64)
    errors = ((1 - right) * tested + 0.5) / (tested + 1)  # of none that was seen, too
    odds = logit(errors)
    sampling = 1 / (errors * (1 - errors) * tested)  # variance of the log-odds that comes from the test images
    height, exponent, floor, noise = np.meshgrid(
        expit(odds[-1] + _heights(float(sampling[-1]))), _EXPONENTS, _FLOORS, _NOISES, indexing="ij", sparse=True
    )
    weights = -0.5 * (np.log(exponent / _TYPICAL) / _WIDTH) ** 2
    for size, seen, variance in zip(sizes, odds, sampling, strict=True):
        total = noise**2 + variance
        distance = seen - logit(_error(height, exponent, floor, size / sizes[-1]))
        weights = weights - 0.5 * (distance**2 / total + np.log(total))
    chances = np.exp(weights - weights.max()).ravel()
    generator = numpy_generator(0, "extrapolation")
    drawn = np.unravel_index(generator.choice(len(chances), size=_DRAWS, p=chances / chances.sum()), weights.shape)
    a, b = height.ravel()[drawn[0]], exponent.ravel()[drawn[1]]
    c, s = floor.ravel()[drawn[2]], noise.ravel()[drawn[3]]
    scatter = s * generator.standard_normal(_DRAWS)
    found = []
    for count in wanted:
        error = _error(a, b, c, count / sizes[-1])
        low, middle, high = _interval(1 - expit(logit(error) + scatter))
        gain_low, gained, gain_high = _interval(a - error)
        found.append(
            Expected(count=count, value=middle, low=low, high=high, gain=gained, gain_low=gain_low, gain_high=gain_high)
        )
    return found


def _heights(variance: float) -> np.ndarray:
    """Log-odds of the error at the last point, beside those that were measured with this variance."""
    steps = round(max(_HALF, _DEVIATIONS * math.sqrt(variance)) / _SPACING)
    return _SPACING * np.arange(-steps, steps + 1)


def _error(height: np.ndarray, exponent: np.ndarray, floor: np.ndarray, times: float) -> np.ndarray:
    """The error after `times` the images of the last point, where it is `height`; below 1."""
    return np.minimum(height * (floor + (1 - floor) * times**-exponent), 1 - 1e-9)


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    return float(low), float(middle), float(high)


def _check(counts: Sequence[int], values: Sequence[float], tested: int, wanted: Sequence[int]) -> None:
    if len(counts) != len(values) or len(counts) < LEAST:
        raise ValueError(f"{len(counts)} counts and {len(values)} values; give as many of both, {LEAST} at least")
    if counts[0] < 1 or any(later <= earlier for earlier, later in pairwise(counts)):
        raise ValueError(f"counts must be positive and rise, got {list(counts)}")
    if not all(0 <= value <= 1 for value in values):
        raise ValueError(f"values must be shares in [0, 1], got {list(values)}")
    if tested < 1:
        raise ValueError(f"tested is {tested}; give the number of test images")
    if any(count < counts[-1] for count in wanted):
        raise ValueError(f"wanted must be {counts[-1]} at least, the last of counts, got {list(wanted)}")
