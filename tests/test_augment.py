"""Augmentations: what each does to an image, the published regimes, and the same bits whoever computes which rows."""

import math

import numpy as np
import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torchvision.transforms import v2

from kdray.errors import ConfigError
from kdray.training.augment import Augment, Draw, augments, check_augment
from kdray.training.augment.affine import Affine, random_affine
from kdray.training.augment.crop import random_flip, random_shift
from kdray.training.augment.operations import BINS, OPERATIONS, rand_augment
from kdray.training.augment.regimes import Extreme, High, Standard
from kdray.training.augment.warps import random_elastic, random_erase, random_invert


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(count: int, seed: int = 0) -> Draw:
    return Draw.whole(generator(seed), count)


def images(n: int, shape: tuple[int, int, int] = (3, 16, 16), seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), generator=generator(seed), dtype=torch.uint8)


@pytest.mark.parametrize(("shift", "shape"), [(1, (1, 3, 3)), (2, (3, 4, 6)), (2, (1, 3, 5))])
def test_a_shifted_image_is_one_of_the_crops_of_its_mirrored_edges(shift, shape):
    data = torch.arange(math.prod(shape), dtype=torch.uint8).view(1, *shape).repeat(400, 1, 1, 1)
    data[1::2] = 255 - data[1::2]
    shifted = random_shift(data, shift, whole(400))
    assert (shifted.dtype, shifted.shape) == (torch.uint8, data.shape)
    seen = set()
    for image, moved in zip(data.numpy(), shifted.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)), mode="reflect")
        crops = {
            (dy, dx): padded[:, dy : dy + shape[1], dx : dx + shape[2]]
            for dy in range(2 * shift + 1)
            for dx in range(2 * shift + 1)
        }
        matches = [key for key, crop in crops.items() if np.array_equal(crop, moved)]
        assert matches
        seen.update(matches)
    assert len(seen) == (2 * shift + 1) ** 2  # all of them come, in both directions independently
    assert torch.equal(shifted, random_shift(data, shift, whole(400)))
    assert not torch.equal(shifted, random_shift(data, shift, whole(400, 1)))


def test_no_shift_is_the_identity():
    data = images(5, (1, 8, 8))
    assert torch.equal(random_shift(data, 0, whole(5)), data)


def test_a_flipped_image_is_itself_or_its_mirror_image_about_half_of_the_time():
    data = images(400, (2, 3, 4))
    flipped = random_flip(data, whole(400))
    kept = (flipped == data).flatten(1).all(dim=1)
    mirrored = (flipped == torch.from_numpy(data.numpy()[..., ::-1].copy())).flatten(1).all(dim=1)
    assert bool((kept ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250
    assert torch.equal(flipped, random_flip(data, whole(400)))
    assert not torch.equal(flipped, random_flip(data, whole(400, 1)))


def test_no_augmentation_changes_nothing():
    data = images(4)
    assert augments.parse("none")(data, whole(4)) is data


@pytest.mark.parametrize("name", [name for name in augments.parts() if name != "auto"])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 12, 20)])
def test_every_kind_gives_pixels_of_the_same_scale_and_its_generators_bits(name, shape):
    change, data = augments.parse(name), images(12, shape)
    kept = data.clone()
    change.check(shape)
    changed = change(data, whole(12))
    assert changed.shape == data.shape
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 255
    assert torch.equal(change(data, whole(12)), changed)
    assert torch.equal(data, kept)


# Affine maps


def only(**changes) -> Affine:
    return Affine(**{"kind": "affine", "degrees": 0, "scale": 0, "shear": 0, "shift": 0, **changes})


def test_an_affine_map_of_nothing_is_the_identity():
    data = images(6, (3, 9, 14))
    torch.testing.assert_close(random_affine(data, only(), whole(6)), data.float(), atol=2e-3, rtol=0)


