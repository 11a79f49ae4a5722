"""Pools of blended pairs: every bit as naive Python computes it, whatever the cut, the order and the threads."""

import math
import pickle
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from kdray.config.load import load_config
from kdray.errors import ConfigError, ImageSetError
from kdray.models.classifier import build_model
from kdray.models.features import head
from kdray.pools.base import is_linear, is_paired, pools
from kdray.pools.blended import BlendedPool
from kdray.pools.blends.base import blends
from kdray.pools.counter import BITS, CounterRandom, below
from kdray.pools.transforms import base as variants
from kdray.pools.transforms.base import transforms
from kdray.pools.warp import ONE, rotation, warp
from kdray.report.page import write_report
from kdray.runs.directory import RunDirectory
from kdray.runs.plan import make_plan, plan_lines
from kdray.runs.run import run
from kdray.search.local import LocalSearcher
from kdray.select.base import Task, select, strategies
from kdray.utils.seeds import seed_sequence

BLENDS, PRES = list(blends.parts()), list(transforms.parts())
CHOOSE = [name for name in strategies.parts() if name != "unixkd"]


def pictures(n: int, seed: int = 0, shape: tuple[int, int, int] = (1, 6, 5)) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def make(images: torch.Tensor, blend="cutmix", pre="none", seed=0, **fields) -> BlendedPool:
    return pools.parse({"kind": "pairs", "blend": blend, "pre": pre, **fields}).build(images, seed)


def words_of(count: int, many: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 1 << BITS, (count, many), generator=torch.Generator().manual_seed(seed))


# Naive references: one candidate, one pixel at a time, in Python's whole numbers


def naive_words(seed: int, purpose: str, count: int, counter: int) -> list[int]:
    mask, keys = 2**31 - 1, (seed_sequence(seed, purpose).generate_state(4 * count) >> 2).reshape(4, count)
    found = []
    for column in keys.T.tolist():
        number = counter & mask
        for turn, key in enumerate(column):
            number = (number ^ (counter >> 31)) if turn == 1 else number
            mixed = ((number + key) & mask) * 0x2C1B3C6D
            mixed = ((mixed ^ (mixed >> 19)) & mask) * 0x297A2D39
            number = ((mixed >> 15) ^ mixed) & mask
        found.append(number)
    return found


def naive_warp(image: list, affine: list[int]) -> list:
    """Channels of rows of pixels."""
    height, width = len(image[0]), len(image[0][0])
    xx, xy, tx, yx, yy, ty = affine

    def place(x: int, y: int) -> tuple[int, int]:
        """Where pixel (x, y) comes from, in 256ths of a pixel."""
        centred, down = 2 * x - (width - 1), 2 * y - (height - 1)
        found = []
        for number, side in ((xx * centred + xy * down + tx, width), (yx * centred + yy * down + ty, height)):
            pixels = (Fraction(number, ONE) + side - 1) / 2
            found.append(min(max(math.floor(256 * pixels + Fraction(1, 2)), 0), 256 * (side - 1)))
        return found[0], found[1]

    def value(channel: list, at: tuple[int, int]) -> int:
        (x, right), (y, low) = divmod(at[0], 256), divmod(at[1], 256)
        x1, y1 = min(x + 1, width - 1), min(y + 1, height - 1)
        top = (256 - right) * channel[y][x] + right * channel[y][x1]
        bottom = (256 - right) * channel[y1][x] + right * channel[y1][x1]
        return math.floor(Fraction((256 - low) * top + low * bottom, 256 * 256) + Fraction(1, 2))

    return [[[value(channel, place(x, y)) for x in range(width)] for y in range(height)] for channel in image]


