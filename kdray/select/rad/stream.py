"""RAD's draw from a pool too large to list its gains: memory for k candidates and the bins, and one pass over the pool.

1. A pilot: the gains of a random sample of groups. They give an estimate of the probabilities, and so a limit for each
   bin: the draw will hardly need a candidate whose key (`kdray.search.binned`) is above it.
2. The pass: every task counts its gains in bins and returns the candidates of low key.
3. The counts give the probabilities, which are equal within a bin (`kdray.select.rad.binned`). The expected numbers of
   candidates from each bin are rounded dependently to whole numbers that sum to k. From each bin the candidates of
   lowest key are taken, a uniform sample.
4. If a bin lacks candidates, the pass is repeated with limits from the known counts and numbers. They are not drawn
   again, so the choice is the same: the pilot decides how much is held, never what is chosen.

So exactly k candidates are drawn, each with its probability, and two are never drawn together more often than if they
were drawn independently: for two bins by dependent rounding, and within a bin by sampling without replacement.
"""

from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np

from kdray.pools.base import Pool
from kdray.pools.permutation import RandomOrder
from kdray.search import GainsRequest
from kdray.search.binned import ROW_BYTES, Binned, BinnedRequest, Held
from kdray.search.bins import BINS
from kdray.search.gains import passes_for
from kdray.select.base import Ask
from kdray.select.rad.binned import inclusion_of_bins, most_draws_of_bins
from kdray.select.rounding import dependent_round
from kdray.utils.lazy import torch

