"""Elastic warps, inversion and erasing of whole batches, each image with random numbers of its own."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kdray.training.augment.base import Draw

_ALPHA, _SIGMA = 50.0, 5.0  # torchvision's defaults: strength of the displacement, width of its blur in pixels
_AREA, _RATIO, _TRIES = (0.02, 0.33), (0.3, 3.3), 10  # torchvision's defaults for `RandomErasing`


def random_elastic(images: Tensor, draw: Draw, alpha: float = _ALPHA, sigma: float = _SIGMA) -> Tensor:
    """Move pixels by smooth random displacements (Simard et al., 2003), as torchvision's `ElasticTransform` does.

    Args:
        images: uint8 [B, C, H, W].
        draw: random numbers for these images.
        alpha: of the displacement, uniform in (-alpha, alpha) half-pixels before it is blurred.
        sigma: of the Gaussian blur, in pixels. Its kernel is cut where the image ends.

    Returns:
        uint8 [B, C, H, W]; what comes from outside is 0.
    """
    height, width = images.shape[2:]
    noise = draw.uniform(-1.0, 1.0, (2, height, width))
    for axis, side in ((2, height), (3, width)):
        reach = min(int(4 * sigma), side - 1)
        offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
        weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
        shape = [1, 1, 1, 1]
        shape[axis] = len(weights)
        padding = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        padded = F.pad(noise, padding, mode="reflect").flatten(0, 1).unsqueeze(1)
        noise = F.conv2d(padded, (weights / weights.sum()).view(shape)).view_as(noise)
    sides = torch.tensor([width, height], device=images.device, dtype=torch.float32)
    moved = noise.permute(0, 2, 3, 1) * alpha / sides
    still = F.affine_grid(
        torch.eye(2, 3, device=images.device).unsqueeze(0), [1, 1, height, width], align_corners=False
    )
    warped = F.grid_sample(images.float(), still + moved, align_corners=False)
    return warped.round_().to(torch.uint8)


def random_invert(images: Tensor, draw: Draw, share: float = 0.5) -> Tensor:
    """Replace pixels p by 255 - p in a `share` of the images: uint8 [B, C, H, W] in and out."""
    return torch.where(draw.chance(share).view(-1, 1, 1, 1), 255 - images, images)


def random_erase(images: Tensor, draw: Draw, share: float = 0.5) -> Tensor:
    """Blacken a random rectangle in a `share` of the images, as torchvision's `RandomErasing` (Zhong et al., 2020).

    The rectangle has 2 to 33 % of the area and an aspect ratio of 0.3 to 3.3. One that does not fit is drawn again, ten
    times at most.

    Returns:
        uint8 [B, C, H, W], as the images.
    """
    height, width = images.shape[2:]
    area = draw.uniform(*_AREA, (_TRIES,)) * (height * width)
    ratio = draw.uniform(math.log(_RATIO[0]), math.log(_RATIO[1]), (_TRIES,)).exp()
    tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (tall < height) & (wide < width)  # [B, tries]
    first = fits.to(torch.int8).argmax(dim=1, keepdim=True)  # of several the first
    tall, wide = tall.gather(1, first), wide.gather(1, first)  # [B, 1]
    top, left = (
        (draw.uniform().view(-1, 1) * (side - size + 1)).floor() for side, size in ((height, tall), (width, wide))
    )
    y, x = (torch.arange(side, device=images.device).view(1, -1) for side in (height, width))
    rows, columns = (y >= top) & (y < top + tall), (x >= left) & (x < left + wide)
    erased = (fits.any(dim=1) & draw.chance(share)).view(-1, 1, 1) & rows.unsqueeze(2) & columns.unsqueeze(1)
    return images.masked_fill(erased.unsqueeze(1), 0)