def naive_affine(image: np.ndarray, angle: float, scale: float, shear: float, shift: tuple[float, float]) -> np.ndarray:
    """[H, W]: the value at each pixel's place in the image, of which edges continue outwards."""
    height, width = image.shape
    turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * scale
    matrix = turned @ np.array([[1.0, shear], [0.0, 1.0]])
    result = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            place = matrix @ [column - (width - 1) / 2, row - (height - 1) / 2]
            x = np.clip(place[0] + shift[0] * width + (width - 1) / 2, 0, width - 1)
            y = np.clip(place[1] + shift[1] * height + (height - 1) / 2, 0, height - 1)
            left, top = int(x), int(y)
            right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
            upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
            result[row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return result


@given(st.integers(0, 2**32), st.sampled_from([(9, 9), (8, 13)]))
@examples(15)
def test_affine_maps_equal_the_naive_ones(seed, sides):
    how, data = Affine(kind="affine"), images(2, (1, *sides), seed)
    changed = random_affine(data, how, whole(2, seed))
    for n, (turn, growth, shear, right, down) in enumerate(whole(2, seed).uniform(-1.0, 1.0, (5,)).tolist()):
        by_hand = naive_affine(
            data[n, 0].numpy().astype(float),
            turn * math.radians(how.degrees),
            (1.0 + how.scale) ** growth,
            shear * how.shear,
            (right * how.shift, down * how.shift),
        )
        np.testing.assert_allclose(changed[n, 0].numpy(), by_hand, atol=0.02)


# RandAugment


def test_the_operations_and_their_strengths_are_torchvisions():
    """Each operation at m = 14 and m = 30, both signs, against torchvision's own transform made to draw just that."""
    space = v2.RandAugment._AUGMENTATION_SPACE
    assert list(OPERATIONS) == list(space)
    data = images(2, (3, 20, 24))
    for name, operation in OPERATIONS.items():
        strengths, signed = space[name]
        magnitudes = strengths(BINS, 20, 24)
        assert operation.signed == signed
        for magnitude in (0, 14, 30):
            theirs = 0.0 if magnitudes is None else float(magnitudes[magnitude])
            ours = operation.strength(magnitude / (BINS - 1), 24, 20)
            assert ours == pytest.approx(theirs, abs=1e-4), (name, magnitude)
            for sign in (1, -1) if signed else (1,):
                expected = v2.RandAugment()._apply_image_or_video_transform(
                    data, name, sign * theirs, interpolation=v2.InterpolationMode.NEAREST, fill={torch.Tensor: None}
                )
                assert torch.equal(operation.change(data, sign * theirs), expected), (name, magnitude, sign)


def test_each_image_draws_operations_of_its_own():
    """Brightness and inversion of the order alone would leave a grey image; here each image equals one operation."""
    data = images(1, (3, 16, 16)).repeat(300, 1, 1, 1)
    changed = rand_augment(data, 1, 14, whole(300))
    expected = {}
    for name, operation in OPERATIONS.items():
        strength = operation.strength(14 / 30, 16, 16)
        for sign in (1, -1) if operation.signed else (1,):
            expected[name, sign] = operation.change(data[:1], sign * strength)[0]
    seen = {key for image in changed for key, one in expected.items() if torch.equal(image, one)}
    assert all(any(torch.equal(image, one) for one in expected.values()) for image in changed)
    assert seen == set(expected)


def test_no_operation_is_the_identity_and_grey_images_draw_no_colours():
    data = images(50, (1, 16, 16))
    assert torch.equal(rand_augment(data, 0, 14, whole(50)), data)
    drawn = rand_augment(data, 1, 14, whole(50))
    names = tuple(name for name in OPERATIONS if name != "Color")
    assert torch.equal(rand_augment(data, 1, 14, whole(50), names), drawn)


def test_the_regimes_are_those_of_the_paper():
    """Section 4: n = 2, m = 14; for synthetic images n = 4, elastic, inversion. Table 5: n = 8, m = 30, erasing."""
    standard, high, extreme = (augments.parse(name) for name in ("standard", "high", "extreme"))
    assert (standard.number, standard.magnitude, standard.flip) == (2, 14, True)
    assert (high.number, high.magnitude, high.elastic, high.invert, high.flip) == (4, 14, True, True, True)
    assert (extreme.number, extreme.magnitude, extreme.erase, extreme.elastic) == (8, 30, True, True)
    data = images(8)
    plain = {"number": 0, "flip": False, "shift": 0}
    assert torch.equal(Standard(kind="standard", **plain)(data, whole(8)), data)
    assert torch.equal(High(kind="high", **plain, elastic=False, invert=False)(data, whole(8)), data)
    assert torch.equal(Extreme(kind="extreme", **plain, elastic=False, invert=False, erase=False)(data, whole(8)), data)


# Warps


def test_an_elastic_warp_is_torchvisions_for_the_same_noise():
    data = images(3, (3, 32, 32))
    warped = random_elastic(data, whole(3))
    noise = whole(3).uniform(-1.0, 1.0, (2, 32, 32))
    for n in range(3):
        blurred = torch.cat(
            [v2.functional.gaussian_blur(noise[n, k].view(1, 1, 32, 32), [41, 41], [5.0, 5.0]) for k in range(2)], dim=1
        )
        moved = (blurred * 50.0 / 32).permute(0, 2, 3, 1)
        expected = v2.functional.elastic(data[n : n + 1], moved, fill=None)
        assert (warped[n].int() - expected[0].int()).abs().max() <= 1


def test_half_of_the_images_are_inverted():
    data = images(400, (1, 4, 4))
    inverted = random_invert(data, whole(400))
    same = (inverted == data).flatten(1).all(dim=1)
    assert torch.equal(inverted[~same], 255 - data[~same])
    assert 150 < int(same.sum()) < 250


def test_erased_rectangles_have_the_areas_and_ratios_that_torchvision_draws():
    data = torch.full((600, 1, 40, 30), 9, dtype=torch.uint8)
    gone = random_erase(data, whole(600)) == 0
    touched = gone.flatten(1).any(dim=1)
    assert 240 < int(touched.sum()) < 360
    for mask in gone[touched][:, 0]:
        rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
        tall, wide = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert int(mask.sum()) == tall * wide == len(rows) * len(columns)
        assert 0.01 < tall * wide / 1200 < 0.36
        assert 0.2 < tall / wide < 4.5
        assert tall < 40 and wide < 30
    assert bool((random_erase(data, whole(600), share=1.0) == 0).flatten(1).any(dim=1).all())


# Bad input


@pytest.mark.parametrize(
    ("given", "shape", "message"),
    [
        ({"kind": "crop", "shift": 16}, (1, 16, 16), "x.shift: 16 pixels do not fit images of 16x16"),
        ({"kind": "standard", "shift": 9}, (3, 8, 20), "x.shift: 9 pixels do not fit images of 8x20"),
        ("standard", (4, 16, 16), "x: standard works on 1 or 3 channels, the images have 4"),
        ({"kind": "high", "operations": ["Color"]}, (1, 16, 16), "x.operations: Color changes colours, and the images"),
    ],
)
def test_what_does_not_fit_the_images_is_refused(given, shape, message):
    with pytest.raises(ConfigError, match=message):
        augments.parse(given).check(shape, "x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"kind": "standard", "operations": ["Colour"]},
            "'Colour' is not an operation of RandAugment; did you mean",
        ),
        ({"kind": "standard", "operations": []}, "the list is empty"),
        ({"kind": "extreme", "magnitude": 31}, "less than or equal to 30"),
        ({"kind": "affine", "scale": 1.0}, "less than 1"),
        ({"kind": "afine"}, "did you mean 'affine'"),
        ({"kind": "none", "shift": 2}, "belongs to kind crop"),
    ],
)
def test_a_wrong_field_is_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        augments.parse(given)


