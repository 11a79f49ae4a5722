"""Augmentation of a batch of uint8 images, on their own device.

Where several processes share a batch, each draws the random numbers of all its images and changes its own.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def random_shift(
    images: Tensor, shift: int, generator: torch.Generator, *, first: int = 0, of: int | None = None
) -> Tensor:
    """Move each image by up to `shift` pixels, independently in both directions; edges are mirrored.

    Args:
        images: uint8 [B, C, H, W].
        shift: largest shift in pixels, below H and W; 0 returns the images as they are.
        generator: on the device of the images.
        first, of: the images are those from `first` on of a batch of `of`; None means that they are the whole batch.

    Returns:
        uint8 [B, C, H, W].
    """
    if shift == 0:
        return images
    batch, channels, height, width = images.shape
    # Reflection padding exists for floating types only, and pixel values are exact in float32.
    padded = F.pad(images.float(), (shift,) * 4, mode="reflect").to(torch.uint8)
    drawn = torch.randint(0, 2 * shift + 1, (2, of or batch), generator=generator, device=images.device)
    dy, dx = drawn[:, first : first + batch]
    rows = dy.view(-1, 1) + torch.arange(height, device=images.device)  # [B, H]
    columns = dx.view(-1, 1) + torch.arange(width, device=images.device)  # [B, W]
    which = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[which, channel, rows.view(batch, 1, -1, 1), columns.view(batch, 1, 1, -1)]


def random_flip(images: Tensor, generator: torch.Generator, *, first: int = 0, of: int | None = None) -> Tensor:
    """Mirror each image left-right with probability one half: uint8 [B, C, H, W] in and out.

    Args:
        images: uint8 [B, C, H, W].
        generator: on the device of the images.
        first, of: see `random_shift`.
    """
    drawn = torch.rand(of or len(images), generator=generator, device=images.device)
    mirrored = drawn[first : first + len(images)] < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
