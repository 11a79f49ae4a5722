"""Draws dead leaves, compiled. The painter imports this module: numba is an extra, and slow to import.

The topmost leaf is drawn first, so each pixel is painted once, and a hidden leaf costs little. The uncovered pixels of
a row are bits of words. All numbers are integers; a pixel belongs to a leaf if its centre does.
"""

from __future__ import annotations

import math

import numpy as np

from kdray.pools.procedural.words_numba import Numbers, bits, inlined, kept, part_below, random_colours, random_word

SHAPES = ("circle", "square", "oriented-square", "rectangle", "triangle", "quadrilateral")
"""Shapes by their numbers. The corners of a leaf lie on the circle of its radius."""
TEXTURES = ("plain", "gradient", "stripes", "grain")
"""Textures by their numbers. All but plain mix two colours."""
COLOURS = ("any", "light-on-dark", "light-and-dark")
"""Which colours leaves have, by their numbers."""
_UNIT_BITS = 4
UNIT = 1 << _UNIT_BITS
"""Positions a pixel. The centre of pixel i is at UNIT * i + UNIT // 2."""
TURN = 1024
"""Angles of a full turn."""
SINE_BITS = 14
"""Fractional bits of a sine."""
RADIUS_BITS = 12
"""Random bits that choose a radius."""

_CIRCLE, _SQUARE, _ORIENTED, _RECTANGLE, _TRIANGLE, _QUADRILATERAL = range(len(SHAPES))
_PLAIN, _GRADIENT, _STRIPES, _GRAIN = range(len(TEXTURES))
_ANY, _LIGHT, _LIGHT_AND_DARK = range(len(COLOURS))
_HALF = UNIT // 2
_COORDINATE_BITS, _ANGLE_BITS, _CHOICE_BITS, _WIDTH_BITS = 22, 10, 12, 12  # random bits of one each
_COUNT_BITS = 24  # random bits that choose the number of leaves
_SHARE_BITS = 8  # of the second colour in a mix
CHOICE_BITS = _CHOICE_BITS
"""Random bits that choose whether a leaf is an outline."""
_OUTLINE = _ANGLE_BITS + _WIDTH_BITS  # bit of the texture's word from which on it says whether a leaf is an outline
_OUTLINE_WIDTH = _OUTLINE + _CHOICE_BITS  # and from which on how wide
_NOWHERE = np.int64(1) << 32  # the first pixel of a row that has none
_LAYOUT = -1  # an image's word, before those of its leaves
_PLACE, _FORM, _TEXTURE, _COLOURS = range(4)  # a leaf's words; those of colours have a byte a channel, and come last
_ALL = np.uint64((1 << 64) - 1)


@inlined
def _first_pixel(position: int) -> int:
    """The first pixel whose centre is at `position` or after it."""
    return (position + _HALF - 1) >> _UNIT_BITS


@inlined
def _last_pixel(position: int) -> int:
    """The last pixel whose centre is at `position` or before it."""
    return (position - _HALF) >> _UNIT_BITS


@inlined
def _columns(first: int, last: int, block: int) -> np.uint64:
    """The columns `first` to `last` as bits of word `block` of a row, which holds 64 columns from 64 * block on."""
    low, high = max(first - 64 * block, 0), min(last - 64 * block, 63)
    return (_ALL << np.uint64(low)) & (_ALL >> np.uint64(63 - high))


@inlined
def _uncovered_in(uncovered: Numbers, first: int, last: int, top: int, bottom: int) -> bool:
    """Whether any pixel of these columns and rows is uncovered."""
    if first <= last:
        for block in range(first >> 6, (last >> 6) + 1):
            columns = _columns(first, last, block)
            for row in range(top, bottom + 1):
                if uncovered[row, block] & columns:
                    return True
    return False


