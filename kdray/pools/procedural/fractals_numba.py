"""Draws fractals by the chaos game, compiled. The painter imports this module: numba is an extra, and slow to import.

A fractal is the attractor of a few contractive affine maps of the plane. A point that jumps by one of them at a time,
at random, visits all of it. All numbers are integers.
"""

from __future__ import annotations

import numpy as np

from kdray.pools.procedural.words_numba import Numbers, bits, inlined, kept, part_below, random_colours, random_word

TURN = 1024
"""Angles of a full turn."""
SINE_BITS = 14
"""Fractional bits of a sine."""
MOST_MAPS = 16
"""Maps of a fractal at most."""
EXTENT_BITS = 12
"""Fractional bits of the size of a fractal."""
MOST_HITS = 255
"""More hits of a pixel count as so many."""
SHARE_BITS = 8
"""Fractional bits of the share of the second colour in a mix."""
ATTEMPTS = 8
"""Fractals that are tried until one shows enough; the last is shown whatever it shows."""

_BITS = 16  # fractional bits of coordinates and of maps
_ONE = 1 << _BITS
_ANGLE_BITS, _CHOICE_BITS = 10, 12  # random bits of one each
_PICKS, _BYTE = 256, np.uint64(255)  # a random byte picks the map of a step
_LEAST_WEIGHT = _ONE // 64  # even a map onto a line is taken now and then
_SETTLING, _MEASURING = 32, 1024  # steps until the point is on the attractor, and steps that its box is measured in
_PER_PIXEL = 8  # steps for each pixel of the box
_FILLED = 8  # a fractal hits one pixel of so many at least
_SCALE_BITS = 32  # fractional bits of pixels a coordinate
_FAR = 1 << 62
_LAYOUT, _COLOURS = 0, 1  # an image's words: the number of fractals, the background, one for each fractal
_SYSTEM, _STEPS = 0, 1 + 2 * MOST_MAPS  # words of maps: their number, two for each, one for eight steps


@inlined
def _between(word: np.uint64, first: int, low: int, high: int) -> int:
    """The number in `_BITS` bits of a word, mapped to [low, high]."""
    return low + part_below(word, first, _BITS, max(high - low + 1, 1))


