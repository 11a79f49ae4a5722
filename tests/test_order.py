"""A random order without a list: a permutation, the same everywhere, and random enough."""

from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from kdray.errors import ConfigError
from kdray.pools.mixup import MixupPool
from kdray.pools.pairs import count_pairs
from kdray.pools.permutation import RandomOrder


@given(st.integers(1, 3000), st.integers(0, 2**62 - 1))
@examples(60)
def test_it_is_a_permutation(n, seed):
    order = RandomOrder(n, seed)
    numbers = order(torch.arange(n))
    assert sorted(numbers.tolist()) == list(range(n))
    assert order(torch.tensor([n - 1])).tolist() == [int(numbers[-1])]  # in any company


@pytest.mark.parametrize("n", [count_pairs(80_000), 2**40 + 1, 2**62])
def test_huge_orders_stay_inside_and_do_not_repeat(n):
    numbers = RandomOrder(n, 1)(torch.arange(200_000))
    assert len(torch.unique(numbers)) == 200_000
    assert int(numbers.min()) >= 0 and int(numbers.max()) < n
    # Spread over the whole range: tenths hold 20,000 each, give or take.
    counts = np.bincount((numbers.double() / n * 10).long().clamp(max=9).numpy(), minlength=10)
    assert np.abs(counts - 20_000).max() < 6 * np.sqrt(20_000 * 0.9)


@pytest.mark.storm
def test_small_orders_are_all_equally_likely():
    counts: dict[tuple, int] = {}
    for seed in range(3000):
        order = tuple(RandomOrder(3, seed)(torch.arange(3)).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert max(abs(count - 500) for count in counts.values()) < 5 * np.sqrt(500 * 5 / 6)


def test_neighbours_in_the_order_are_no_neighbours():
    numbers = RandomOrder(100_000, 7)(torch.arange(100_000)).double().numpy()
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(100_000), numbers)[0, 1]) < 0.02


def test_impossible_sizes_are_refused():
    for n in (0, 2**62 + 1):
        with pytest.raises(ValueError, match="must lie in"):
            RandomOrder(n, 0)


def images(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 3, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@given(st.integers(2, 30), st.data())
@examples(40)
def test_a_sample_of_pairs_is_part_of_the_pool_and_of_any_larger_sample(n, data):
    every = list(combinations(range(n), 2))
    wanted = data.draw(st.integers(1, len(every)))
    pool = MixupPool(images(n), [0.25, 0.5], pairs=wanted, seed=9)
    assert (pool.num_groups, len(pool)) == (wanted, 2 * wanted)
    i, j = pool.pair(torch.arange(wanted))
    drawn = list(zip(i.tolist(), j.tolist(), strict=True))
    assert len(set(drawn)) == wanted and set(drawn) <= set(every)
    larger = MixupPool(images(n), [0.25, 0.5], pairs=len(every), seed=9)
    assert torch.equal(larger.pair(torch.arange(wanted))[0], i)
    # An id of the sample is the same image as that pair's in the whole pool.
    whole = MixupPool(images(n), [0.25, 0.5])
    ids = torch.tensor([2 * every.index(pair) + k for pair in drawn for k in range(2)])
    assert torch.equal(pool.render(torch.arange(len(pool))), whole.render(ids))
    assert torch.equal(torch.cat(list(pool.batches(torch.arange(wanted), 3))), whole.render(ids))
    assert torch.equal(torch.cat(list(pool.batches(torch.arange(wanted), 3, [1]))), whole.render(ids[1::2]))
    with pytest.raises(IndexError, match="groups must lie in"):
        pool.pair(torch.tensor([wanted]))


def test_more_pairs_than_there_are_is_a_clear_error():
    with pytest.raises(ConfigError, match=r"pool.pairs: 11 pairs wanted, 5 images make 10; lower it, or set it to all"):
        MixupPool(images(5), [0.5], pairs=11)
