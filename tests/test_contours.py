"""Contours of smooth noise: each pixel against plain arithmetic, their width, length and number, one-pixel images."""

import pickle

import numpy as np
import pytest
import torch

from kdray.errors import ConfigError
from kdray.pools.base import pools
from kdray.pools.counter import below
from kdray.pools.procedural.contours import ContoursPainter


def contours(shape: tuple[int, int, int], count: int = 200, **fields) -> torch.Tensor:
    section = {"kind": "contours", "contours": [1, 1], "colours": "light-on-dark", **fields}
    return pools.parse(section).build(torch.empty(0, *shape, dtype=torch.uint8), 0).render(torch.arange(count))


def plainly(painter: ContoursPainter, ids: torch.Tensor) -> np.ndarray:
    """The images in floats, pixel by pixel."""
    channels, height, width = painter._shape
    canvas, words = painter._canvas(ids).T.tolist(), painter._random(ids).T.tolist()
    noise = [painter._sums(ids, number)[:, 0].double().numpy() for number in range(painter._contours[1])]
    images = np.zeros((len(ids), channels, height, width))
    (least, most), (thin, thick) = painter._contours, painter._widths
    for number in range(len(ids)):
        image = images[number]
        if painter._any_colour:
            image += np.array([word * 256 >> 31 for word in canvas[number][1:]])[:, None, None]
        for contour in range(least + (canvas[number][0] * (most - least + 1) >> 31)):
            pixel, width_, *colours = words[number][contour * (2 + channels) : (contour + 1) * (2 + channels)]
            values = noise[contour][number]
            values = (values - values.mean()) / max(values.std(), 1)
            level = values.flat[pixel * height * width >> 31]
            half = (thin + (width_ * (thick - thin + 1) >> 31)) / 512
            inside = half - np.abs(values - level)  # standard deviations to the nearer edge
            share = np.clip(0.5 + painter._steepness * inside, 0, 1)
            for channel, word in enumerate(colours):
                ink = word * 256 >> 31 if painter._any_colour else 128 + (word * 128 >> 31)
                over = share * ink + (1 - share) * image[channel]
                image[channel] = over if painter._any_colour else np.maximum(image[channel], share * ink)
    return images


@pytest.mark.parametrize("any_colour", [True, False])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 5), (2, 40, 3)])
def test_each_pixel_is_what_plain_arithmetic_says(shape, any_colour):
    painter, ids = ContoursPainter(shape, (1, 3), (1.0, 4.0), (0.15, 0.6), any_colour, 3), torch.arange(40)
    apart = np.abs(painter(ids).numpy() - plainly(painter, ids))
    # A value is off by up to 1/256 of a standard deviation twice over, and an edge rises by `steepness` in one.
    assert apart.max() < 2 + 255 * 3 * painter._steepness / 256
    assert apart.mean() < 1


def test_a_contour_is_light_and_no_image_is_empty():
    drawn = contours((3, 28, 28), 2000).flatten(2)
    assert drawn.amax(dim=2).min() >= 100, "the finest ones are not wholly as light as their colour"
    assert (drawn.amax(dim=2) >= 128).float().mean() > 0.95
    assert (drawn == 0).float().mean() > 0.6
    many = contours((3, 28, 28), 2000, contours=[3, 3]).flatten(2)
    assert 2 < (many > 0).float().mean() / (drawn > 0).float().mean() < 3


def test_a_contour_goes_through_any_pixel():
    lit = contours((1, 8, 8), 4000)[:, 0] > 60
    assert lit.any(dim=0).all()
    shares = lit.float().mean(dim=0)
    assert shares.max() < 3 * shares.min()


def test_a_width_is_in_standard_deviations_of_the_noise_of_the_image():
    thin, thick = (contours((1, 64, 64), width=[width, width])[:, 0] > 0 for width in (0.1, 0.5))
    assert 2 < thick.float().mean() / thin.float().mean() < 5
    painter = ContoursPainter((1, 64, 64), (1, 1), (3.0, 3.0), (0.5, 0.5), False, 0)
    ids = torch.arange(300)
    noise = painter._sums(ids)[:, 0].double()
    values = ((noise - noise.mean(dim=(1, 2), keepdim=True)) / noise.std(dim=(1, 2), keepdim=True)).flatten(1)
    level = values.gather(1, below(painter._random(ids)[0], 64 * 64).unsqueeze(1))
    wanted = ((values - level).abs() < 0.25).float().mean()
    drawn = painter(ids).flatten(1).double()
    found = (drawn > drawn.amax(dim=1, keepdim=True) / 2).float().mean()
    assert found.item() == pytest.approx(wanted.item(), rel=0.02)


def test_smoother_noise_has_longer_contours():
    def edges(exponent):
        lit = contours((1, 32, 32), exponent=[exponent, exponent])[:, 0] > 60
        changes = (lit[:, 1:] != lit[:, :-1]).sum() + (lit[:, :, 1:] != lit[:, :, :-1]).sum()
        return (changes / lit.sum()).item()

    assert edges(4) < edges(2) < edges(1)


def test_the_number_of_contours_is_between_the_two_given():
    def lit(least, most):
        return (contours((1, 32, 32), 1000, contours=[least, most]) > 0).flatten(1).float().mean(dim=1)

    one, some, three = lit(1, 1), lit(1, 3), lit(3, 3)
    assert one.mean() < 0.7 * some.mean() < 0.7 * three.mean()
    assert some.std() > max(one.std(), three.std()), "some have one, and some three"


def test_an_edge_is_as_wide_in_a_large_image_as_in_a_small_one():
    def soft(side):
        drawn = contours((1, side, side), exponent=[3.0, 3.0], width=[0.6, 0.6])[:, 0].double()
        share = drawn / drawn.amax(dim=(1, 2), keepdim=True)
        between = ((share > 0.1) & (share < 0.9)).sum()
        lit = share > 0.5
        edge = (lit[:, 1:] != lit[:, :-1]).sum() + (lit[:, :, 1:] != lit[:, :, :-1]).sum()
        return (between / edge).item()

    assert soft(112) == pytest.approx(soft(28), rel=0.35)


def test_many_contours_share_their_tables():
    def painter(most):
        return pickle.dumps(ContoursPainter((1, 64, 64), (1, most), (2.0, 4.0), (0.15, 0.6), False, 0))

    assert len(painter(20)) < 20 * len(painter(1)) / 4


def test_an_image_of_one_pixel_is_all_contour():
    drawn = contours((1, 1, 1))
    assert drawn.min() >= 64, "half covered at least, as its edge is as wide as it"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": [0.6, 0.1]}, r"width: a range is \[least, most\], and 0\.6 is more than 0\.1; swap them"),
        ({"contours": [0, 2]}, r"pool\.contours\.0"),
        ({"width": [0, 0.1]}, r"pool\.width\.0"),
        ({"exponent": [2, 5]}, r"pool\.exponent\.1"),
        ({"colours": "light-and-dark"}, r"pool\.colours"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, words, make_config):
    with pytest.raises(ConfigError, match=words):
        make_config(pool={"kind": "contours", **fields})
