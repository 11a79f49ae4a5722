"""Dead leaves: the compiled drawing against a plain one, the images that were meant, and numba that is missing."""

import math
import os
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from plain_words import cut, split_mix

from kdray.errors import ConfigError
from kdray.pools.base import pools
from kdray.pools.procedural.leaves import Colours, LeavesPainter, LeavesSection, Shape, Texture, radius_quantiles
from kdray.pools.procedural.leaves_numba import COLOURS, SHAPES, TEXTURES, TURN, UNIT, draw
from kdray.pools.procedural.words_numba import random_word
from kdray.runs.inputs import read_inputs

pytestmark = pytest.mark.xdist_group("compiled")  # once, not in each worker

ALL = LeavesSection()


def painter(
    shape: tuple[int, int, int],
    shapes: tuple[Shape, ...] = ALL.shapes,
    radii: tuple[float, float] = ALL.radii,
    textures: tuple[Texture, ...] = ALL.textures,
    sigma: float = ALL.sigma,
    **more,
) -> LeavesPainter:
    return LeavesPainter(shape, shapes, radii, sigma, textures, 3, **more)


# The plain form: leaves as masks, painted from the lowest to the topmost


class PlainLeaf:
    """Leaf `number` of an image: which pixels it covers, `mask` bool [H, W], and their colours int64 [C, H, W]."""

    def __init__(self, drawn: LeavesPainter, start: int, number: int, most: int) -> None:
        channels, height, width = drawn._shape
        colour_words = math.ceil(channels / 8)
        words = [split_mix(start, number * (3 + 2 * colour_words) + i) for i in range(3 + 2 * colour_words)]
        column, row, radius, dark = cut(words[0], 22, 22, 12, 1)
        self.x, self.y, self.radius = column * width * UNIT >> 22, row * height * UNIT >> 22, int(drawn._radii[radius])
        *self.angles, shape, texture = cut(words[1], 10, 10, 10, 10, 12, 12)
        self.kind = SHAPES[drawn._shapes[shape * len(drawn._shapes) >> 12]]
        if covers := number == most:
            self.kind, self.radius = "circle", 10**6
        down, across = np.mgrid[:height, :width] * UNIT + UNIT // 2
        outline, line = cut(words[2], 22, 12, 12)[1:]
        least, largest = drawn._widths.tolist()
        inset = least + (line * (largest - least + 1) >> 12) if outline < drawn._outlined and not covers else None
        self.mask = self.covered(drawn._sine.tolist(), across, down, inset)
        one, two = (
            np.array([cut(words[3 + colour * colour_words + c // 8], *[8] * 8)[c % 8] for c in range(channels)])
            for colour in range(2)
        )
        if (colours := COLOURS[drawn._colours]) != "any":
            black = covers or (dark and colours == "light-and-dark")
            one, two = (np.zeros_like(colour) if black else 128 + colour // 2 for colour in (one, two))
        share = self.share(drawn, TEXTURES[drawn._textures[texture * len(drawn._textures) >> 12]], words[2])
        self.colours = one[:, None, None] + (share * (two - one)[:, None, None] >> 8)

    def covered(self, sine: list[int], across: np.ndarray, down: np.ndarray, inset: int | None) -> np.ndarray:
        """Pixels of the leaf but those that lie `inset` or more within it."""
        if self.kind == "circle":
            squares = (across - self.x) ** 2 + (down - self.y) ** 2
            full = squares <= self.radius**2
            return full if inset is None or inset > self.radius else full & (squares > (self.radius - inset) ** 2)
        first = self.angles[0]
        angles = {
            "square": [TURN // 8 + i * TURN // 4 for i in range(4)],
            "oriented-square": [(first + i * TURN // 4) % TURN for i in range(4)],
            "rectangle": [first % 256, TURN // 2 - first % 256, TURN // 2 + first % 256, -(first % 256) % TURN],
            "triangle": sorted(self.angles[:3]),
            "quadrilateral": sorted(self.angles),
        }[self.kind]
        corners = [
            (self.x + (self.radius * sine[angle + TURN // 4] >> 14), self.y + (self.radius * sine[angle] >> 14))
            for angle in angles
        ]
        within = np.full(across.shape, inset is not None)
        edge_on_the_left, edge_on_the_right = np.zeros(across.shape, bool), np.zeros(across.shape, bool)
        for one, two in zip(corners, corners[1:] + corners[:1], strict=True):
            run, rise = two[0] - one[0], two[1] - one[1]
            away = (down - one[1]) * run - (across - one[0]) * rise  # from the edge, times its length
            within &= away >= (inset or 0) * math.isqrt(run**2 + rise**2)
            (low_x, low_y), (high_x, high_y) = sorted((one, two), key=lambda corner: corner[1])
            crossed = (low_y <= down) & (down < high_y)
            side = (across - low_x) * (high_y - low_y) - (down - low_y) * (high_x - low_x)
            edge_on_the_left |= crossed & (side >= 0)
            edge_on_the_right |= crossed & (side <= 0)
        return edge_on_the_left & edge_on_the_right & ~within

    def share(self, drawn: LeavesPainter, texture: str, word: int) -> np.ndarray:
        _, height, width = drawn._shape
        angle, stripe = cut(word, 10, 12)
        down, across = np.mgrid[:height, :width] * UNIT + UNIT // 2
        along = (across - self.x) * drawn._sine[angle + TURN // 4] + (down - self.y) * drawn._sine[angle] >> 14
        radius = self.radius if self.radius < 10**6 else (height + width) * UNIT
        match texture:
            case "plain":
                return np.zeros((height, width), np.int64)
            case "gradient":
                return np.clip(256 * (radius + along) // (2 * radius), 0, 256)
            case "stripes":
                return along // (UNIT + (stripe * radius >> 12)) % 2 * 256
        return np.array([split_mix(word, pixel) % 256 for pixel in range(height * width)]).reshape(height, width)


def plain(drawn: LeavesPainter, id_: int) -> np.ndarray:
    high, low = drawn._random(torch.tensor([id_])).flatten().tolist()
    start, (least, most) = high << 31 | low, drawn._leaves.tolist()
    count = least + (split_mix(start, -1) % 2**24 * (most - least + 1) >> 24)
    leaves, covered = [], np.zeros(drawn._shape[1:], bool)
    while not covered.all():
        leaves.append(PlainLeaf(drawn, start, len(leaves), count))
        covered |= leaves[-1].mask
    image = np.zeros(drawn._shape, np.uint8)
    for leaf in reversed(leaves):
        image[:, leaf.mask] = leaf.colours[:, leaf.mask]
    return image


def assert_same(drawn: LeavesPainter, ids: list[int]) -> None:
    for image, id_ in zip(drawn(torch.tensor(ids)).numpy(), ids, strict=True):
        assert np.array_equal(image, plain(drawn, id_))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 5), (2, 1, 4), (17, 6, 7), (3, 32, 32), (1, 28, 28)])
def test_the_compiled_drawing_is_the_plain_one(shape):
    assert_same(painter(shape, textures=TEXTURES), [0, 7, (1 << 62) - 1])


@pytest.mark.parametrize(("shape", "least"), [((1, 5, 64), 0.3), ((3, 70, 130), 0.15), ((3, 224, 224), 0.4)])
def test_also_where_a_row_takes_a_whole_word_or_several(shape, least):
    assert_same(painter(shape, radii=(least, 1), textures=TEXTURES), [5])


@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_by_itself(kind):
    assert_same(painter((2, 24, 24), shapes=(kind,), radii=(0.1, 0.5)), [0, 1, 2])


@pytest.mark.parametrize("kind", SHAPES)
def test_outlines_of_every_shape(kind):
    fields = {"shapes": (kind,), "radii": (0.05, 0.5), "leaves": (3, 6), "outlines": 0.7, "width": (0.03, 0.2)}
    assert_same(painter((2, 24, 24), textures=TEXTURES, **fields), [0, 1, 2])
    assert_same(painter((1, 20, 140), shapes=(kind,), radii=(0.5, 1), outlines=1), [0])


@examples(20)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    shapes=st.lists(st.sampled_from(SHAPES), min_size=1, unique=True),
    textures=st.lists(st.sampled_from(TEXTURES), min_size=1, unique=True),
    radii=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)).map(sorted),
    sigma=st.floats(0, 10),
    leaves=st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted),
    outlines=st.sampled_from([0.0, 0.5, 1.0]),
    width=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    colours=st.sampled_from(COLOURS),
    id_=st.integers(0, (1 << 62) - 1),
)
def test_whatever_the_fields_are(shape, shapes, textures, radii, sigma, id_, **more):
    assert_same(painter(shape, tuple(shapes), tuple(radii), tuple(textures), sigma, **more), [id_])


def test_random_words_are_those_of_the_published_generator():
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [int(random_word(np.uint64(1234567), number)) for number in range(5)] == known


# What is drawn


def test_a_leaf_has_the_area_of_its_shape():
    radius = 16  # pixels
    areas = {}
    for kind in SHAPES:
        drawn = painter((1, 64, 64), shapes=(kind,), radii=(0.25, 0.25), leaves=(1, 1))(torch.arange(400)).flatten(1)
        background = drawn.mode(dim=1, keepdim=True).values
        areas[kind] = (drawn != background).sum(dim=1).numpy() / radius**2
    largest = {
        "circle": math.pi, "square": 2, "oriented-square": 2, "rectangle": 2, "triangle": 0.75 * 3**0.5,
        "quadrilateral": 2,
    }  # fmt: skip
    for kind, area in largest.items():
        assert 0.9 * area < areas[kind].max() < 1.05 * area, kind
    for kind in ("circle", "square", "oriented-square"):
        assert np.mean(areas[kind] > 0.95 * largest[kind]) > 0.2, "each leaf that lies within the image"
    mean = {"rectangle": 4 / math.pi, "triangle": 3 / (2 * math.pi), "quadrilateral": 3 / math.pi}
    for kind, area in mean.items():
        assert areas[kind].mean() / area == pytest.approx(areas["circle"].mean() / math.pi, rel=0.15), kind


def test_the_radii_follow_the_power_law():
    count = 1 << 12
    for sigma, share in ((0, 0.9 / 0.97), (3, (0.1**-2 - 1) / (0.03**-2 - 1)), (1, math.log(10) / math.log(1 / 0.03))):
        radii = np.array(radius_quantiles(0.03, 1, sigma, count))
        assert radii[0] > 0.03 and radii[-1] < 1 and (np.diff(radii) > 0).all()
        assert np.mean(radii > 0.1) == pytest.approx(share, abs=1 / count)
    assert radius_quantiles(0.2, 0.2, 3, 3) == pytest.approx([0.2] * 3)
    assert radius_quantiles(0.1, 0.4, 1, 2) == pytest.approx([0.1 * 2**0.5, 0.1 * 8**0.5])
    assert radius_quantiles(0.1, 0.4, 1 + 1e-15, 2) == pytest.approx([0.1 * 2**0.5, 0.1 * 8**0.5])
    assert radius_quantiles(0.1, 0.5, 0, 2) == pytest.approx([0.2, 0.4])


def test_a_leaf_is_half_a_pixel_at_least_and_what_stays_open_is_covered():
    small = painter((1, 200, 200), radii=(0.001, 0.001), leaves=(100, 100))
    assert small._radii.tolist() == [UNIT // 2] * len(small._radii)
    image = small(torch.tensor([0]))
    assert 0.99 < (image == image.flatten().mode().values).double().mean() < 1


def test_a_few_leaves_on_a_plain_ground():
    drawn = painter((1, 64, 64), shapes=("circle",), radii=(0.02, 0.02), leaves=(2, 5))(torch.arange(400)).flatten(1)
    ground = drawn.mode(dim=1, keepdim=True).values
    others = [len(image.unique()) - 1 for image in drawn]
    assert max(others) == 5 and 3 < np.mean(others) < 3.5, "some lie under others, or outside, or have a like colour"
    assert 100 < ground.double().mean() < 155


def test_light_leaves_on_black():
    light_ones = painter((3, 16, 16), radii=(0.2, 0.5), textures=TEXTURES, leaves=(1, 4), colours="light-on-dark")
    drawn = light_ones(torch.arange(200))
    light = drawn.amin(dim=1) >= 128
    assert (light | (drawn.amax(dim=1) == 0)).all() and 0.2 < light.double().mean() < 0.8
    assert 180 < drawn.movedim(1, -1)[light].double().mean() < 205


def test_dark_leaves_cut_into_light_ones():
    fields = {"shapes": ("circle",), "radii": (0.3, 0.3), "leaves": (6, 6)}
    light, both = (painter((1, 16, 16), colours=colours, **fields)(torch.arange(400)) for colours in COLOURS[1:])
    same = both == light
    assert (same | (both == 0)).all(), "the same leaves, some of them black"
    covered = light > 0
    assert 0.48 < (both[covered] > 0).double().mean() < 0.52, "half of what leaves cover"
    untouched = same.flatten(1).all(dim=1).double().mean()
    assert 0 < untouched < 0.1, "images whose visible leaves are all light"


def test_an_outline_is_as_wide_as_it_should_be():
    fields = {"radii": (0.4, 0.4), "leaves": (1, 1), "outlines": 1, "colours": "light-on-dark"}
    for kind in SHAPES:
        thin, wide = (painter((1, 80, 80), (kind,), width=(w, w), **fields)(torch.arange(300)) > 0 for w in (0.05, 0.1))
        full = painter((1, 80, 80), (kind,), **fields | {"outlines": 0})(torch.arange(300)) > 0
        assert (full | ~wide).all() and (wide | ~thin).all(), "one lies within the other"
        inside = ~(full[:, :, [0, -1]].any(dim=3) | full[:, :, :, [0, -1]].any(dim=2)).flatten(1).any(dim=1)
        areas = {"circle": math.pi * (32**2 - 28**2), "square": 2 * 32**2 - (32 * 2**0.5 - 8) ** 2}
        if kind in areas:
            drawn = thin[inside].flatten(1).sum(dim=1).double()
            assert drawn.mean().item() == pytest.approx(areas[kind], rel=0.02)
            assert drawn.numpy() == pytest.approx(areas[kind], rel=0.08), "an edge may gain or lose a row of pixels"


def test_outlines_are_the_share_of_leaves_that_was_asked_for():
    fields = {"radii": (0.3, 0.3), "leaves": (1, 1), "colours": "light-on-dark"}
    some, none = (painter((1, 30, 30), ("circle",), outlines=share, **fields)(torch.arange(2000)) for share in (0.3, 0))
    visible = (none > 0).flatten(1).sum(dim=1) > 200
    assert (some != none)[visible].flatten(1).any(dim=1).double().mean().item() == pytest.approx(0.3, abs=0.04)


def test_colours_are_uniform():
    drawn = painter((3, 16, 16))(torch.arange(1000)).double()
    pixels = drawn[:, :, 8, 8]
    assert pixels.mean().item() == pytest.approx(127.5, abs=5) and pixels.std().item() == pytest.approx(73.9, abs=3)
    assert np.abs(np.corrcoef(pixels.T.numpy()) - np.eye(3)).max() < 0.1


def test_textures_of_one_leaf():
    def covered(texture):
        return painter((1, 40, 40), textures=(texture,), leaves=(0, 0))(torch.arange(50))[:, 0].long()

    plain_, gradient, stripes, grain = (covered(texture) for texture in TEXTURES)
    assert (plain_.amin(dim=(1, 2)) == plain_.amax(dim=(1, 2))).all()
    assert max(len(one.unique()) for one in stripes) == 2
    steps = gradient.diff(dim=2).flatten(1)
    assert ((steps >= 0).all(dim=1) | (steps <= 0).all(dim=1)).all() and steps.abs().max() <= 6
    contrast = grain.amax(dim=(1, 2)) - grain.amin(dim=(1, 2))
    spread = grain.flatten(1).double().std(dim=1) / contrast
    assert spread[contrast > 50].mean().item() == pytest.approx(1 / 12**0.5, rel=0.03)


def test_no_images_are_no_images():
    assert painter((3, 8, 8))(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 8, 8)


# What cannot work


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"shapes": []}, r"pool\.shapes: .*at least 1 item"),
        (
            {"shapes": ["star"]},
            r"pool\.shapes\.0: input should be 'circle', 'square', .* or 'quadrilateral', got 'star'",
        ),
        ({"shapes": ["circle", "circle"]}, r"shapes: name each once, got \['circle', 'circle'\]"),
        ({"textures": []}, r"pool\.textures: .*at least 1 item"),
        ({"textures": ["wood"]}, r"pool\.textures\.0: input should be 'plain', 'gradient', 'stripes' or 'grain'"),
        ({"textures": ["plain", "plain"]}, r"textures: name each once"),
        ({"radii": [0.5, 0.1]}, r"radii: a range is \[least, most\], and 0\.5 is more than 0\.1; swap them"),
        ({"radii": [0, 0.1]}, r"pool\.radii\.0"),
        ({"radii": [0.1, 1.5]}, r"pool\.radii\.1"),
        ({"radii": [0.1]}, r"pool\.radii"),
        ({"sigma": -1}, r"pool\.sigma"),
        ({"sigma": math.nan}, r"pool\.sigma"),
        ({"leaves": [0, 2]}, r"pool\.leaves\.0: .*greater than or equal to 1"),
        ({"leaves": [5, 2]}, r"leaves: a range is \[least, most\], and 5 is more than 2; swap them"),
        (
            {"colours": "light-on-dark"},
            r"colours: light-on-dark needs a ground; set pool\.leaves, \[1, 8\] for example",
        ),
        ({"colours": "light-and-dark"}, r"colours: light-and-dark needs a ground; set pool\.leaves"),
        ({"outlines": 1.5}, r"pool\.outlines"),
        ({"outlines": -0.1}, r"pool\.outlines"),
        ({"outlines": 1, "width": [0.2, 0.1]}, r"width: a range is \[least, most\], and 0\.2 is more than 0\.1; swap"),
        ({"outlines": 1, "width": [0, 0.1]}, r"pool\.width\.0"),
        ({"width": [0.1, 0.2]}, r"width: it is that of outlines, and there are none; set pool\.outlines, 0\.5 for"),
        ({"strokes": [1, 2]}, r"pool\.strokes belongs to kind lines"),
    ],
)
def test_a_section_that_cannot_work_is_refused(fields, words, make_config):
    with pytest.raises(ConfigError, match=words):
        make_config(pool={"kind": "leaves", **fields})


def test_names_of_the_section_are_those_of_the_drawing():
    section = pools.parse({"kind": "leaves", "shapes": list(SHAPES), "textures": list(TEXTURES)})
    assert section.shapes == ALL.shapes == SHAPES and section.textures == TEXTURES
    assert get_args(Colours) == COLOURS


def test_without_numba_the_pool_says_what_to_install(make_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    for module in (draw.__module__, random_word.__module__):
        monkeypatch.delitem(sys.modules, module)
    config = make_config(pool="leaves")
    with pytest.raises(
        ConfigError, match=r"pool\.kind: leaves needs numba, which cannot .*pip install 'kdray\[leaves\]'"
    ):
        read_inputs(config)


def test_where_numba_may_write_nowhere_it_compiles_for_each_process():
    environment = os.environ | {"NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}  # there is no archive
    code = f"import {draw.__module__} as compiled; assert not compiled.draw.stats.cache_path"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert draw.stats.cache_path, "it is kept elsewhere"
