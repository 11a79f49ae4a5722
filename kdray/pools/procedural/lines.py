"""Lines: segments, arcs and smooth curves of random width, painted one over another.

A stroke is a row of points, evenly spaced, and covers what lies within half its width of one of them. Points lie up to
one and a half pixels apart, those of the few longest curves up to two. Everything is computed in whole numbers, with
positions in eighths of a pixel.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kdray.errors import ConfigError
from kdray.pools.base import pools
from kdray.pools.counter import CounterRandom, below
from kdray.pools.procedural.base import Painter, ProceduralSection
from kdray.pools.procedural.sines import sine_table
from kdray.pools.ranges import ASCENDING
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_UNIT = 8  # positions a pixel
MOST_SIDE = 2048  # squares of distances stay within int32
_TURN = 1024  # angles of a full turn
_ANGLE_BITS = 12  # fractional bits of a sine
_STEP_BITS = 10  # fractional bits of the position along a curve
_SPACING = 3 * _UNIT // 2  # most between two points of an arc
_FINER = 4  # steps along a curve for each of its points
_COVER_BITS = 12
_FULL_BITS = 7  # of how much of a pixel is covered: colours times that stay within int16
_FULL = 1 << _FULL_BITS
_FAR16 = (1 << 14) - 1  # sums of two stay below 2^15
_LARGE = 128 * 128  # pixels from which on small windows are faster, on a CPU
_WORDS = 10  # random numbers of a stroke besides its colours

Share = Annotated[float, Field(gt=0, le=1)]
Strokes = Annotated[int, Field(ge=1, le=100)]


@pools.register
class LinesSection(ProceduralSection):
    """The candidates are random segments, arcs and smooth curves of random width."""

    kind: Literal["lines"] = "lines"
    strokes: Annotated[tuple[Strokes, Strokes], ASCENDING] = (1, 4)
    """Least and most lines of a candidate."""
    width: Annotated[tuple[Share, Share], ASCENDING] = (0.06, 0.16)
    """Least and largest width of a line, as a share of the image's smaller side."""
    colours: Literal["any", "light-on-dark"] = "any"
    """any: the background and each line have a random colour. light-on-dark: the background is black, and no channel of
    a line is below 128."""

    def painter(self, images: Tensor, seed: int) -> Painter:
        """See `ProceduralSection`."""
        _, channels, height, width = images.shape
        if max(height, width) > MOST_SIDE:
            raise ConfigError(
                f"pool.kind: lines are drawn up to {MOST_SIDE:,} pixels a side, and the images have {height} x "
                f"{width}; set images.size"
            )
        return LinesPainter((channels, height, width), self.strokes, self.width, self.colours == "any", seed)