@inlined
def _angles(shape: int, form: np.uint64, angles: Numbers) -> int:
    """Write the angles of a polygon's corners, in the order of its edges, and return how many they are."""
    if shape == _RECTANGLE:
        angle = bits(form, 0, _ANGLE_BITS - 2)  # within a quarter turn
        angles[0], angles[1] = angle, TURN // 2 - angle
        angles[2], angles[3] = TURN // 2 + angle, (TURN - angle) % TURN
        return 4
    if shape in (_SQUARE, _ORIENTED):
        angle = TURN // 8 if shape == _SQUARE else bits(form, 0, _ANGLE_BITS)
        for corner in range(4):
            angles[corner] = (angle + corner * TURN // 4) % TURN
        return 4
    corners = 3 if shape == _TRIANGLE else 4
    for corner in range(corners):
        angle, place = bits(form, corner * _ANGLE_BITS, _ANGLE_BITS), corner
        while place > 0 and angles[place - 1] > angle:
            angles[place] = angles[place - 1]
            place -= 1
        angles[place] = angle
    return corners


@inlined
def _bound_circle(x: int, y: int, radius: int, top: int, bottom: int, lefts: Numbers, rights: Numbers) -> None:
    """Write the first and the last pixel of each row of a circle, whose radius may be negative."""
    for row in range(top, bottom + 1):
        down = row * UNIT + _HALF - y
        lefts[row], rights[row] = _NOWHERE, -1
        if abs(down) > radius:
            continue
        reach = int(math.sqrt(radius * radius - down * down))  # exact: IEEE's root of a number below 2^52
        lefts[row], rights[row] = _first_pixel(x - reach), _last_pixel(x + reach)


@inlined
def _bound_polygon(
    xs: Numbers, ys: Numbers, corners: int, top: int, bottom: int, lefts: Numbers, rights: Numbers
) -> None:
    """Write the first and the last pixel of each row of a polygon: between the edges that cross the row's middle."""
    for row in range(top, bottom + 1):
        lefts[row], rights[row] = _NOWHERE, -1
    for corner in range(corners):
        other = corner + 1 if corner + 1 < corners else 0
        low, high = (corner, other) if ys[corner] < ys[other] else (other, corner)
        run, rise = xs[high] - xs[low], ys[high] - ys[low]
        for row in range(max(_first_pixel(ys[low]), top), min(_last_pixel(ys[high] - 1), bottom) + 1):
            over = (row * UNIT + _HALF - ys[low]) * run
            whole = over // rise
            crossing = xs[low] + whole  # rounded down
            lefts[row] = min(lefts[row], _first_pixel(crossing + (whole * rise != over)))
            rights[row] = max(rights[row], _last_pixel(crossing))


@inlined
def _bound_inside(
    xs: Numbers, ys: Numbers, corners: int, width: int, top: int, bottom: int, lefts: Numbers, rights: Numbers
) -> None:
    """Write the first and the last pixel of each row that lie at least `width` inside each edge of a polygon.

    A polygon whose corners lie on a circle is convex: these are the pixels behind all its edges, moved inwards.
    """
    for row in range(top, bottom + 1):
        lefts[row], rights[row] = -_NOWHERE, _NOWHERE
    for corner in range(corners):
        other = corner + 1 if corner + 1 < corners else 0
        run, rise = xs[other] - xs[corner], ys[other] - ys[corner]
        deep = width * int(math.sqrt(run * run + rise * rise))  # exact, as in a circle
        for row in range(top, bottom + 1):
            room = run * (row * UNIT + _HALF - ys[corner]) - deep  # of rise times the way to the right
            if rise > 0:
                rights[row] = min(rights[row], _last_pixel(xs[corner] + room // rise))
            elif rise < 0:
                lefts[row] = max(lefts[row], _first_pixel(xs[corner] - room // -rise))
            elif room < 0:
                rights[row] = -1


@inlined
def _bound(
    shape: int,
    form: np.uint64,
    x: int,
    y: int,
    radius: int,
    line: int,
    sine: Numbers,
    corners: Numbers,
    top: int,
    bottom: int,
    bounds: Numbers,
) -> None:
    """Write the first and the last pixel of each row of a leaf, and of what is open in it.

    Args:
        shape: index of SHAPES.
        form: the leaf's random bits.
        x, y, radius: of the leaf's circle.
        line: width of an outline; 0: nothing is open.
        sine: see `draw`.
        corners: int64 [3, 4], to work in.
        top, bottom: the rows.
        bounds: int64 [4, H]: first and last of the leaf, first and last of what is open.
    """
    if line == 0:
        bounds[3, top : bottom + 1] = -1
    if shape == _CIRCLE:
        _bound_circle(x, y, radius, top, bottom, bounds[0], bounds[1])
        if line > 0:
            _bound_circle(x, y, radius - line, top, bottom, bounds[2], bounds[3])
        return
    count = _angles(shape, form, corners[0])
    for corner in range(count):
        angle = corners[0, corner]
        corners[1, corner] = x + ((radius * sine[angle + TURN // 4]) >> SINE_BITS)
        corners[2, corner] = y + ((radius * sine[angle]) >> SINE_BITS)
    _bound_polygon(corners[1], corners[2], count, top, bottom, bounds[0], bounds[1])
    if line > 0:
        _bound_inside(corners[1], corners[2], count, line, top, bottom, bounds[2], bounds[3])


@inlined
def _share(texture: int, word: np.uint64, along: int, radius: int, pixel: int) -> int:
    """Share of the second colour in a pixel, in 1 / 2^_SHARE_BITS.

    Args:
        texture: index of TEXTURES, not plain.
        word: the texture's random bits.
        along: where the pixel lies in the texture's direction, from the leaf's centre on.
        radius: the leaf's.
        pixel: number of the pixel in the image.
    """
    if texture == _GRADIENT:
        return min(max(((radius + along) << _SHARE_BITS) // (2 * radius), 0), 1 << _SHARE_BITS)
    if texture == _STRIPES:
        width = UNIT + part_below(word, _ANGLE_BITS, _WIDTH_BITS, radius)
        return ((along // width) & 1) << _SHARE_BITS
    share: int = bits(random_word(word, pixel), 0, _SHARE_BITS)
    return share


@inlined
def _paint(
    image: Numbers,
    uncovered: Numbers,
    bounds: Numbers,
    top: int,
    bottom: int,
    colours: Numbers,
    texture: int,
    word: np.uint64,
    x: int,
    y: int,
    radius: int,
    sine: Numbers,
) -> int:
    """Paint the uncovered pixels of a leaf that are not open, cover them, and return how many they were."""
    channels, _, width = image.shape
    angle, painted = bits(word, 0, _ANGLE_BITS), 0
    for row in range(top, bottom + 1):
        first, last = max(bounds[0, row], 0), min(bounds[1, row], width - 1)
        if first > last:
            continue
        from_, to = max(bounds[2, row], 0), min(bounds[3, row], width - 1)
        for block in range(first >> 6, (last >> 6) + 1):
            fresh = uncovered[row, block] & _columns(first, last, block)
            if from_ <= to and from_ >> 6 <= block <= to >> 6:
                fresh &= ~_columns(from_, to, block)
            uncovered[row, block] ^= fresh
            column = max(first, 64 * block)
            fresh >>= np.uint64(column - 64 * block)
            while fresh:
                if fresh & np.uint64(1):
                    painted += 1
                    share = 0
                    if texture != _PLAIN:
                        across, down = column * UNIT + _HALF - x, row * UNIT + _HALF - y
                        along = (across * sine[angle + TURN // 4] + down * sine[angle]) >> SINE_BITS
                        share = _share(texture, word, along, radius, row * width + column)
                    for channel in range(channels):
                        one, two = colours[0, channel], colours[1, channel]
                        image[channel, row, column] = one + ((share * (two - one)) >> _SHARE_BITS)
                fresh >>= np.uint64(1)
                column += 1
    return painted


@kept
def draw(
    images: Numbers,
    starts: Numbers,
    count: Numbers,
    shapes: Numbers,
    textures: Numbers,
    radii: Numbers,
    colouring: int,
    outlined: int,
    widths: Numbers,
    sine: Numbers,
) -> None:
    """Draw images of dead leaves, which follow from their starts and the other arguments alone.

    Args:
        images: uint8 [B, C, H, W], to be written.
        starts: uint64 [B], starts of the images' random words.
        count: int64 [2], least and most leaves of an image. One more covers all that they leave open.
        shapes: int64 [S], indices of SHAPES. A leaf has one of them.
        textures: int64 [T], indices of TEXTURES. A leaf has one of them.
        radii: int64 [2^RADIUS_BITS], equally likely radii, positive.
        colouring: index of COLOURS. But for any, the leaf that covers the rest is black, and no channel of a light one
            is below 128.
        outlined: of 2^CHOICE_BITS leaves, how many are outlines, whose inside stays open.
        widths: int64 [2], least and largest width of an outline.
        sine: int64 [5/4 TURN], sines of a turn and a quarter, times 2^SINE_BITS.
    """
    _, channels, height, width = images.shape
    words = _COLOURS + 2 * ((channels + 7) // 8)
    uncovered = np.empty((height, (width + 63) // 64), dtype=np.uint64)
    bounds, corners = np.empty((4, height), dtype=np.int64), np.empty((3, 4), dtype=np.int64)
    colours = np.empty((2, channels), dtype=np.int64)
    for image in range(len(images)):
        start = starts[image]
        for block in range(uncovered.shape[1]):
            uncovered[:, block] = _columns(0, width - 1, block)
        most = count[0] + part_below(random_word(start, _LAYOUT), 0, _COUNT_BITS, count[1] - count[0] + 1)
        left, leaf = height * width, -1
        while left > 0:
            leaf += 1
            number = leaf * words
            place = random_word(start, number + _PLACE)
            x = part_below(place, 0, _COORDINATE_BITS, width * UNIT)
            y = part_below(place, _COORDINATE_BITS, _COORDINATE_BITS, height * UNIT)
            radius = radii[bits(place, 2 * _COORDINATE_BITS, RADIUS_BITS)]
            if leaf == most:
                radius = (height + width) * UNIT
            first, last = max(_first_pixel(x - radius), 0), min(_last_pixel(x + radius), width - 1)
            top, bottom = max(_first_pixel(y - radius), 0), min(_last_pixel(y + radius), height - 1)
            if not _uncovered_in(uncovered, first, last, top, bottom):
                continue
            form = random_word(start, number + _FORM)
            shape = shapes[part_below(form, 4 * _ANGLE_BITS, _CHOICE_BITS, len(shapes))]
            texture = textures[part_below(form, 4 * _ANGLE_BITS + _CHOICE_BITS, _CHOICE_BITS, len(textures))]
            word = random_word(start, number + _TEXTURE)
            line = 0
            if leaf == most:
                shape = _CIRCLE
            elif bits(word, _OUTLINE, _CHOICE_BITS) < outlined:
                line = widths[0] + part_below(word, _OUTLINE_WIDTH, _CHOICE_BITS, widths[1] - widths[0] + 1)
            _bound(shape, form, x, y, radius, line, sine, corners, top, bottom, bounds)
            random_colours(start, number + _COLOURS, colours)
            dark = colouring == _LIGHT_AND_DARK and bits(place, 2 * _COORDINATE_BITS + RADIUS_BITS, 1) == 1
            if colouring != _ANY and (dark or leaf == most):
                colours[:] = 0
            elif colouring != _ANY:
                colours[:] = 128 + (colours >> 1)
            left -= _paint(images[image], uncovered, bounds, top, bottom, colours, texture, word, x, y, radius, sine)