def naive_part(blend: str, share: tuple[float, float], words: list[int], height: int, width: int):
    """Of each pixel (y, x): the share of the first image in it."""
    area = [share[0] + (share[1] - share[0]) * (k + 0.5) / 256 for k in range(256)]
    if blend == "mixup":
        least, most = (round(128 * end) for end in share)
        weight = Fraction(least + (words[0] * (most - least + 1) >> 31), 128)
        return lambda y, x: weight
    if blend == "cutmix":
        level, shape = divmod(words[0] * 256 * 32 >> 31, 32)
        ratio = 1 + (min(2.0, 1 / area[level]) - 1) * (shape // 2 + 0.5) / 16
        tall = math.sqrt(area[level] * ratio) if shape % 2 == 0 else math.sqrt(area[level] / ratio)
        tall = min(1.0, tall)
        rows = max(1, round(height * tall))
        columns = min(width, max(1, round(area[level] * height * width / rows)))
        top, left = words[1] * (height - rows + 1) >> 31, words[2] * (width - columns + 1) >> 31
        return lambda y, x: int(top <= y < top + rows and left <= x < left + columns)
    cos, sin = rotation(360 * (words[0] * 256 >> 31) / 256)
    low, high = -2.0 * (width + height), 2.0 * (width + height)
    for _ in range(80):
        middle = (low + high) / 2
        less = area_of(half(cos / ONE, sin / ONE, middle, height, width)) < 4 * height * width * area[words[1] >> 23]
        low, high = (middle, high) if less else (low, middle)
    return lambda y, x: int(cos * (2 * x - width + 1) + sin * (2 * y - height + 1) < round(low * ONE))


def half(cos: float, sin: float, limit: float, height: int, width: int) -> list[tuple[float, float]]:
    """The corners of the part of an image where cos X + sin Y < limit, X and Y in half pixels from the centre."""
    corners, kept = [(-width, -height), (width, -height), (width, height), (-width, height)], []
    for (x, y), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        here, there = limit - cos * x - sin * y, limit - cos * x1 - sin * y1
        if here > 0:
            kept.append((x, y))
        if here * there < 0:
            way = here / (here - there)
            kept.append((x + way * (x1 - x), y + way * (y1 - y)))
    return kept


def area_of(corners: list[tuple[float, float]]) -> float:
    edges = zip(corners, corners[1:] + corners[:1], strict=True)
    return abs(sum(x * y1 - x1 * y for (x, y), (x1, y1) in edges)) / 2


def naive_blend(part, first: list, second: list) -> list:
    def mixed(y: int, x: int, a: int, b: int) -> int:
        return math.floor(part(y, x) * a + (1 - part(y, x)) * b + Fraction(1, 2))

    return [
        [[mixed(y, x, a, b) for x, (a, b) in enumerate(zip(*rows, strict=True))] for y, rows in enumerate(channel)]
        for channel in (list(zip(one, other, strict=True)) for one, other in zip(first, second, strict=True))
    ]


# Random numbers


@given(st.integers(0, 2**62 - 1), st.integers(0, 2**40), st.integers(1, 5))
@examples(60)
def test_the_numbers_of_a_counter_are_those_of_plain_arithmetic(counter, seed, count):
    found = CounterRandom(seed, "test", count)(torch.tensor([counter, 0]))
    assert found[:, 0].tolist() == naive_words(seed, "test", count, counter)
    assert int(found.min()) >= 0 and int(found.max()) < 1 << BITS


def test_the_numbers_are_spread_evenly_and_do_not_depend_on_each_other():
    counters = torch.cat([torch.arange(40_000), torch.arange(40_000) << 33])
    words = CounterRandom(7, "test", 3)(counters)
    for bins, numbers in ((64, words[0]), (64, words[1] % (1 << 15) << 16), (64, words[2] ^ words[2].roll(1))):
        counts = torch.bincount(below(numbers, bins), minlength=bins).double()
        chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        assert chi_square < 120, "63 degrees of freedom: above 120 in one of 10^5"
    for other in (words[1], CounterRandom(8, "test", 1)(counters)[0], CounterRandom(7, "other", 1)(counters)[0]):
        assert abs(np.corrcoef(words[0].numpy(), other.numpy())[0, 1]) < 0.016, "four and a half standard errors"


def test_numbers_below_an_end_reach_both_ends():
    assert below(torch.tensor([0, (1 << 31) - 1]), 7).tolist() == [0, 6]
    assert below(torch.tensor([(1 << 31) - 1] * 2), torch.tensor([1, 1 << 31])).tolist() == [0, (1 << 31) - 1]


# Affine maps


@given(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
@examples(40)
def test_sampled_images_are_those_of_plain_arithmetic(channels, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    images = pictures(3, seed, (channels, height, width))
    maps = torch.randint(-2 * ONE, 2 * ONE, (3, 6), generator=generator)
    expected = [naive_warp(image, affine) for image, affine in zip(images.tolist(), maps.tolist(), strict=True)]
    assert warp(images, maps).tolist() == expected


def test_maps_by_hand():
    image = torch.tensor([[[[0, 10, 20], [30, 40, 50]]]], dtype=torch.uint8)

    def sampled(*affine: int) -> list:
        return warp(image, torch.tensor([affine]))[0, 0].tolist()

    assert sampled(ONE, 0, 0, 0, ONE, 0) == image[0, 0].tolist()
    assert sampled(-ONE, 0, 0, 0, ONE, 0) == [[20, 10, 0], [50, 40, 30]]
    # One pixel, two half pixels, from the right; and half a pixel, 0.5 rounded up. The edge is repeated.
    assert sampled(ONE, 0, 2 * ONE, 0, ONE, 0) == [[10, 20, 20], [40, 50, 50]]
    assert sampled(ONE, 0, ONE, 0, ONE, 0) == [[5, 15, 20], [35, 45, 50]]
    assert sampled(ONE, 0, 0, 0, ONE, ONE) == [[15, 25, 35], [30, 40, 50]]
    assert warp(image, torch.tensor([[0, 0, 0, 0, 0, 0]])).flatten().tolist() == [25] * 6, "all from the centre"


def test_large_images_are_sampled_in_parts():
    images = pictures(5, 1, (3, 130, 200))
    maps = torch.tensor([[ONE, 0, 0, 0, -ONE, 0]] * 5)
    assert torch.equal(warp(images, maps), images.flip(2))
    assert warp(images[:0], maps[:0]).shape == (0, 3, 130, 200)


@pytest.mark.parametrize("degrees", [0.0, 1e-9, 0.3, -15.0, 45.0, 60.0, 90.0, -90.0, 137.5, 180.0, 300.0, 360.0])
def test_rotations_are_rounded_cosines_and_sines(degrees):
    exact = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    assert rotation(degrees) == tuple(math.floor(value * ONE + 0.5 + 1e-9) for value in exact)


def test_affine_maps_are_inverses_of_what_the_fields_say():
    part = transforms.parse({"kind": "affine", "degrees": 20, "scale": 0.2, "shear": 0.1, "shift": 0.1})
    maps = part.maps(words_of(5, 4000), (1, 20, 40)).double()
    matrix = torch.stack([maps[:, :2], maps[:, 3:5]], dim=1) / ONE
    inverse = torch.linalg.inv(matrix)
    scale = torch.linalg.det(inverse).sqrt()
    assert 0.8 - 1e-3 < float(scale.min()) < 0.81 and 1.19 < float(scale.max()) < 1.2 + 1e-3
    # Rotation times shear: the second row of the map is the rotation's alone.
    turn = torch.rad2deg(torch.atan2(-maps[:, 3], maps[:, 4]))
    assert 19 < float(turn.max()) < 20.1 and -20.1 < float(turn.min()) < -19
    cos, sin = torch.deg2rad(turn).cos(), torch.deg2rad(turn).sin()
    shear = (matrix[:, 0, 1] * scale - sin) / cos
    assert 0.098 < float(shear.max()) < 0.101 and abs(float(shear.mean())) < 0.01
    for column, side in ((2, 40), (5, 20)):
        shift = maps[:, column] / ONE / 2
        assert 0.095 * side < float(shift.max()) <= 0.1 * side + 1e-3 and -0.1 * side <= float(shift.min()) + 1e-3


def test_crops_lie_within_the_image_and_have_the_area_they_should():
    part = transforms.parse({"kind": "flip-crop", "area": [0.25, 0.64], "longest": 1.5})
    maps = part.maps(words_of(4, 8000), (1, 30, 20)).double() / ONE
    across, left, down, top = maps[:, 0].abs(), maps[:, 2], maps[:, 4], maps[:, 5]
    assert bool((maps[:, 1] == 0).all()) and bool((maps[:, 3] == 0).all())
    assert bool((left.abs() <= 20 * (1 - across) + 1e-9).all()) and bool((top.abs() <= 30 * (1 - down) + 1e-9).all())
    area, ratio = across * down, torch.maximum(across / down, down / across)
    assert 0.249 < float(area.min()) < 0.26 and 0.63 < float(area.max()) < 0.641
    assert abs(float(area.mean()) - 0.445) < 0.006 and 1.0 < float(ratio.min()) < 1.05 < 1.45 < float(ratio.max()) < 1.5
    assert abs(float((maps[:, 0] < 0).double().mean()) - 0.5) < 0.03
    unmirrored = transforms.parse({"kind": "flip-crop", "flip": False}).maps(words_of(4, 500), (1, 30, 20))
    assert bool((unmirrored[:, 0] > 0).all())


# Blends


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("shape", [(1, 6, 7), (3, 9, 4)])
def test_blended_images_are_those_of_plain_arithmetic(blend, shape):
    part = blends.parse({"kind": blend, "share": [0.2, 0.7]})
    blender = part.build(shape, torch.device("cpu"))
    one, other, words = pictures(12, 1, shape), pictures(12, 2, shape), words_of(part.words, 12)
    blended = blender(one.clone(), other.clone(), words).tolist()
    shares = blender.shares(words).tolist()
    for k in range(12):
        inside = naive_part(blend, part.share, words[:, k].tolist(), *shape[1:])
        assert blended[k] == naive_blend(inside, one[k].tolist(), other[k].tolist())
        places = [inside(y, x) for y in range(shape[1]) for x in range(shape[2])]
        assert shares[k] == pytest.approx(float(sum(places) / len(places)))


@pytest.mark.parametrize("blend", BLENDS)
def test_shares_are_spread_evenly_over_their_range(blend):
    part = blends.parse({"kind": blend, "share": [0.2, 0.6]})
    shares = part.build((1, 60, 50), torch.device("cpu")).shares(words_of(part.words, 4000)).numpy()
    slack = 0.02  # what rounding to pixels may add
    assert shares.min() > 0.2 - slack and shares.max() < 0.6 + slack
    found = np.quantile(shares, [0.1, 0.25, 0.5, 0.75, 0.9])
    assert found == pytest.approx([0.24, 0.3, 0.4, 0.5, 0.56], abs=0.015)


@pytest.mark.parametrize("blend", ["cutmix", "cutline"])
def test_a_cut_shows_nothing_but_the_pixels_of_both_images_in_their_places(blend):
    images = torch.stack([torch.full((1, 8, 8), value, dtype=torch.uint8) for value in (50, 200)])
    pool = make(images, blend, draws=200)
    rendered = pool.render(torch.arange(200))
    assert set(rendered.unique().tolist()) == {50, 200}
    shares = (rendered == 50).double().mean(dim=(1, 2, 3))
    assert shares.tolist() == pytest.approx(pool.describe(torch.arange(200))["share"])
    # Every pixel shows each of them now and then, and none of them in the middle of a hole.
    assert (
        0.2 < float((rendered == 50).double().mean(dim=0).min()) < float((rendered == 50).double().mean(0).max()) < 0.8
    )


def test_a_whole_image_and_none_of_it_are_shares_too():
    images = pictures(2)
    for blend in BLENDS:
        for share, rest in ((0.0, 1), (1.0, 0)):
            part = blends.parse({"kind": blend, "share": [share, share]})
            blended = part.build((1, 6, 5), torch.device("cpu"))(images[:1].clone(), images[1:].clone(), words_of(3, 1))
            differ = int((blended != images[rest]).sum())
            assert differ <= (blend == "cutmix" and share == 0.0), "a rectangle has one pixel at least"


# The pool


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("pre", PRES)
def test_a_candidate_is_what_its_id_and_the_seed_say(blend, pre):
    images, seed, draws = pictures(4, 5, (2, 5, 6)), 11, 3
    pool, part, before = make(images, blend, pre, seed, draws=draws), blends.get(blend)(), transforms.get(pre)()
    assert (len(pool), pool.num_groups, pool.group_size, pool.image_shape) == (18, 6, 3, (2, 5, 6))
    rendered, told = pool.render(torch.arange(18)).tolist(), pool.describe(torch.arange(18))
    each = 1 if pre == "none" else 32
    for number in range(18):
        i, j = list(combinations(range(4), 2))[number // draws]
        words = naive_words(seed, "blends", 3 + part.words, number)
        chosen = [words[1] * each >> 31, words[2] * each >> 31]
        pair = []
        for image, variant in zip((i, j), chosen, strict=True):
            pixels = images[image].tolist()
            if pre != "none":
                numbers = naive_words(seed, "variants", before.words, image * each + variant)
                (affine,) = before.maps(torch.tensor(numbers)[:, None], (2, 5, 6)).tolist()
                pixels = naive_warp(pixels, affine)
            pair.append(pixels)
        swapped = words[0] >= 2**30
        inside = naive_part(blend, part.share, words[3:], 5, 6)
        assert rendered[number] == naive_blend(inside, *(reversed(pair) if swapped else pair))
        assert (told["i"][number], told["j"][number], told["draw"][number]) == (i, j, number % draws)
        assert [told["variant_i"][number], told["variant_j"][number]] == chosen
        share = float(sum(inside(y, x) for y in range(5) for x in range(6)) / 30)
        assert told["share"][number] == pytest.approx(1 - share if swapped else share)


@given(st.sampled_from(BLENDS), st.sampled_from(PRES), st.integers(2, 7), st.integers(1, 5), st.data())
@examples(40)
def test_candidates_are_the_same_in_any_order_cut_and_company(blend, pre, n, draws, data):
    images = pictures(n, n)
    pairs = data.draw(st.sampled_from(["all", max(1, n * (n - 1) // 3)]))
    pool, again = (make(images, blend, pre, 3, draws=draws, pairs=pairs) for _ in range(2))
    everything = pool.render(torch.arange(len(pool)))
    groups = torch.tensor(data.draw(st.permutations(range(pool.num_groups))))
    step, indices = data.draw(st.integers(1, 9)), data.draw(st.sets(st.integers(0, draws - 1), min_size=1))
    ids = (groups[:, None] * draws + torch.tensor(sorted(indices))).flatten()
    parts = list(again.batches(groups, step, sorted(indices)))
    assert [len(part) for part in parts[:-1]] == [step * len(indices)] * (len(parts) - 1)
    assert torch.equal(torch.cat(parts), everything[ids])
    assert torch.equal(torch.cat(list(pool.batches(groups, step))).sort(0)[0], everything.sort(0)[0])
    assert torch.equal(pickle.loads(pickle.dumps(again)).render(ids), everything[ids])


@pytest.mark.parametrize("pre", ["affine", "flip-crop"])
def test_variants_that_are_kept_have_the_bits_of_those_that_are_not(pre, monkeypatch):
    images, groups = pictures(9, shape=(3, 8, 8)), torch.arange(36)
    kept = make(images, pre=pre)
    first, second = (torch.cat(list(kept.batches(groups, 5))) for _ in range(2))
    assert kept._variants._kept is not None and len(pickle.dumps(kept)) < len(pickle.dumps(make(images, pre=pre))) + 500
    threads = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(variants, "_MOST_BYTES", 32 * images.numel() - 1)
        try:
            torch.set_num_threads(3)
            made = make(images, pre={"kind": pre, "variants": 32})
            third = torch.cat(list(made.batches(groups, 5)))
        finally:
            torch.set_num_threads(threads)
    assert made._variants._kept is None
    assert torch.equal(first, second) and torch.equal(first, third)
    with torch.inference_mode():
        inside = make(images, pre=pre)
        assert torch.equal(torch.cat(list(inside.batches(groups[:9], 5))), first[:36])
    assert torch.equal(torch.cat(list(inside.batches(groups, 5))), first)


def test_the_number_of_variants_follows_from_the_size_of_the_images():
    part, mib = transforms.parse("affine"), 1 << 20
    assert [part.count(size) for size in (1, 8 * mib, 9 * mib, 64 * mib, 65 * mib, 10**12)] == [32, 32, 28, 4, 32, 32]
    assert transforms.parse({"kind": "affine", "variants": 7}).count(10**12) == 7


def test_another_seed_blends_otherwise_and_other_images_may_be_main():
    images = pictures(12)
    first, second = (make(images, "cutmix", "affine", seed).render(torch.arange(200)) for seed in (0, 1))
    assert float((first != second).flatten(1).any(1).double().mean()) > 0.95
    told = make(images, "mixup", draws=30, pre={"kind": "affine", "variants": 5}).describe(torch.arange(66 * 30))
    assert set(told["variant_i"]) == set(told["variant_j"]) == set(range(5))
    uneven = make(images, {"kind": "mixup", "share": [0.0, 0.25]}, draws=30).describe(torch.arange(66 * 30))["share"]
    assert abs(np.mean([share <= 0.25 for share in uneven]) - 0.5) < 0.05
    assert all(share <= 0.25 or share >= 0.75 for share in uneven)


def test_a_larger_sample_of_pairs_begins_with_the_smaller_one():
    images = pictures(30)
    few, many = (make(images, "cutline", "affine", 4, pairs=pairs) for pairs in (50, 300))
    ids = torch.arange(len(few))
    assert torch.equal(few.render(ids), many.render(ids)) and few.describe(ids) == many.describe(ids)
    i, j = many.pair(torch.arange(300))
    assert bool((i < j).all()) and len(set(zip(i.tolist(), j.tolist(), strict=True))) == 300
    auto = pools.parse({"kind": "pairs", "pairs": "auto"})
    assert auto.sized(2000, 100)[0].pairs == 50_000 and not auto.complete


# Choosing


@pytest.fixture(scope="module")
def model():
    model = build_model("small-cnn", (1, 8, 8), 4, seed=1)
    with torch.no_grad():
        head(model).weight.mul_(30.0)
    return model


@pytest.mark.parametrize("strategy", CHOOSE)
def test_every_strategy_that_needs_no_grid_chooses_and_one_of_a_pair_if_it_says_so(strategy, model):
    pool, searcher, part = make(pictures(12, shape=(1, 8, 8)), pre="affine", draws=3), LocalSearcher(64), None
    part = strategies.parse(strategy)
    part.check(pools.parse("pairs"), labelled=False, validation=False)
    taken: list[int] = []
    for _ in range(2):
        task = Task(
            pool=pool,
            k=20,
            taken=np.array(taken, dtype=np.int64),
            generator=np.random.default_rng(0),
            ask=lambda request: searcher.search(pool, model, request),
        )
        taken += select(part, task).ids.tolist()
    assert len(set(taken)) == 40 and max(taken) < len(pool)
    if part.per == "group":
        assert len({number // 3 for number in taken}) == 40, "no pair twice, in this round or an earlier one"
    if strategy == "random":
        assert all(number % 3 == pool.middle() == 0 for number in taken)
    assert part.capacity(pool) == (66 if part.per == "group" else 198)


def test_a_pool_of_pairs_is_no_segment_but_knows_its_pairs():
    pool = make(pictures(3))
    assert is_paired(pool) and not is_linear(pool) and not pool.real
    assert [make(pictures(3), "cutline", pre).source for pre in PRES] == [
        "cutline",
        "affine+cutline",
        "flip-crop+cutline",
    ]


# A run


@pytest.mark.parametrize(
    ("select", "schedule"),
    [
        pytest.param({"strategy": "margin", "rounds": 2}, [60, 60], marks=pytest.mark.storm),
        ({"strategy": "rad-pairs", "m": "estimate"}, [108]),
    ],
)
def test_a_run_buys_blended_pairs_and_reproduces_them_from_their_ids(select, schedule, make_config, tmp_path):
    pool = {"kind": "pairs", "blend": "cutmix", "pre": "affine", "draws": 2}
    config, directory = make_config(pool=pool, select=select, student__epochs=2), RunDirectory(tmp_path / "run")
    result = run(config, directory, local=True)
    assert result.receipt.queries == 40 + sum(schedule)
    assert load_config(directory.config).pool == config.pool
    chosen = [directory.read_candidates(number + 1) for number in range(len(schedule))]
    assert [len(part.ids) for part in chosen] == schedule
    assert {part.source for part in chosen} == {"affine+cutmix"}
    assert set(chosen[0].columns) == {"i", "j", "draw", "variant_i", "variant_j", "share"}
    ids = np.concatenate([part.ids for part in chosen])
    assert len(set((ids // 2).tolist())) == len(ids), "one of a pair"
    bought = directory.read_labelled(1, result.num_classes)
    again = config.pool.build(directory.read_labelled(0, result.num_classes).images, config.seed)
    assert again.image_shape == tuple(bought.images.shape[1:])
    write_report([directory], tmp_path / "page.html")
    i, j, share = (chosen[0].columns[name][0] for name in ("i", "j", "share"))
    assert f"#{i} + #{j}, share {share:.2f}" in (tmp_path / "page.html").read_text()


def test_a_plan_of_pairs_speaks_of_no_grid(make_config, monkeypatch):
    monkeypatch.setattr("kdray.runs.plan.probe", lambda *arguments, **options: 2.0)
    config = make_config(pool={"kind": "pairs", "draws": 5}, resources__scoring_workers=2)
    rows = dict(plan_lines(make_plan(config)))
    assert rows["pool"].startswith("780 groups, 3,900 candidates")
    assert "; one candidate of each of the 780 groups takes 195 s, and each has 5" in rows["scoring"]


# Mistakes


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"blend": "cutmixx"}, "pool.blend.kind: 'cutmixx' is not one of 'cutmix', 'cutline', 'mixup', nor "
         "module:object; did you mean 'cutmix'?"),
        ({"pre": "rotate"}, "pool.pre.kind: 'rotate' is not one of 'none', 'affine', 'flip-crop', nor module:object"),
        ({"draws": 0}, "pool.draws: input should be greater than or equal to 1, got 0"),
        ({"blend": {"kind": "mixup", "share": [0.7, 0.3]}},
         "pool.blend.share: a range is [least, most], and 0.7 is more than 0.3; swap them"),
        ({"blend": {"kind": "mixup", "share": [0.3, 1.2]}},
         "pool.blend.share.1: input should be less than or equal to 1, got 1.2"),
        ({"pre": {"kind": "flip-crop", "area": [0.5, 1.5]}},
         "pool.pre.area.1: input should be less than or equal to 1, got 1.5"),
        ({"pre": {"kind": "flip-crop", "area": [0, 1]}}, "pool.pre.area.0: input should be greater than 0, got 0"),
        ({"pre": {"kind": "affine", "scale": 1.5}},
         "pool.pre.scale: input should be less than or equal to 0.5, got 1.5"),
        ({"pre": {"kind": "none", "degrees": 3}},
         "pool.pre.degrees belongs to kind affine; with kind = none leave it out"),
        ({"lambdas": [0.5]}, "pool.lambdas belongs to kind mixup; with kind = pairs leave it out"),
    ],
)  # fmt: skip
def test_what_a_wrong_field_is_told(pool, message, make_config):
    with pytest.raises(ConfigError) as error:
        make_config(pool={"kind": "pairs", **pool})
    assert str(error.value).removeprefix("config: ").startswith(message)


def test_strategies_and_pools_that_do_not_fit(make_config):
    with pytest.raises(ConfigError, match=r"unixkd buys mixes of images at every λ of a grid; set pool.kind to mixup"):
        make_config(pool={"kind": "pairs"}, select={"strategy": "unixkd"})
    with pytest.raises(ConfigError, match=r"pool.pairs: auto takes as many pairs as the budget needs"):
        make_config(pool={"kind": "pairs", "pairs": "auto"}, select={"schedule": "nested"})


def test_images_and_ids_that_make_no_pairs():
    with pytest.raises(
        ImageSetError, match=r"a pair pool needs at least two images to mix, got 1; give more \(images.count\)"
    ):
        make(pictures(1))
    with pytest.raises(ImageSetError, match="a pair pool needs uint8 images"):
        make(pictures(3).float())
    with pytest.raises(ConfigError, match=r"pool.pairs: 4 pairs wanted, 3 images make 3"):
        make(pictures(3), pairs=4)
    with pytest.raises(ConfigError, match=r"pool.draws: a pair needs at least one candidate, got 0"):
        BlendedPool(pictures(3), blends.default(), transforms.default(), draws=0)
    for pairs in ("all", 2):
        pool = make(pictures(3), pairs=pairs)
        assert pool.render(torch.empty(0, dtype=torch.int64)).shape == (0, 1, 6, 5)
        assert list(pool.batches(torch.empty(0, dtype=torch.int64), 5)) == []
        for wrong in (-1, len(pool)):
            with pytest.raises(IndexError, match="must lie in"):
                pool.render(torch.tensor([wrong]))


# A user's own


def test_a_users_own_blend_and_pre_transform(tmp_path, monkeypatch):
    (tmp_path / "own_blends.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    images = pictures(3)
    pool = make(images, {"kind": "own_blends:Lightest", "share": [0.5, 0.5]}, "own_blends:Negative", draws=1)
    i, j = (255 - images[0]), (255 - images[2])
    assert torch.equal(pool.render(torch.tensor([1]))[0], torch.maximum(i, j))
    assert pool.source == "own_blends:Negative+own_blends:Lightest"
    assert torch.equal(pickle.loads(pickle.dumps(pool)).render(torch.tensor([1])), torch.maximum(i, j)[None])


OWN = '''
import torch
from kdray.pools.blends.base import Blend
from kdray.pools.transforms.base import Originals, Transform


class Brighter:
    def __call__(self, one, other, words):
        return torch.maximum(one, other)

    def shares(self, words):
        return torch.full(words.shape[1:], 0.5, dtype=torch.float64)


class Lightest(Blend):
    """The lighter pixel of the two."""

    words = 0

    def build(self, shape, device):
        return Brighter()


class Negative(Transform):
    """Black is white."""

    def build(self, images, seed):
        return Originals(255 - images)
'''
