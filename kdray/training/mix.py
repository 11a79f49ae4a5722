"""Mixes within a batch: a share of its images is mixed with others of it (mixup, CutMix; MIX-KD's partial mixup).

A mix that nobody asked about has the mix of two bought answers as its target. Where several processes share a batch,
each draws the random numbers of all its images.
"""

import math
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field

from kdray.sections.base import Section
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Mix(Section):
    """A share of the images of each batch is mixed with others of it, and so are their answers. Nothing is asked."""

    kind: Literal["mixup", "cutmix"] = "mixup"
    """mixup: λ x_i + (1 - λ) x_j. cutmix: a rectangle of one image in the other."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the batch that is mixed (MIX-KD's partial mixup)."""
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """λ ~ Beta(alpha, alpha); 1 draws all λ alike."""


class Mixing(NamedTuple):
    """Which of N images are mixed, and how.

    Attributes:
        mixed: bool [N].
        partner: int64 [N], the other image of each, never itself; it is drawn for images that stay, too.
        weight: float32 [N], λ: the part of the image in its mix. That of the partner is 1 - λ.
    """

    mixed: "Tensor"
    partner: "Tensor"
    weight: "Tensor"


def draw_mixing(count: int, share: float, alpha: float, generator: "torch.Generator") -> Mixing:
    """Draw a mixing of `count` images: how many random numbers are drawn depends on `count` alone.

    share * count images are mixed, in random places. Where that is no whole number, it is rounded up as often as its
    fraction says, so the share is right on average. A single image has no partner and stays.

    Args:
        count: N, images in the batch.
        share: of the images to be mixed, in [0, 1].
        alpha: λ ~ Beta(alpha, alpha), above 0.
        generator: on the device on which the images are.

    Raises:
        ValueError: `share` or `alpha` is out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share:g}; it must lie in [0, 1]")
    if not alpha > 0 or math.isinf(alpha):
        raise ValueError(f"alpha is {alpha:g}; it must be a number above 0")
    drawn = torch.rand(4, count, generator=generator, device=generator.device, dtype=torch.float64)
    carry = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64)
    place = drawn[0].argsort().argsort()  # a random order of the images
    mixed = place < (share * count + carry).floor() if count > 1 else torch.zeros_like(place, dtype=torch.bool)
    others = max(count - 1, 1)
    partner = (torch.arange(count, device=generator.device) + 1 + (drawn[1] * others).long()) % count
    return Mixing(mixed, partner, symmetric_beta(alpha, drawn[2], drawn[3]).float())


def symmetric_beta(alpha: float, first: "Tensor", second: "Tensor") -> "Tensor":
    """Beta(alpha, alpha) from two independent uniform numbers each, float64 [N] in [0, 1), by Bailey's polar method.

    With U and V uniform, t = sqrt(U^(-1 / a) - 1) cos(2 pi V) is Student's t with 2 a degrees of freedom over sqrt(2 a)
    (Bailey, 1994), and (1 + t / sqrt(1 + t^2)) / 2 is Beta(a, a). torch has no Beta that takes a generator.
    """
    t = ((1.0 - first).pow(-1.0 / alpha) - 1.0).sqrt() * (2.0 * math.pi * second).cos()
    return (1.0 + t.atan().sin()) / 2.0  # sin(atan(t)) = t / sqrt(1 + t^2), for infinite t as well


def blend(images: "Tensor", others: "Tensor", weight: "Tensor") -> "Tensor":
    """λ images + (1 - λ) others (MIX-KD, eq. 1). uint8 images are rounded to whole pixel values.

    Args:
        images, others: uint8 or float32 [B, C, H, W].
        weight: λ, float32 [B].

    Returns:
        [B, C, H, W], as the images.
    """
    mixed = torch.lerp(others.float(), images.float(), weight.view(-1, 1, 1, 1))
    return mixed.round().to(torch.uint8) if images.dtype == torch.uint8 else mixed


def paste(images: "Tensor", others: "Tensor", weight: "Tensor", places: "Tensor") -> "tuple[Tensor, Tensor]":
    """A rectangle of `others` in `images` (CutMix; Yun et al., 2019, section 3.1).

    It has the image's aspect ratio and the share 1 - λ of its area, but for what lies outside.

    Args:
        images, others: of one type, [B, C, H, W].
        weight: λ, float32 [B].
        places: of the rectangles' centres, float32 [B, 2] in [0, 1): down and across.

    Returns:
        [B, C, H, W], and the share of each image that is left, float32 [B].
    """
    sides, half = images.shape[2:], (1.0 - weight).clamp_min(0).sqrt() / 2
    inside = []
    for axis, side in enumerate(sides):
        centre, reach = (places[:, axis] * side).floor(), (half * side).round()
        pixels = torch.arange(side, device=images.device).view(1, -1)
        inside.append((pixels >= (centre - reach).view(-1, 1)) & (pixels < (centre + reach).view(-1, 1)))
    box = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)  # [B, H, W]
    return torch.where(box.unsqueeze(1), others, images), 1.0 - box.flatten(1).float().mean(dim=1)


def partial_mixup(
    images: "Tensor", targets: "Tensor", share: float, alpha: float, generator: "torch.Generator"
) -> "tuple[Tensor, Tensor, Tensor]":
    """Mix a random share of the images, and their targets, with random others (MIX-KD, section 4).

    Args:
        images: uint8 [B, C, H, W].
        targets: float [B, K].
        share: of the batch, in [0, 1].
        alpha: λ ~ Beta(alpha, alpha), above 0.
        generator: on the device of the images.

    Returns:
        Images uint8 [B, C, H, W], targets [B, K], and which rows were mixed, bool [B]. The other rows are unchanged.

    Raises:
        ValueError: `share` or `alpha` is out of range.
    """
    drawn = draw_mixing(len(images), share, alpha, generator)
    mixes = torch.lerp(targets[drawn.partner], targets, drawn.weight[:, None].to(targets.dtype))
    return (
        torch.where(drawn.mixed.view(-1, 1, 1, 1), blend(images, images[drawn.partner], drawn.weight), images),
        torch.where(drawn.mixed[:, None], mixes, targets),
        drawn.mixed,
    )
