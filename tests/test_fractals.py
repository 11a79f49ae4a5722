"""Fractals: the compiled chaos game against a plain one, the fractals that were meant, and numba that is missing."""

import math
import sys

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from plain_words import cut, split_mix

from kdray.errors import ConfigError
from kdray.pools.procedural.fractals import FractalsPainter
from kdray.pools.procedural.fractals_numba import draw
from kdray.pools.procedural.words_numba import random_word
from kdray.runs.inputs import read_inputs

pytestmark = pytest.mark.xdist_group("compiled")  # once, not in each worker

ONE = 1 << 16


def painter(shape, maps=(2, 8), fractals=(1, 2), extent=(0.5, 1.0), any_colour=True) -> FractalsPainter:
    return FractalsPainter(shape, maps, fractals, extent, any_colour, 3)


# The plain form: the same whole numbers, one point after another


def within(share: int, low: int, high: int) -> int:
    """The whole number at a share, in 2^-16, of the way from low to high."""
    return low + (share * max(high - low + 1, 1) >> 16)


def plain_maps(start: int, least: int, most: int) -> list[tuple[list[list[int]], list[int], int]]:
    """Matrix, offset and weight of each map."""
    share, factor = cut(split_mix(start, 0), 12, 16)
    count = least + (share * (most - least + 1) >> 12)
    rest, found = within(factor, (5 + count) * ONE // 2, (6 + count) * ONE // 2), []
    for number in range(count):
        first, second, left, right, mirrored = cut(split_mix(start, 1 + 2 * number), 16, 16, 10, 10, 1)
        later = 3 * ONE * (count - 1 - number)
        if number < count - 1:
            s1 = within(first, max(0, math.ceil((rest - later) / 3)), min(ONE, rest))
            s2 = within(second, max(0, math.ceil((rest - s1 - later) / 2)), min(s1, (rest - s1) // 2))
        else:
            s2 = within(second, max(0, (rest - ONE) // 2), rest // 3)
            s1 = min(ONE, rest - 2 * s2)
        rest -= s1 + 2 * s2
        turns = []
        for angle in (left, right):
            sin, cos = (round(f(2 * math.pi * angle / 1024) * 2**14) for f in (math.sin, math.cos))
            turns.append(np.array([[cos, -sin], [sin, cos]], dtype=object))
        matrix = turns[0] @ np.diag(np.array([s1, s2], dtype=object)) @ turns[1]
        matrix = [[a >> 28, (-(b >> 28) if mirrored else b >> 28)] for a, b in matrix]
        offset = [within(share, -ONE, ONE) for share in cut(split_mix(start, 2 + 2 * number), 16, 16)]
        found.append((matrix, offset, max(s1 * s2 >> 16, ONE // 64)))
    return found


def plain_hits(start: int, height: int, width: int, maps: list[tuple[list[list[int]], list[int], int]]) -> np.ndarray:
    total = sum(weight for *_, weight in maps)
    ends = np.cumsum([weight for *_, weight in maps])
    points, x, y = [], 0, 0
    for step in range(1056 + 8 * height * width):
        byte = cut(split_mix(start, 1 + 2 * 16 + step // 8), *[8] * 8)[step % 8]
        (row, other), offset, _ = maps[next(i for i, end in enumerate(ends) if byte / 256 < end / total)]
        x, y = (
            row[0] * x + row[1] * y + offset[0] * ONE >> 16,
            other[0] * x + other[1] * y + offset[1] * ONE >> 16,
        )
        points.append((x, y))
    (left, top), (right, bottom) = (f(np.array(points[32:1056]), axis=0).tolist() for f in (np.min, np.max))
    across, down = (width << 32) // (right - left + 1), (height << 32) // (bottom - top + 1)
    hits = np.zeros((height, width), np.int64)
    for x, y in points[1056:]:
        if left <= x <= right and top <= y <= bottom:
            hits[(y - top) * down >> 32, (x - left) * across >> 32] += 1
    return hits


def plain(drawn: FractalsPainter, id_: int) -> np.ndarray:
    high, low = drawn._random(torch.tensor([id_])).flatten().tolist()
    start, (channels, height, width) = high << 31 | low, drawn._shape
    per_colour = math.ceil(channels / 8)

    def colour(start: int, number: int) -> np.ndarray:
        bytes_ = [cut(split_mix(start, number + c // 8), *[8] * 8)[c % 8] for c in range(channels)]
        return np.array(bytes_)[:, None, None]

    image = np.zeros(drawn._shape, np.int64) + (0 if drawn._light else colour(start, 1))
    low, high = drawn._fractals.tolist()
    for number in range(low + (cut(split_mix(start, 0), 12)[0] * (high - low + 1) >> 12)):
        own = split_mix(start, 1 + per_colour + number)
        share, top, left = cut(split_mix(own, 0), 12, 16, 16)
        least, most = drawn._extent.tolist()
        share = least + (share * (most - least + 1) >> 12)
        rows, columns = max(1, share * height >> 12), max(1, share * width >> 12)
        top, left = top * (height - rows + 1) >> 16, left * (width - columns + 1) >> 16
        for attempt in range(8):
            begin = split_mix(own, 1 + 2 * per_colour + attempt)
            hits = plain_hits(begin, rows, columns, plain_maps(begin, *drawn._maps.tolist()))
            if np.count_nonzero(hits) / hits.size >= 1 / 8:
                break
        one, two = colour(own, 1), colour(own, 1 + per_colour)
        if drawn._light:
            one, two = 128 + one // 2, 128 + two // 2
        share = np.array([max(0, (min(hit, 255) ** 32).bit_length() - 1) for hit in hits.flatten().tolist()])
        mixed = one + (share.reshape(hits.shape) * (two - one) >> 8)
        part = image[:, top : top + rows, left : left + columns]
        part[:, hits > 0] = mixed[:, hits > 0]
    return image.astype(np.uint8)


def assert_same(drawn: FractalsPainter, ids: list[int]) -> None:
    for image, id_ in zip(drawn(torch.tensor(ids)).numpy(), ids, strict=True):
        assert np.array_equal(image, plain(drawn, id_))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 5), (2, 1, 4), (17, 6, 7), (3, 32, 32), (1, 28, 28)])
def test_the_compiled_drawing_is_the_plain_one(shape):
    assert_same(painter(shape), [0, 7, (1 << 62) - 1])


@examples(10)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    maps=st.tuples(st.integers(2, 16), st.integers(2, 16)).map(sorted),
    fractals=st.tuples(st.integers(1, 3), st.integers(1, 3)).map(sorted),
    extent=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    any_colour=st.booleans(),
    id_=st.integers(0, (1 << 62) - 1),
)
def test_whatever_the_fields_are(shape, maps, fractals, extent, any_colour, id_):
    assert_same(painter(shape, tuple(maps), tuple(fractals), tuple(extent), any_colour), [id_])


# What is drawn


@examples(50)
@given(start=st.integers(0, 2**64 - 1), count=st.integers(2, 16))
def test_maps_are_contractive_and_their_singular_values_have_the_published_sum(start, count):
    maps = plain_maps(start, count, count)
    matrices = np.array([matrix for matrix, *_ in maps], float) / ONE
    values = np.linalg.svd(matrices, compute_uv=False)
    assert len(maps) == count and values.max() < 1 + 1e-3
    assert (5 + count) / 2 - 0.01 < (values @ [1, 2]).sum() < (6 + count) / 2 + 0.01
    assert np.abs([offset for _, offset, _ in maps]).max() <= ONE
    weights = np.array([weight for *_, weight in maps]) / ONE
    assert weights == pytest.approx(np.maximum(np.abs(np.linalg.det(matrices)), 1 / 64), abs=1e-3)


def test_numbers_of_maps_and_fractals_are_between_the_two_given():
    assert {len(plain_maps(start, 3, 5)) for start in range(100)} == {3, 4, 5}
    shown = []
    for count in (1, 3):
        images = painter((1, 32, 32), fractals=(count, count), any_colour=False)(torch.arange(300))
        shown.append(float((images > 0).double().mean()))
    assert shown[1] > shown[0] + 0.1


def test_the_chaos_game_draws_the_sierpinski_triangle():
    half = [[ONE // 2, 0], [0, ONE // 2]]  # each map halves the way to a corner
    maps = [(half, [x * ONE // 2, y * ONE // 2], ONE // 4) for x, y in ((0, 0), (1, 0), (0, 1))]
    hits = plain_hits(5, 32, 32, maps)
    for third in (hits[:16, :16], hits[:16, 16:], hits[16:, :16]):
        assert third.sum() / hits.sum() == pytest.approx(1 / 3, abs=0.05)
    assert hits[11:15, 11:15].sum() == hits[18:, 18:].sum() == 0, "the holes"
    assert (hits[:, 0] > 0).mean() > 0.9 and (hits[0] > 0).mean() > 0.9


def test_what_hits_too_few_pixels_gives_way():
    drawn = painter((1, 28, 28), fractals=(1, 1), extent=(1, 1), any_colour=False)
    filled = (drawn(torch.arange(4000)) > 0).double().mean(dim=(1, 2, 3))
    assert filled.min() >= 1 / 8, "of all random systems one in 400 has less"


def test_light_on_dark_has_a_black_background_and_light_fractals():
    drawn = painter((3, 16, 16), any_colour=False)(torch.arange(200))
    shown = drawn.amax(dim=1) > 0
    assert (drawn.amin(dim=1)[shown] >= 128).all() and 0.2 < shown.double().mean() < 0.8


def test_a_fractal_is_as_large_as_it_should_be_and_lies_anywhere():
    drawn = painter((1, 40, 40), fractals=(1, 1), extent=(0.25, 0.25), any_colour=False)(torch.arange(300))[:, 0] > 0
    rows, columns = drawn.any(dim=2), drawn.any(dim=1)
    assert rows.sum(dim=1).max() <= 10 and rows.sum(dim=1).double().mean() > 8
    for side in (rows, columns):
        first = side.int().argmax(dim=1)
        assert first.min() == 0 and first.max() >= 30 and first.double().mean().item() == pytest.approx(15, abs=2)


def test_no_images_are_no_images():
    assert painter((3, 8, 8))(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 8, 8)


# What cannot work


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"maps": [1, 4]}, r"pool\.maps\.0: input should be greater than or equal to 2"),
        ({"maps": [2, 17]}, r"pool\.maps\.1: input should be less than or equal to 16"),
        ({"maps": [5, 4]}, r"maps: a range is \[least, most\], and 5 is more than 4; swap them"),
        ({"fractals": [2, 1]}, r"fractals: a range is \[least, most\], and 2 is more than 1; swap them"),
        ({"fractals": [0, 1]}, r"pool\.fractals\.0"),
        ({"extent": [0.5, 0.1]}, r"extent: a range is \[least, most\], and 0\.5 is more than 0\.1; swap them"),
        ({"extent": [0, 0.1]}, r"pool\.extent\.0"),
        ({"extent": [0.5, math.nan]}, r"pool\.extent\.1"),
        ({"colours": "red"}, r"pool\.colours: input should be 'any' or 'light-on-dark', got 'red'"),
        ({"strokes": [1, 2]}, r"pool\.strokes belongs to kind lines"),
    ],
)
def test_a_section_that_cannot_work_is_refused(fields, words, make_config):
    with pytest.raises(ConfigError, match=words):
        make_config(pool={"kind": "fractals", **fields})


def test_without_numba_the_pool_says_what_to_install(make_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    for module in (draw.__module__, random_word.__module__):
        monkeypatch.delitem(sys.modules, module)
    config = make_config(pool="fractals")
    with pytest.raises(
        ConfigError, match=r"pool\.kind: fractals needs numba, which cannot .*pip install 'kdray\[fractals\]'"
    ):
        read_inputs(config)
