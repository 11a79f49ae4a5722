"""Contours of smooth noise: each pixel against plain arithmetic, their width, their number, and images of one pixel."""

import numpy as np
import pytest
import torch

from kdray.errors import ConfigError
from kdray.pools.base import pools
from kdray.pools.counter import below
from kdray.pools.procedural.contours import ContoursPainter


def contours(shape: tuple[int, int, int], count: int = 200, **fields) -> torch.Tensor:
    section = {"kind": "contours", "colours": "light-on-dark", **fields}
    return pools.parse(section).build(torch.empty(0, *shape, dtype=torch.uint8), 0).render(torch.arange(count))


def plainly(painter: ContoursPainter, ids: torch.Tensor) -> np.ndarray:
    """The images in floats, pixel by pixel."""
    channels, height, width = painter._shape
    noise, words = painter._sums(ids)[:, 0].double().numpy(), painter._random(ids)
    images = np.empty((len(ids), channels, height, width))
    for number, of in enumerate(noise):
        word = [int(one) for one in words[:, number]]
        values = (of - of.mean()) / max(of.std(), 1)
        row, column = divmod(word[0] * height * width >> 31, width)
        least, most = painter._widths
        half = (least + (word[1] * (most - least + 1) >> 31)) / 512
        for y in range(height):
            for x in range(width):
                inside = half - abs(values[y, x] - values[row, column])  # standard deviations to the nearer edge
                share = min(1, max(0, 0.5 + painter._steepness * inside))
                for channel in range(channels):
                    paper, ink = word[2 + channel], word[2 + channels + channel]
                    paper = paper * 256 >> 31 if painter._any_colour else 0
                    ink = ink * 256 >> 31 if painter._any_colour else 128 + (ink * 128 >> 31)
                    images[number, channel, y, x] = share * ink + (1 - share) * paper
    return images


@pytest.mark.parametrize("any_colour", [True, False])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 5), (2, 40, 3)])
def test_each_pixel_is_what_plain_arithmetic_says(shape, any_colour):
    painter, ids = ContoursPainter(shape, (1.0, 4.0), (0.15, 0.6), any_colour, 3), torch.arange(30)
    apart = np.abs(painter(ids).numpy() - plainly(painter, ids))
    # A value is off by up to 1/256 of a standard deviation twice over, and an edge rises by `steepness` in one.
    assert apart.max() < 2 + 255 * 3 * painter._steepness / 256
    assert apart.mean() < 1


def test_a_contour_is_light_and_no_image_is_empty():
    drawn = contours((3, 28, 28), 2000).flatten(2)
    assert drawn.amax(dim=2).min() >= 100, "the finest ones are not wholly as light as their colour"
    assert (drawn.amax(dim=2) >= 128).float().mean() > 0.95
    assert (drawn == 0).float().mean() > 0.6


def test_a_contour_goes_through_any_pixel():
    lit = contours((1, 8, 8), 4000)[:, 0] > 60
    assert lit.any(dim=0).all()
    shares = lit.float().mean(dim=0)
    assert shares.max() < 3 * shares.min()


def test_a_width_is_in_standard_deviations_of_the_noise_of_the_image():
    thin, thick = (contours((1, 64, 64), width=[width, width])[:, 0] > 0 for width in (0.1, 0.5))
    assert 2 < thick.float().mean() / thin.float().mean() < 5
    painter = ContoursPainter((1, 64, 64), (3.0, 3.0), (0.5, 0.5), False, 0)
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


def test_an_edge_is_as_wide_in_a_large_image_as_in_a_small_one():
    def soft(side):
        drawn = contours((1, side, side), exponent=[3.0, 3.0], width=[0.6, 0.6])[:, 0].double()
        share = drawn / drawn.amax(dim=(1, 2), keepdim=True)
        between = ((share > 0.1) & (share < 0.9)).sum()
        lit = share > 0.5
        edge = (lit[:, 1:] != lit[:, :-1]).sum() + (lit[:, :, 1:] != lit[:, :, :-1]).sum()
        return (between / edge).item()

    assert soft(112) == pytest.approx(soft(28), rel=0.35)


def test_an_image_of_one_pixel_is_all_contour():
    drawn = contours((1, 1, 1))
    assert drawn.min() >= 64, "half covered at least, as its edge is as wide as it"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": [0.6, 0.1]}, r"width: a range is \[least, most\], and 0\.6 is more than 0\.1; swap them"),
        ({"width": [0, 0.1]}, r"pool\.width\.0"),
        ({"exponent": [2, 5]}, r"pool\.exponent\.1"),
        ({"colours": "light-and-dark"}, r"pool\.colours"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, words, make_config):
    with pytest.raises(ConfigError, match=words):
        make_config(pool={"kind": "contours", **fields})
