"""Contact sheets: many small images in a grid, each with a caption below it."""

import functools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kdray.pages.figures import GRID, INK, SOFT
from kdray.utils.files import shown
from kdray.utils.text import printable

SIDE = 144
"""Pixels of a cell's width, and of the longer side of an image at most."""
_GAP, _MARGIN = 12, 20
_LINE, _TEXT = 15, 11  # pixels from one line of a caption to the next, and its size
_ABOVE = 4  # between an image and its caption
_HEADING, _TITLE = 30, 14  # the same of a part's title
_APART = 10  # between parts
_BETWEEN = 8  # the texts at both ends of a line

Line = tuple[str, str]
"""A line of a caption: the text at the left, which is cut where there is no room for it, and that at the right."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What is written below an image.

    Attributes:
        said: by the teacher; directly below.
        about: the image, in grey; below the longest `said` of its part, so that it stands at one height in a row.
    """

    said: Sequence[Line] = ()
    about: Sequence[Line] = ()


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images of a contact sheet that belong together.

    Attributes:
        title: above them.
        images: uint8 [N, C, H, W].
        captions: of each of the N images.
    """

    title: str
    images: Tensor
    captions: Sequence[Caption]

    def __post_init__(self) -> None:
        if len(self.captions) != len(self.images):
            raise ValueError(f"{len(self.images)} images but {len(self.captions)} captions")

    @property
    def said(self) -> int:
        """Lines of the longest `said`."""
        return max(len(caption.said) for caption in self.captions)

    @property
    def lines(self) -> int:
        """Lines of text below an image, at most."""
        return self.said + max(len(caption.about) for caption in self.captions)


def contact_sheet(parts: Sequence[Part], columns: int = 8) -> Image.Image:
    """Draw the images of all parts, below one another, as one RGB image.

    A small image is enlarged by a whole factor, without smoothing, to `SIDE` pixels at most; a larger one is reduced to
    that. No text reaches into the next cell: what is too long is cut, and ends with "…".

    Args:
        parts: at least one, with at least one image each.
        columns: images of a row, at most.
    """
    columns = min(columns, max(len(part.images) for part in parts))
    width = 2 * _MARGIN + columns * (SIDE + _GAP) - _GAP
    height = 2 * _MARGIN - _GAP - _APART + sum(_height(part, columns) for part in parts)
    sheet = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(sheet), _MARGIN
    for part in parts:
        draw.text((_MARGIN, top), fitted(part.title, _TITLE, width - 2 * _MARGIN, bold=True), INK, _font(_TITLE, True))
        for number, (image, caption) in enumerate(zip(part.images.numpy(), part.captions, strict=True)):
            row, column = divmod(number, columns)
            x, y = _MARGIN + column * (SIDE + _GAP), top + _HEADING + row * _row_height(part)
            picture = to_cell(image)
            draw.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=GRID)  # around it
            sheet.paste(picture, (x, y))
            below = y + picture.height + _ABOVE
            for k, line in enumerate(caption.said):
                _write(draw, x, below + k * _LINE, line, INK)
            for k, line in enumerate(caption.about, start=part.said):
                _write(draw, x, below + k * _LINE, line, SOFT)
        top += _height(part, columns)
    return sheet


def to_cell(image: np.ndarray) -> Image.Image:
    """An image uint8 [C, H, W] in the size in which a sheet shows it, in mode L or RGB. Channels that are neither grey
    nor RGB are shown as grey images side by side."""
    channels, height, width = image.shape
    if channels == 3:
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    else:
        across = math.ceil(math.sqrt(channels))
        tiles = np.zeros((-(-channels // across) * across, height, width), np.uint8)
        tiles[:channels] = image
        grid = tiles.reshape(-1, across, height, width).transpose(0, 2, 1, 3)
        picture = Image.fromarray(np.ascontiguousarray(grid.reshape(-1, across * width)))
    size = cell_size(picture.width, picture.height)
    smoothing = Image.Resampling.NEAREST if size[0] >= picture.width else Image.Resampling.LANCZOS
    return picture.resize(size, smoothing)


def cell_size(width: int, height: int) -> tuple[int, int]:
    """Width and height in pixels in which a sheet shows an image of `width` x `height`."""
    longer = max(width, height)
    if longer <= SIDE:
        return width * (SIDE // longer), height * (SIDE // longer)
    return max(1, round(width * SIDE / longer)), max(1, round(height * SIDE / longer))


def fitted(text: str, size: int, width: float, bold: bool = False) -> str:
    """A text that others wrote as one line that is not wider than `width` pixels; "" where not even "…" fits.

    Args:
        size: of the font, in pixels.
    """
    font, line = _font(size, bold), printable(" ".join(shown(text).split()))
    if font.getlength(line) <= width:
        return line
    most = bisect_right(range(len(line)), width, key=lambda count: font.getlength(line[:count] + "…")) - 1
    return "" if most < 0 else line[:most].rstrip() + "…"


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, line: Line, colour: str) -> None:
    """Write a line of a caption of the cell that begins at x."""
    right = fitted(line[1], _TEXT, SIDE)
    taken = _font(_TEXT, False).getlength(right)
    draw.text((x + SIDE - taken, y), right, colour, _font(_TEXT, False))
    draw.text((x, y), fitted(line[0], _TEXT, SIDE - (taken + _BETWEEN if right else 0)), colour, _font(_TEXT, False))


def _height(part: Part, columns: int) -> int:
    return _HEADING + -(-len(part.images) // columns) * _row_height(part) + _APART


def _row_height(part: Part) -> int:
    return to_cell(part.images[0].numpy()).height + _ABOVE + _LINE * part.lines + _GAP


@functools.cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Pillow's own font lacks λ."""
    path = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
