"""The mixup pool: pair numbers, pixel values to the bit, and that ids, groups and pairs agree."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from kdray.errors import ConfigError, ImageSetError
from kdray.pools.mixup import MixupPool, MixupSection
from kdray.pools.pairs import count_pairs, rank_pairs, unrank_pairs

GRID = [0.30, 0.34, 0.38, 0.42, 0.46, 0.50, 0.54, 0.58, 0.62, 0.66, 0.70]


def images(n: int, seed: int = 0, shape: tuple[int, int, int] = (1, 4, 5)) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def exact_mix(x: int, y: int, weight: Fraction) -> int:
    """round_half_up(λx + (1-λ)y) in exact arithmetic."""
    return int((weight * x + (1 - weight) * y + Fraction(1, 2)) // 1)


@pytest.mark.parametrize("n", [2, 3, 7, 40])
def test_unranking_gives_all_pairs_in_row_major_order(n):
    i, j = unrank_pairs(torch.arange(count_pairs(n)), n)
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == list(combinations(range(n), 2))


@given(st.integers(2, 200_000), st.data())
@examples(300)
def test_ranking_undoes_unranking_for_any_n(n, data):
    pair = data.draw(st.integers(0, count_pairs(n) - 1))
    i, j = unrank_pairs(torch.tensor([pair]), n)
    assert 0 <= int(i) < int(j) < n
    assert int(rank_pairs(i, j, n)) == pair
    # The slow form: the row starts where the rows before it end.
    row = int(i)
    assert (
        sum(n - 1 - r for r in range(max(0, row - 3), row))
        == row * (2 * n - row - 1) // 2 - max(0, row - 3) * (2 * n - max(0, row - 3) - 1) // 2
    )


@pytest.mark.parametrize("n", [80_000, 3_000_000, 100_000_000])
def test_unranking_is_exact_at_row_ends_of_huge_pools(n):
    rows = torch.tensor([0, 1, n // 2, n - 3, n - 2])
    starts = rows * (2 * n - rows - 1) // 2
    for shift in (-1, 0):
        pairs = (starts + shift).clamp(0, count_pairs(n) - 1)
        i, j = unrank_pairs(pairs, n)
        assert torch.equal(rank_pairs(i, j, n), pairs)
        assert bool((i < j).all()) and bool((j < n).all())


def test_pair_numbers_outside_the_pool_are_refused():
    for pair in (-1, 3):
        with pytest.raises(IndexError, match="pair numbers must lie in"):
            unrank_pairs(torch.tensor([pair]), 3)


def test_pixels_by_hand():
    x, y = (
        torch.tensor([[[[10, 255, 0, 1]]]], dtype=torch.uint8),
        torch.tensor([[[[20, 0, 255, 0]]]], dtype=torch.uint8),
    )
    pool = MixupPool(torch.cat([x, y]), [0.3, 0.5, 1.0, 0.0])
    rendered = pool.render(torch.arange(4)).view(4, 4).tolist()
    # 0.3: 17, 76.5 -> 77, 178.5 -> 179, 0.3 -> 0.  0.5: 15, 127.5 -> 128, 128, 0.5 -> 1.
    assert rendered == [[17, 77, 179, 0], [15, 128, 128, 1], [10, 255, 0, 1], [20, 0, 255, 0]]


@pytest.mark.parametrize("weight", [*GRID, 0.0001, 0.3333, 0.9999, 0.125])
def test_every_pair_of_pixel_values_rounds_as_in_exact_decimal_arithmetic(weight):
    values = torch.arange(256, dtype=torch.uint8)
    pool = MixupPool(torch.stack([values.repeat_interleave(256), values.repeat(256)]).view(2, 1, 256, 256), [weight])
    rendered = pool.render(torch.tensor([0])).flatten().numpy()
    numerator, denominator = Fraction(str(weight)).numerator, Fraction(str(weight)).denominator
    x, y = np.divmod(np.arange(65536, dtype=np.int64), 256)
    exact = (2 * (numerator * x + (denominator - numerator) * y) + denominator) // (2 * denominator)
    assert np.array_equal(rendered, exact)
    assert exact[5 * 256] == exact_mix(5, 0, Fraction(str(weight)))


@given(st.integers(2, 12), st.lists(st.sampled_from(GRID), min_size=1, max_size=5, unique=True), st.integers(0, 99))
@examples(50)
def test_groups_render_as_their_ids_do_and_follow_the_id_rule(n, lambdas, seed):
    data = images(n, seed)
    pool = MixupPool(data, lambdas)
    assert (len(pool), pool.num_groups, pool.group_size) == (
        n * (n - 1) // 2 * len(lambdas),
        n * (n - 1) // 2,
        len(lambdas),
    )
    everything = pool.render(torch.arange(len(pool)))
    groups = torch.arange(pool.num_groups)
    assert torch.equal(everything, torch.cat(list(pool.batches(groups, 4))))
    if pool.num_groups > 1:
        assert torch.equal(everything[len(lambdas) :], torch.cat(list(pool.batches(groups[1:], 1000))))
    group = pool.num_groups - 1
    i, j = pool.pair(torch.tensor([group]))
    k = len(lambdas) - 1
    x, y = data[int(i)].flatten().tolist(), data[int(j)].flatten().tolist()
    expected = [exact_mix(a, b, Fraction(str(lambdas[k]))) for a, b in zip(x, y, strict=True)]
    assert everything[group * len(lambdas) + k].flatten().tolist() == expected


def test_ids_render_alike_in_any_order_and_company():
    pool = MixupPool(images(9, shape=(3, 6, 6)), GRID)
    ids = torch.randperm(len(pool), generator=torch.Generator().manual_seed(1))
    rendered = pool.render(ids)
    assert rendered.dtype == torch.uint8
    assert torch.equal(rendered, torch.cat([pool.render(one[None]) for one in ids]))
    assert pool.render(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 6, 6)
    with pytest.raises(IndexError):
        pool.render(torch.tensor([len(pool)]))


def test_description_and_middle():
    pool = MixupPool(images(4), [0.2, 0.4, 0.6])
    assert pool.describe(torch.tensor([0, 7, 17])) == {"i": [0, 0, 2], "j": [1, 3, 3], "lambda": [0.2, 0.4, 0.6]}
    assert pool.middle() == 1  # 0.4 and 0.6 are equally near: the lower
    assert MixupPool(images(4), GRID).middle() == 5


@pytest.mark.parametrize(
    ("lambdas", "message"),
    [
        ([], "empty"),
        ([0.5, 1.2], "1.2 lies outside"),
        ([-0.1], "-0.1 lies outside"),
        ([float("nan")], "outside"),
        ([0.5, 0.5], "twice"),
    ],
)
def test_bad_grids_are_refused(lambdas, message):
    with pytest.raises(ConfigError, match=message):
        MixupPool(images(3), lambdas)


def test_bad_images_are_refused():
    with pytest.raises(ImageSetError, match="at least two"):
        MixupPool(images(1), [0.5])
    with pytest.raises(ImageSetError, match="uint8"):
        MixupPool(images(3).float(), [0.5])


# pairs: auto


@pytest.mark.parametrize(
    ("count", "queries", "pairs", "says"),
    [
        (2000, 22_000, 1_100_000, "samples 1,100,000 of 1,999,000 pairs, 50 for each of the 22,000 candidates"),
        (2000, 100, 50_000, "samples 50,000 of 1,999,000 pairs, 500 for each of the 100 candidates"),
        (60_000, 24_000, 1_200_000, "samples 1,200,000 of 1,799,970,000 pairs"),
        (200, 300, "all", "takes all 19,900 pairs; it would sample 50,000 of more"),
        (2000, 40_000, "all", "takes all 1,999,000 pairs; it would sample 2,000,000 of more"),
    ],
)
def test_auto_samples_fifty_pairs_for_each_candidate_to_choose(count, queries, pairs, says):
    section, reason = MixupSection(pairs="auto").sized(count, queries)
    assert section.pairs == pairs and says in reason
    assert section.complete == (pairs == "all") and not MixupSection(pairs="auto").complete


def test_what_is_not_auto_keeps_its_size_and_so_does_a_pool_that_nothing_is_chosen_from():
    for section, queries in ((MixupSection(pairs=7), 100), (MixupSection(), 100), (MixupSection(pairs="auto"), 0)):
        assert section.sized(2000, queries) == (section, None)


def test_a_smaller_choice_samples_the_first_pairs_of_a_larger_one():
    few, many = (MixupSection(pairs="auto").sized(700, queries)[0].build(images(700), 3) for queries in (1100, 2000))
    assert (few.num_groups, many.num_groups) == (55_000, 100_000)
    first = torch.arange(few.num_groups)
    assert all(torch.equal(a, b) for a, b in zip(few.pair(first), many.pair(first), strict=True))
