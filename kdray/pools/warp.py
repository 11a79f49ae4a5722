"""Sampling images by affine maps: bilinear, and with the same bits on every machine.

A map says for each pixel of the result where in the image its value is taken from. Positions are computed in whole
numbers, and rounded to 1/256 of a pixel. So the two weights of a bilinear value have eight bits each and the value has
24, which float32 holds exactly: the sums of torch's `grid_sample` are exact in any order, with fused multiplications
and without, on a CPU and on a GPU.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

SCALE_BITS = 14
"""Fractional bits of a map's numbers. Coordinates of images up to 16,384 pixels a side fit int32."""
ONE = 1 << SCALE_BITS
_STEP_BITS = 8  # fractional bits of a source pixel's position
# Pixels of float32 images sampled at a time: more do not fit into the caches of a CPU, and fewer do not fill a GPU.
_CPU_PIXELS, _GPU_PIXELS = 1 << 17, 1 << 24
_WORK_BITS, _PI = 60, 0x3243F6A8885A308D  # of `rotation`; π with 60 fractional bits


def warp(images: Tensor, maps: Tensor) -> Tensor:
    """Sample uint8 images [B, C, H, W] by maps int64 [B, 6], each to uint8 [C, H, W].

    Positions (X, Y) are measured from the centre of the image in half pixels: X = 2 x - (W - 1), Y = 2 y - (H - 1). A
    map (xx, xy, tx, yx, yy, ty) takes the value at (X, Y) from (xx X + xy Y + tx, yx X + yy Y + ty) / 2^14. That
    position is rounded half up to 1/256 of a pixel, and moved to the edge if it lies outside the image. Values are
    bilinear, and rounded half up.
    """
    count, channels, height, width = images.shape
    rows, columns = _power_of_two(height), _power_of_two(width)
    most = _CPU_PIXELS if images.device.type == "cpu" else _GPU_PIXELS
    step = max(1, most // (channels * rows * columns))
    warped = torch.empty_like(images)
    for begin in range(0, count, step):
        part = slice(begin, begin + step)
        # On a canvas whose sides are powers of two, grid_sample's coordinates from -1 to 1 are exact.
        canvas = torch.zeros(len(images[part]), channels, rows, columns, dtype=torch.float32, device=images.device)
        canvas[:, :, :height, :width] = images[part]
        grid = _grid(maps[part].to(torch.int32), height, width)
        found = torch.nn.functional.grid_sample(canvas, grid, align_corners=False)
        warped[part] = found.add_(0.5).to(torch.uint8)
    return warped


def _grid(maps: Tensor, height: int, width: int) -> Tensor:
    """Coordinates float32 [B, H, W, 2] for `grid_sample`, of maps int32 [B, 6]."""
    x = 2 * torch.arange(width, dtype=torch.int32, device=maps.device) - (width - 1)
    y = 2 * torch.arange(height, dtype=torch.int32, device=maps.device) - (height - 1)
    planes = torch.empty(len(maps), 2, height, width, dtype=torch.float32, device=maps.device)
    shift = SCALE_BITS + 1 - _STEP_BITS  # from half pixels in fixed point to 1/256 pixels
    for axis, side in ((0, width), (1, height)):
        along_x, along_y, offset = maps[:, 3 * axis : 3 * axis + 3].unsqueeze(2).unbind(1)  # [B, 1] each
        offset = offset + ((side - 1) << SCALE_BITS) + (1 << (shift - 1))  # from the first pixel's centre; rounded
        position = (along_x * x + offset).unsqueeze(1) + (along_y * y).unsqueeze(2)  # [B, H, W]
        position = position.bitwise_right_shift_(shift).clamp_(0, (side - 1) << _STEP_BITS)
        # grid_sample takes position p of n pixels as (2 p + 1) / n - 1.
        size = _power_of_two(side) << _STEP_BITS
        planes[:, axis] = position
        planes[:, axis].mul_(2.0 / size).add_((1 << _STEP_BITS) / size - 1.0)
    return planes.permute(0, 2, 3, 1)


def _power_of_two(side: int) -> int:
    return 1 << (side - 1).bit_length()


def rotation(degrees: float) -> tuple[int, int]:
    """(cos, sin) of an angle of at most a full turn, with 14 fractional bits, rounded half up.

    The Taylor series is summed in whole numbers: C libraries differ in the last bit of cos and sin.
    """
    angle = int(abs(Fraction(degrees)) * _PI / 180)
    sums, term, number = [0, 0, 0, 0], 1 << _WORK_BITS, 0
    while term:
        sums[number % 4] += term
        number += 1
        term = (term * angle >> _WORK_BITS) // number
    cos, sin = sums[0] - sums[2], sums[1] - sums[3]
    cut = _WORK_BITS - SCALE_BITS
    half = 1 << (cut - 1)
    return (cos + half) >> cut, ((sin if degrees >= 0 else -sin) + half) >> cut