class LinesPainter:
    """Draws lines.

    Args:
        shape: (C, H, W).
        strokes: least and most lines of an image.
        width: least and largest width of a line, as a share of the smaller side.
        any_colour: whether all colours are random; if not, lines are light and the background is black.
        seed: the run's seed.
    """

    batch = 256

    def __init__(
        self,
        shape: tuple[int, int, int],
        strokes: tuple[int, int],
        width: tuple[float, float],
        any_colour: bool,
        seed: int,
    ) -> None:
        self._shape, self._strokes, self._any_colour = shape, strokes, any_colour
        side = min(shape[1:]) * _UNIT
        self._radii = (max(1, round(width[0] * side / 2)), max(1, round(width[1] * side / 2)))
        self._points = max(16, 3 * max(shape[1:]) // 2)
        self._canvas = CounterRandom(seed, "lines", 1 + shape[0])
        self._random = CounterRandom(seed, "strokes", strokes[1] * (_WORDS + shape[0]))
        self._sine = torch.tensor(sine_table(_TURN, _ANGLE_BITS))

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Painter`."""
        channels, height, width = self._shape
        canvas = self._canvas(ids)
        count = self._strokes[0] + below(canvas[0], self._strokes[1] - self._strokes[0] + 1)
        paper = below(canvas[1:], 256 if self._any_colour else 1).to(torch.int16)
        image = paper.view(channels, 1, 1, -1).expand(-1, height, width, -1).contiguous()
        for number, words in enumerate(self._random(ids).chunk(self._strokes[1])):
            cover = self._cover(words[:_WORDS]) * (number < count)
            least = 0 if self._any_colour else 128
            colour = (least + below(words[_WORDS:], 256 - least)).to(torch.int16).view(channels, 1, 1, -1)
            image.mul_(_FULL - cover).add_(colour * cover).add_(_FULL // 2).bitwise_right_shift_(_FULL_BITS)
        return image.to(torch.uint8).permute(3, 0, 1, 2)

    def _cover(self, words: Tensor) -> Tensor:
        """How much of each pixel a stroke covers, int16 [H, W, B] of 0...128, of random numbers int64 [10, B]."""
        x, y = self._path(words[:9])
        least, most = self._radii
        radius = least + below(words[9], most - least + 1)
        outer, inner = (radius + _UNIT // 2).square(), (radius - _UNIT // 2).clamp_min(0).square()
        slope = (_FULL << _COVER_BITS) // (outer - inner)
        far = (most + _UNIT // 2) ** 2
        near = _squared_distance(x.to(torch.int32), y.to(torch.int32), self._shape[1], self._shape[2], far)
        depth = (outer.to(torch.int32) - near).clamp_(min=0).mul_(slope.to(torch.int32))
        return depth.bitwise_right_shift_(_COVER_BITS).clamp_(max=_FULL).to(torch.int16)

    def _path(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Positions x and y of a stroke's points, int64 [B, P] each. A third are straight, a third arcs, the rest
        curves."""
        kind = below(words[0], 3).unsqueeze(1)
        xs, ys = (below(words[first:9:2], self._shape[axis] * _UNIT) for first, axis in ((1, 2), (2, 1)))  # [4, B]
        steps = torch.arange(self._points, device=words.device)
        along = (steps << _STEP_BITS) // (self._points - 1)
        straight = [
            ends[0].unsqueeze(1) + (((ends[1] - ends[0]).unsqueeze(1) * along) >> _STEP_BITS) for ends in (xs, ys)
        ]
        fine = (torch.arange(_FINER * self._points, device=words.device) << _STEP_BITS) // (_FINER * self._points - 1)
        curved = _evenly_spaced(_curve(xs, fine), _curve(ys, fine), self._points)
        arc = self._arc(words[1:6], steps)
        x, y = (
            torch.where(kind == 0, one, torch.where(kind == 1, two, three))
            for one, two, three in zip(straight, arc, curved, strict=True)
        )
        return x, y

    def _arc(self, words: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Points on circles, int64 [B, P] each. The middle of an arc lies within the image."""
        side = min(self._shape[1:]) * _UNIT
        middle_x, middle_y = below(words[0], self._shape[2] * _UNIT), below(words[1], self._shape[1] * _UNIT)
        radius = side // 10 + below(words[2], side // 2 - side // 10)
        middle = below(words[3], _TURN)
        longest = (_SPACING * self._points * _TURN) // (7 * radius.clamp_min(1))  # 7: more than 2 π
        sweep = _TURN // 8 + below(words[4], longest.clamp(max=_TURN) - _TURN // 8 + 1)
        begin = middle - sweep // 2
        angle = (begin.unsqueeze(1) + sweep.unsqueeze(1) * steps // (self._points - 1)) % _TURN
        sine, quarter = self._sine.to(words.device), _TURN // 4
        along_x = sine[angle + quarter] - sine[middle + quarter].unsqueeze(1)
        along_y = sine[angle] - sine[middle].unsqueeze(1)
        x = middle_x.unsqueeze(1) + ((radius.unsqueeze(1) * along_x) >> _ANGLE_BITS)
        y = middle_y.unsqueeze(1) + ((radius.unsqueeze(1) * along_y) >> _ANGLE_BITS)
        return x, y


def _curve(ends: Tensor, steps: Tensor) -> Tensor:
    """A cubic Bézier curve by De Casteljau's construction: points int64 [B, P] of ends int64 [4, B], at steps int64 [P]
    of 0...2^10."""
    points: list[Tensor] = list(ends.unsqueeze(2).expand(-1, -1, len(steps)))
    while len(points) > 1:
        points = [one + (((other - one) * steps) >> _STEP_BITS) for one, other in pairwise(points)]
    return points[0]


def _evenly_spaced(x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of points along curves, int64 [B, P] each, those `count` that lie at even distances, the ends among them."""
    across, down = x.diff(dim=1).abs(), y.diff(dim=1).abs()
    steps = torch.maximum(across, down) + torch.minimum(across, down) // 2  # lengths, nearly
    walked = torch.nn.functional.pad(steps.cumsum(dim=1), (1, 0))
    wanted = walked[:, -1:] * torch.arange(count, device=x.device) // (count - 1)
    chosen = torch.searchsorted(walked, wanted)
    return x.gather(1, chosen), y.gather(1, chosen)


def _squared_distance(x: Tensor, y: Tensor, height: int, width: int, far: int) -> Tensor:
    """Square of the distance of each pixel's centre from the nearest point, int32 [H, W, B], of points int32 [B, P].
    What is `far` or more may be any such number."""
    pixels, reach = height * width, math.isqrt(far) // _UNIT
    windows = x.device.type == "cpu" and pixels >= _LARGE and 36 * reach**2 <= pixels
    return (_in_windows if windows else _everywhere)(x, y, height, width, far).to(torch.int32)


def _everywhere(x: Tensor, y: Tensor, height: int, width: int, far: int) -> Tensor:
    """See `_squared_distance`: looks at all pixels for every point; whole rows at once, which a CPU adds fast."""
    columns, rows = (
        _squares(points.T.contiguous().unsqueeze(1) - _centres(size, points), far)
        for points, size in ((x, width), (y, height))
    )  # [P, pixels, B]
    nearest = columns[0] + rows[0].unsqueeze(1)  # [H, W, B]
    found = torch.empty_like(nearest)
    for column, row in zip(columns[1:], rows[1:], strict=True):
        torch.add(column, row.unsqueeze(1), out=found)
        torch.minimum(nearest, found, out=nearest)
    return nearest


def _in_windows(x: Tensor, y: Tensor, height: int, width: int, far: int) -> Tensor:
    """See `_squared_distance`: looks at the square of pixels around every point that may be nearer than `far`."""
    reach = math.isqrt(far) // _UNIT + 1
    side = 2 * reach + 1
    # A window of a point far outside lies in the margin, which is cut off at the end.
    left, top = ((at // _UNIT - reach).clamp(-side, size) for at, size in ((x, width), (y, height)))
    within = torch.arange(side, dtype=torch.int32)
    columns, rows = (
        _squares((_UNIT * (start.unsqueeze(2) + within) + _UNIT // 2) - points.unsqueeze(2), far)
        for start, points in ((left, x), (top, y))
    )  # [B, P, side]
    row = width + 2 * side
    first = (top + side).long() * row + (left + side)
    window = (within.long().unsqueeze(1) * row + within).flatten()
    nearest = columns.new_full((len(x), (height + 2 * side) * row), far)
    for point in range(x.shape[1]):
        pixels = first[:, point : point + 1] + window
        found = (rows[:, point].unsqueeze(2) + columns[:, point].unsqueeze(1)).flatten(1)
        nearest.scatter_(1, pixels, torch.minimum(found, nearest.gather(1, pixels)))
    return nearest.view(len(x), -1, row)[:, side:-side, side:-side].permute(1, 2, 0)


def _squares(apart: Tensor, far: int) -> Tensor:
    """Squares of differences, `far` at most; in 16 bits, where they fit: a CPU adds these three times as fast."""
    return (apart * apart).clamp_(max=far).to(torch.int16 if far <= _FAR16 else torch.int32)


def _centres(size: int, points: Tensor) -> Tensor:
    """Of a row or a column of pixels, int32 [pixels, 1]."""
    return (_UNIT * torch.arange(size, dtype=torch.int32, device=points.device) + _UNIT // 2).unsqueeze(1)