# A user's own


class Own(Augment):
    """Gives what it is told to."""

    kind: str = "test_augment:Own"
    gives: str

    def __call__(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """See `Augment`."""
        return {
            "all": images,
            "fewer": images[:1],
            "nothing": None,
            "halves": images.half(),
            "fractions": images.float() / 255 - 0.5,
            "rounded": images.float() * (1 + 1e-6),
            "brighter": images.float() + 0.1,
            "error": images if self.gives != "error" else images[:, 7],
        }[self.gives]


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ("fewer", r"x: test_augment:Own gave \[1, 1, 8, 8\] for images \[2, 1, 8, 8\]; it must give as many"),
        ("nothing", "x: test_augment:Own gave NoneType"),
        ("halves", "gave torch.float16; it must give uint8 or float32"),
        ("fractions", "gave pixels of -0.5 to 0.5; they must be 0 to 255"),
        ("brighter", r"gave pixels of 0\.1 to 255\.1; they must be 0 to 255"),
        ("error", r"x: test_augment:Own failed on images \[2, 1, 8, 8\] \(IndexError"),
    ],
)
def test_what_is_wrong_with_a_users_own_is_found_out_before_anything_is_paid(gives, message):
    check_augment(Own(gives="all"), (1, 8, 8), "x")
    check_augment(Own(gives="rounded"), (1, 8, 8), "x")  # as bilinear pixels are
    with pytest.raises(ConfigError, match=message):
        check_augment(Own(gives=gives), (1, 8, 8), "x")
