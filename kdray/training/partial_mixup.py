"""Partial mixup: a share of the images of a batch is mixed with others of the batch (MIX-KD, section 4).

Where several processes share a batch, each draws the random numbers of all its images; see `kdray.training.augment`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Mixing(NamedTuple):
    """Which of N images are mixed, and how.

    Attributes:
        mixed: bool [N].
        partner: int64 [N], the other image of each, never itself; it is drawn for images that stay, too.
        weight: float32 [N], λ: the part of the image in its mix. That of the partner is 1 - λ.
    """

    mixed: Tensor
    partner: Tensor
    weight: Tensor


def draw_mixing(count: int, share: float, alpha: float, generator: torch.Generator) -> Mixing:
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


def symmetric_beta(alpha: float, first: Tensor, second: Tensor) -> Tensor:
    """Beta(alpha, alpha) from two independent uniform numbers each, float64 [N] in [0, 1), by Bailey's polar method.

    With U and V uniform, t = sqrt(U^(-1 / a) - 1) cos(2 pi V) is Student's t with 2 a degrees of freedom over sqrt(2 a)
    (Bailey, 1994), and (1 + t / sqrt(1 + t^2)) / 2 is Beta(a, a). torch has no Beta that takes a generator.
    """
    t = ((1.0 - first).pow(-1.0 / alpha) - 1.0).sqrt() * (2.0 * math.pi * second).cos()
    return (1.0 + t.atan().sin()) / 2.0  # sin(atan(t)) = t / sqrt(1 + t^2), for infinite t as well


def blend(images: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    """λ images + (1 - λ) others, rounded to whole pixel values.

    Args:
        images, others: uint8 [B, C, H, W].
        weight: λ, float32 [B].

    Returns:
        uint8 [B, C, H, W].
    """
    return torch.lerp(others.float(), images.float(), weight.view(-1, 1, 1, 1)).round().to(torch.uint8)


def partial_mixup(
    images: Tensor,
    targets: Tensor,
    share: float,
    alpha: float,
    generator: torch.Generator,
    *,
    labels: Tensor | None = None,
    first: int = 0,
    of: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix a random share of the images, and their targets, with random others: x = λ x_i + (1 - λ) x_j (MIX-KD, eq. 1).

    The partner of an image is always one of `images`. So where several processes share a batch, the same images are
    mixed with the same λ as in one process, but with partners among the rows at hand. A loop that has all images of the
    batch in every process can use `draw_mixing` and `blend` instead, and have the partners of one process.

    Args:
        images: uint8 [B, C, H, W].
        targets: float [B, K].
        share: of the whole batch, in [0, 1]; 0 returns all as it is and draws nothing.
        alpha: λ ~ Beta(alpha, alpha), above 0.
        generator: on the device of the images.
        labels: what the targets of mixed images are mixed from, float [B, K]; None: `targets`. MIX-KD has hard labels
            here: `kdray.training.losses.mixkd.hard_labels(targets)`.
        first, of: see `kdray.training.augment.random_shift`.

    Returns:
        Images uint8 [B, C, H, W], targets [B, K], and which rows were mixed, bool [B]. The other rows are unchanged.

    Raises:
        ValueError: `share` or `alpha` is out of range.
    """
    batch, whole = len(images), of or len(images)
    if share == 0:
        return images, targets, torch.zeros(batch, dtype=torch.bool, device=images.device)
    here = slice(first, first + batch)
    mixed, partner, weight = (part[here] for part in draw_mixing(whole, share, alpha, generator))
    if batch < 2:
        return images, targets, torch.zeros_like(mixed)
    rows = torch.arange(batch, device=images.device)
    # The partner lies 1 to whole - 1 images further on in the batch; here it must lie 1 to batch - 1 rows further on.
    ahead = (partner - rows - first) % whole - 1
    partner = (rows + 1 + ahead * (batch - 1) // (whole - 1)) % batch
    labels = targets if labels is None else labels
    mixes = torch.lerp(labels[partner], labels, weight[:, None].to(labels.dtype))
    return (
        torch.where(mixed.view(-1, 1, 1, 1), blend(images, images[partner], weight), images),
        torch.where(mixed[:, None], mixes, targets),
        mixed,
    )
