"""Selections: one contract that all keep, and what sets each apart."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdray.errors import PoolExhausted
from kdray.pools.mixup import MixupPool
from kdray.pools.order import sample_without
from kdray.search import LocalSearcher
from kdray.select import STRATEGIES, capacity, select
from kdray.students.models import build_model

LAMBDAS = [0.3, 0.4, 0.5, 0.6, 0.7]


@pytest.fixture(scope="module")
def pool() -> MixupPool:
    generator = torch.Generator().manual_seed(0)
    return MixupPool(torch.randint(0, 256, (16, 1, 28, 28), generator=generator, dtype=torch.uint8), LAMBDAS)


@pytest.fixture(scope="module")
def search(pool):
    model = build_model("lenet5", (1, 28, 28), 10, seed=1)
    return lambda request: LocalSearcher(64).search(pool, model, request)


def choose(strategy, pool, k, search, taken=(), seed=0):
    return select(strategy, pool, k, np.array(taken, dtype=np.int64), np.random.default_rng(seed), search)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("k", [0, 1, 37, 120])
def test_exactly_k_distinct_ids_of_the_pool(strategy, k, pool, search):
    ids = choose(strategy, pool, k, search).ids
    assert ids.dtype == np.int64
    assert len(ids) == len(set(ids.tolist())) == k
    assert k == 0 or (ids.min() >= 0 and ids.max() < len(pool))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_chosen_ones_leave_the_pool_until_it_is_empty(strategy, pool, search):
    taken, room = [], capacity(strategy, pool)
    for k in (50, 60, room - 110):
        taken += choose(strategy, pool, k, search, taken, seed=len(taken)).ids.tolist()
    assert len(set(taken)) == len(taken) == room
    with pytest.raises(PoolExhausted):
        choose(strategy, pool, 1, search, taken)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_seed_gives_the_same_choice(strategy, pool, search):
    first, second = (choose(strategy, pool, 40, search, taken=[3, 77], seed=5) for _ in range(2))
    assert first.ids.tolist() == second.ids.tolist()


@pytest.mark.parametrize("strategy", ["active-mixup", "random"])
def test_at_most_one_candidate_a_pair_also_over_rounds(strategy, pool, search):
    first = choose(strategy, pool, 60, search).ids
    second = choose(strategy, pool, 60, search, taken=first).ids
    groups = np.concatenate([first, second]) // len(LAMBDAS)
    assert len(set(groups.tolist())) == 120


def test_vanilla_takes_several_of_a_pair_and_its_scores_are_the_lowest_of_all(pool, search):
    vanilla, active = choose("vanilla", pool, 60, search), choose("active-mixup", pool, 60, search)
    assert len(set((vanilla.ids // len(LAMBDAS)).tolist())) < 60
    assert vanilla.scores.max() <= active.scores.max()
    assert vanilla.scores.min() == active.scores.min()


def test_random_mixes_with_one_half_and_another_seed_draws_others(pool, search):
    first, second = choose("random", pool, 40, search, seed=1), choose("random", pool, 40, search, seed=2)
    assert set((first.ids % len(LAMBDAS)).tolist()) == {LAMBDAS.index(0.5)}
    assert first.scores is None and first.search is None
    assert first.ids.tolist() != second.ids.tolist()


@given(st.integers(1, 60), st.data())
def test_sampling_without_listing_never_repeats_and_never_takes_the_taken(n, data):
    taken = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1)))), dtype=np.int64)
    k = data.draw(st.integers(0, n - len(taken)))
    drawn = sample_without(n, k, taken, np.random.default_rng(0))
    assert len(set(drawn.tolist())) == k
    assert not set(drawn.tolist()) & set(taken.tolist())
    assert all(0 <= number < n for number in drawn.tolist())
    with pytest.raises(PoolExhausted, match="are left"):
        sample_without(n, n - len(taken) + 1, taken, np.random.default_rng(0))


def test_sampling_is_uniform_over_what_is_free():
    rng = np.random.default_rng(0)
    counts = np.zeros(10)
    for _ in range(4000):
        counts[sample_without(10, 3, np.array([2, 3, 9]), rng)] += 1
    assert counts[[2, 3, 9]].sum() == 0
    free = counts[[0, 1, 4, 5, 6, 7, 8]] / 4000
    assert np.abs(free - 3 / 7).max() < 5 * np.sqrt(3 / 7 * 4 / 7 / 4000)


def test_sampling_from_billions_of_pairs():
    n = 80_000 * 79_999 // 2
    drawn = sample_without(n, 1000, np.arange(5), np.random.default_rng(0))
    assert len(set(drawn.tolist())) == 1000
    assert drawn.max() > n // 2 and drawn.min() >= 5