_PILOT, _SHARE = 1 << 20, 64  # groups in the pilot: at most so many, and at most this part of the pool
_FAR = 4.0  # standard deviations by which a figure of the pilot may be wrong
_WINDOW = 33  # bins over which the pilot's counts are averaged
_SPARE = 30.0  # candidates held in every bin beyond the expected ones and six standard deviations
_ROOM = 2.0  # most candidates held, divided by their expected number
_COPIES = 4  # times that they are in memory while the lowest keys are found
_USUAL_BINS = 25 * 512  # bins of all gains from 2^-24, the smallest margin above 0, to 1


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The result of a draw.

    Attributes:
        held: the drawn candidates, or groups, ordered by number.
        draws: how many were to be drawn; fewer than wanted only if told to shrink.
        support: number of candidates whose probability is not zero.
        passes: forward passes made, in images.
        guessed: whether the gains are guessed.
    """

    held: Held
    draws: int
    support: int
    passes: int
    guessed: bool


def draw_streamed(
    pool: Pool,
    ask: Ask,
    gains: GainsRequest,
    *,
    k: int,
    mistakes: float,
    w: float | None,
    shrink: bool,
    generator: np.random.Generator,
) -> Drawn:
    """Draw k distinct candidates, or groups, of those that are left; see the module.

    Args:
        gains: what the gains are, and what has left the pool.
        k: at most as many as are left.
        mistakes, w: see `kdray.select.rad.game.distribution`.
        shrink: draw fewer where a probability would exceed 1.
        generator: gives the seeds of the pilot and of the keys, and rounds the numbers of the bins.
    """
    total = pool.num_groups * (pool.group_size if gains.per == "candidate" else 1)
    left = total - len(gains.taken)
    if k == 0:
        nothing = Held(numbers=np.empty(0, np.int64), keys=np.empty(0), gains=np.empty(0, np.float32))
        return Drawn(held=nothing, draws=0, support=0, passes=0, guessed=False)
    seed, pilot_seed = (int(number) for number in generator.integers(1 << 62, size=2))
    count = pilot_size(pool.num_groups)
    groups = np.sort(RandomOrder(pool.num_groups, pilot_seed)(torch.arange(count)).numpy())
    pilot = ask(BinnedRequest(gains=gains, groups=groups))
    cluster = pool.group_size if gains.per == "candidate" else 1  # the candidates of a group have similar gains
    limits, most = first_limits(pilot.counts, left, k, mistakes, w, cluster)
    found = ask(BinnedRequest(gains=gains, seed=seed, limits=limits, most=most))
    passes = pilot.evaluated + found.evaluated

    draws = min(k, most_draws_of_bins(found.counts, mistakes, w)) if shrink else k
    probs = inclusion_of_bins(found.counts, draws, mistakes, w)
    wanted = round_bins(probs, found.counts, generator)
    held, spare = found.lowest(wanted), _SPARE
    while held is None:
        limits, most = exact_limits(wanted, found.counts, spare)
        again: Binned = ask(BinnedRequest(gains=gains, seed=seed, limits=limits, most=most))
        passes += again.evaluated
        held, spare = again.lowest(wanted), 2 * spare
    support = int(found.counts[probs > 0.0].sum())
    return Drawn(held=held, draws=draws, support=support, passes=passes, guessed=found.guessed)


def pilot_size(groups: int) -> int:
    """Number of groups in the pilot."""
    return min(groups, max(1000, min(_PILOT, groups // _SHARE)))


def passes(pool: Pool, *, guess: bool) -> int:
    """Forward passes of a draw, unless the pass has to be repeated."""
    whole, pilot = (passes_for(pool, count, guess=guess) for count in (pool.num_groups, pilot_size(pool.num_groups)))
    return whole + pilot


def driver_bytes(pool: Pool, k: int) -> int:
    """Bytes held in the driver for a draw of k from a fresh pool, at most, where gains lie between 2^-24 and 1."""
    ratio = pool.num_groups / pilot_size(pool.num_groups)
    rows = 1.1 * _more(k, ratio) + 6.0 * sqrt(_USUAL_BINS * _more(k, ratio)) + _SPARE * _USUAL_BINS
    return ceil(_ROOM * rows) * ROW_BYTES * _COPIES + 10 * 8 * BINS


def round_bins(probs: np.ndarray, counts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """How many candidates of each bin are drawn, int64 [BINS].

    Args:
        probs: float64 [BINS], of each candidate of a bin. Over all candidates they sum to a whole number.
        counts: int64 [BINS], candidates in each bin.
    """
    expected = probs * counts
    # A sum of many may be off a whole number in the last bits, for example where all of a bin are certain.
    whole = np.floor(expected + 1e-9)
    wanted: np.ndarray = whole.astype(np.int64)
    wanted[dependent_round(np.clip(expected - whole, 0.0, 1.0), generator)] += 1
    return wanted


def first_limits(
    sample: np.ndarray, left: int, k: int, mistakes: float, w: float | None, cluster: int = 1
) -> tuple[np.ndarray, int]:
    """Limits float64 [BINS] for the keys of the candidates that a draw of k may need, and the most to hold.

    Args:
        sample: int64 [BINS], the gains of the pilot in bins.
        left: number of candidates that are left in the pool.
        mistakes, w: see `kdray.select.rad.game.distribution`.
        cluster: number of gains of the pilot that are alike.
    """
    seen = int(sample.sum())
    if seen == 0:
        return np.ones(BINS), ceil(_ROOM * (k + _SPARE * BINS))
    ratio = left / seen
    estimate = np.rint(sample * ratio).astype(np.int64)
    n = int(estimate.sum())
    draws = min(n, _more(k, max(0.0, ratio - 1.0) * cluster))
    # A threshold that is too low or too high in the sample is that of another m.
    off = 0.0 if ratio <= 1.0 else _FAR * 0.5 * sqrt(cluster / seen)
    likely = np.clip(mistakes / left + off * np.linspace(-1.0, 1.0, 5), 0.0, 1.0) * n
    probs = np.max([inclusion_of_bins(estimate, draws, m, w) for m in likely], axis=0)
    # Each bin: its mean with its neighbours, or what its own count allows at most if that is less.
    near = np.convolve(sample, np.full(_WINDOW, 1.0 / _WINDOW), mode="same")
    size = np.maximum(1.0, ratio * np.minimum(near, sample + 3.0 * np.sqrt(sample) + 3.0))
    spare = (6.0 * np.sqrt(probs * size) + _SPARE) / size
    limits = np.where(probs > 0.0, np.minimum(1.0, 1.1 * probs + spare), 0.0)
    return limits, ceil(_ROOM * float(limits @ np.maximum(size, ratio * sample))) + k


def exact_limits(wanted: np.ndarray, counts: np.ndarray, spare: float) -> tuple[np.ndarray, int]:
    """Limits for keys below which `wanted` candidates of each bin lie, and the most to hold.

    Args:
        wanted, counts: int64 [BINS], of how many candidates of each bin.
        spare: candidates held in every such bin beyond six standard deviations.
    """
    more = np.where(wanted > 0, np.minimum(counts, wanted + 6.0 * np.sqrt(wanted) + spare), 0.0)
    limits = np.minimum(1.0, more / np.maximum(counts, 1))
    return limits, ceil(_ROOM * float(more.sum())) + 1


def _more(k: int, ratio: float) -> int:
    """At least as many as k draws may look like in a sample of one in `ratio` of the gains."""
    return ceil(k + _FAR * sqrt(k * ratio) + 2 * _FAR * ratio)
