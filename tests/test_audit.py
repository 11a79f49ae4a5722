"""Estimating recall from a sample: by hand, against the truth, and how often the interval holds it."""

import numpy as np
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from kdray.search.recall import Stratum, estimate_recall, share_out


def column(*scores: float) -> np.ndarray:
    return np.array(scores, dtype=np.float32)[:, None]


def test_by_hand():
    chosen = np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)
    nothing = estimate_recall(chosen, [Stratum(size=100, scores=column(0.5, 0.9))])
    assert (nothing.value, nothing.high, nothing.sampled) == (1.0, 1.0, 2)
    assert nothing.low == 0.0  # two of a hundred say next to nothing
    # One of two in the sample stands for five: with 0.1 and 0.2 chosen, two of the four places are left for it.
    half = estimate_recall(chosen, [Stratum(size=10, scores=column(0.25, 0.9))])
    assert half.value == pytest.approx(0.5)
    assert half.low <= 0.5 <= half.high


@given(st.integers(0, 400), st.lists(st.integers(0, 300), min_size=3, max_size=3))
def test_a_sample_is_shared_out_whole_and_over_all_that_is_there(count, sizes):
    count = min(sum(sizes), max(count, 3))
    counts = share_out(count, sizes, [0.1, 0.3])
    assert sum(counts) == count
    assert all(0 < drawn <= size if size else drawn == 0 for drawn, size in zip(counts, sizes, strict=True))


def test_shares_of_a_sample_by_hand():
    assert share_out(200, [500, 900, 9000], [0.2, 0.2]) == [40, 40, 120]
    assert share_out(200, [10, 900, 100], [0.2, 0.2]) == [
        10,
        90,
        100,
    ]  # what others lack comes from the first with room


def test_a_tie_is_no_miss():
    chosen = np.array([0.1, 0.2], dtype=np.float32)
    assert estimate_recall(chosen, [Stratum(size=50, scores=column(0.2, 0.2, 0.2))]).value == 1.0


def test_without_anything_left_out_it_is_certain():
    chosen = np.array([0.1, 0.2], dtype=np.float32)
    for strata in ([], [Stratum(size=0, scores=np.empty((0, 1), np.float32))]):
        found = estimate_recall(chosen, strata)
        assert (found.value, found.low, found.high, found.sampled) == (1.0, 1.0, 1.0, 0)


@given(st.integers(1, 40), st.integers(0, 60), st.integers(1, 3), st.integers(0, 1000), st.booleans())
@examples(200)
def test_a_sample_of_everything_gives_the_truth(k, others, width, seed, ties):
    rng = np.random.default_rng(seed)
    draw = (lambda *shape: rng.integers(0, 6, shape) / 6) if ties else (lambda *shape: rng.random(shape))
    chosen = np.sort(draw(k)).astype(np.float32)
    cut = rng.integers(0, others + 1)
    rest = draw(others, width).astype(np.float32)
    strata = [Stratum(size=len(part), scores=part) for part in (rest[:cut], rest[cut:])]
    found = estimate_recall(chosen, strata)
    everything = np.sort(np.concatenate([chosen, rest.ravel()]))[:k]
    missed = k - sum(min((everything == value).sum(), (chosen == value).sum()) for value in np.unique(chosen))
    assert found.value == pytest.approx(1 - missed / k)
    assert found.low <= found.value <= found.high


def test_the_estimate_is_right_on_average_and_the_interval_holds_the_truth():
    rng = np.random.default_rng(0)
    k, near, far = 400, 1200, 20_000
    inside, values = 0, []
    for _ in range(300):
        # The list holds most of the low scores, the groups beside it some, all others a few.
        listed, beside, others = rng.normal(0, 1, 4 * k), rng.normal(2.2, 1, near), rng.normal(5, 1.2, far)
        truth = np.sort(np.concatenate([listed, beside, others]))[:k]
        chosen = np.sort(listed)[:k]
        recall = len(np.intersect1d(truth, chosen)) / k
        strata = [
            Stratum(size=len(part), scores=rng.choice(part, count, replace=False)[:, None])
            for part, count in ((beside, 100), (others, 300))
        ]
        found = estimate_recall(chosen, strata)
        values.append(found.value - recall)
        inside += found.low <= recall <= found.high
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values)) + 0.002
    assert inside >= 0.95 * 300