@inlined
def _make_maps(start: np.uint64, least: int, most: int, sine: Numbers, maps: Numbers, picks: Numbers) -> None:
    """Write random contractive maps int64 [n, 6] (a, b, c, d, e, f: x -> a x + b y + e, y -> c x + d y + f), and the
    map that each byte picks, int64 [_PICKS]: by its determinant.

    Source: Anderson and Farrell, "Improving Fractal Pre-training", 2022, section 3.2: each map is a rotation, two
    singular values s1 >= s2, and a rotation; the sum of all s1 + 2 s2 is (5 + n) / 2 to (6 + n) / 2 for n maps, with
    which most fractals are neither sparse nor blots.
    """
    word = random_word(start, _SYSTEM)
    count = least + part_below(word, 0, _CHOICE_BITS, most - least + 1)
    rest = _between(word, _CHOICE_BITS, (5 + count) * _ONE // 2, (6 + count) * _ONE // 2)  # left of the sum
    total = 0
    for number in range(count):
        word, offset = random_word(start, 1 + 2 * number), random_word(start, 2 + 2 * number)
        later = 3 * _ONE * (count - 1 - number)  # most that the maps after this one can have of the sum
        if later:
            one = _between(word, 0, max((rest - later + 2) // 3, 0), min(rest, _ONE))
            two = _between(word, _BITS, max((rest - one - later + 1) // 2, 0), min((rest - one) // 2, one))
        else:
            two = _between(word, _BITS, max((rest - _ONE) // 2, 0), rest // 3)
            one = min(rest - 2 * two, _ONE)
        rest -= one + 2 * two
        left, right = bits(word, 2 * _BITS, _ANGLE_BITS), bits(word, 2 * _BITS + _ANGLE_BITS, _ANGLE_BITS)
        mirrored = 1 - 2 * bits(word, 2 * _BITS + 2 * _ANGLE_BITS, 1)
        sin_l, cos_l, sin_r, cos_r = sine[left], sine[left + TURN // 4], sine[right], sine[right + TURN // 4]
        shift, each = 2 * SINE_BITS, maps[number]
        each[0] = (cos_l * cos_r * one - sin_l * sin_r * two) >> shift
        each[1] = mirrored * ((-cos_l * sin_r * one - sin_l * cos_r * two) >> shift)
        each[2] = (sin_l * cos_r * one + cos_l * sin_r * two) >> shift
        each[3] = mirrored * ((-sin_l * sin_r * one + cos_l * cos_r * two) >> shift)
        each[4] = _between(offset, 0, -_ONE, _ONE) << _BITS
        each[5] = _between(offset, _BITS, -_ONE, _ONE) << _BITS
        total += max((one * two) >> _BITS, _LEAST_WEIGHT)
        picks[number] = total
    # Each byte picks the first map whose share of all weights, with those before it, passes the byte's.
    ends, number = picks[:count].copy(), 0
    for byte in range(_PICKS):
        while (byte * total) >= ends[number] * _PICKS:
            number += 1
        picks[byte] = number


@inlined
def _jump(one: Numbers, x: int, y: int) -> tuple[int, int]:
    """Where a map takes a point."""
    return (one[0] * x + one[1] * y + one[4]) >> _BITS, (one[2] * x + one[3] * y + one[5]) >> _BITS


@inlined
def _play(start: np.uint64, maps: Numbers, picks: Numbers, hits: Numbers) -> int:
    """Play the chaos game, write into int32 [h, w] how often each pixel is hit, and return how many pixels are. The
    box of the first points fills all of `hits`; later points outside of it count for nothing."""
    height, width = hits.shape
    hits[:] = 0
    x, y, word, filled = 0, 0, np.uint64(0), 0
    left, top, right, bottom = _FAR, _FAR, -_FAR, -_FAR
    for step in range(_SETTLING + _MEASURING):
        word = word >> np.uint64(8) if step % 8 else random_word(start, _STEPS + step // 8)
        x, y = _jump(maps[picks[word & _BYTE]], x, y)
        if step >= _SETTLING:
            left, right, top, bottom = min(left, x), max(right, x), min(top, y), max(bottom, y)
    across, down = (width << _SCALE_BITS) // (right - left + 1), (height << _SCALE_BITS) // (bottom - top + 1)
    for step in range(_SETTLING + _MEASURING, _SETTLING + _MEASURING + _PER_PIXEL * height * width):
        word = word >> np.uint64(8) if step % 8 else random_word(start, _STEPS + step // 8)
        x, y = _jump(maps[picks[word & _BYTE]], x, y)
        if left <= x <= right and top <= y <= bottom:
            row, column = ((y - top) * down) >> _SCALE_BITS, ((x - left) * across) >> _SCALE_BITS
            filled += hits[row, column] == 0
            hits[row, column] += 1
    return filled


@inlined
def _paint(image: Numbers, hits: Numbers, shares: Numbers, colours: Numbers) -> None:
    """Paint what is hit, in a mix of two colours that follows from how often."""
    channels, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if hits[row, column]:
                share = shares[min(hits[row, column], MOST_HITS)]
                for channel in range(channels):
                    one, two = colours[0, channel], colours[1, channel]
                    image[channel, row, column] = one + ((share * (two - one)) >> SHARE_BITS)


@kept
def draw(
    images: Numbers,
    starts: Numbers,
    count: Numbers,
    maps: Numbers,
    extent: Numbers,
    light: bool,
    sine: Numbers,
    shares: Numbers,
) -> None:
    """Draw images of fractals, which follow from their starts and the other arguments alone.

    Args:
        images: uint8 [B, C, H, W], to be written.
        starts: uint64 [B], starts of the images' random words.
        count: int64 [2], least and most fractals of an image.
        maps: int64 [2], least and most maps of a fractal, 2 to MOST_MAPS.
        extent: int64 [2], least and largest size of a fractal, as a share of the image's sides, times 2^EXTENT_BITS.
        light: whether the background is black, and no channel of a fractal is below 128.
        sine: int64 [5/4 TURN], sines of a turn and a quarter, times 2^SINE_BITS.
        shares: int64 [1 + MOST_HITS], share of the second colour where a pixel is hit so often, times 2^SHARE_BITS.
    """
    _, channels, height, width = images.shape
    colour_words = (channels + 7) // 8
    hits = np.empty((height, width), dtype=np.int32)
    system, picks = np.empty((MOST_MAPS, 6), dtype=np.int64), np.empty(_PICKS, dtype=np.int64)
    paper, colours = np.empty((1, channels), dtype=np.int64), np.empty((2, channels), dtype=np.int64)
    for image, start in zip(images, starts):  # noqa: B905  # numba's zip has no strict
        random_colours(start, _COLOURS, paper)
        for channel in range(channels):
            image[channel] = 0 if light else paper[0, channel]
        fractals = count[0] + part_below(random_word(start, _LAYOUT), 0, _CHOICE_BITS, count[1] - count[0] + 1)
        for fractal in range(fractals):
            own = random_word(start, _COLOURS + colour_words + fractal)
            place = random_word(own, _LAYOUT)
            share = extent[0] + part_below(place, 0, _CHOICE_BITS, extent[1] - extent[0] + 1)
            rows, columns = max((share * height) >> EXTENT_BITS, 1), max((share * width) >> EXTENT_BITS, 1)
            top = part_below(place, _CHOICE_BITS, _BITS, height - rows + 1)
            left = part_below(place, _CHOICE_BITS + _BITS, _BITS, width - columns + 1)
            random_colours(own, _COLOURS, colours)
            if light:
                colours[:] = 128 + (colours >> 1)
            box = hits[:rows, :columns]
            for attempt in range(ATTEMPTS):
                begin = random_word(own, _COLOURS + 2 * colour_words + attempt)
                _make_maps(begin, maps[0], maps[1], sine, system, picks)
                if _play(begin, system, picks, box) * _FILLED >= rows * columns:
                    break
            _paint(image[:, top : top + rows, left : left + columns], box, shares, colours)
