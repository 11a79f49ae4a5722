"""RandAugment on whole batches, with torchvision's operations: every image gets operations of its own.

torchvision's `RandAugment` draws once for all images of a batch. Here the images that drew the same operation with the
same sign are changed together, so a batch takes a few calls and not one an image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from kdray.training.augment.base import Draw

BINS = 31
"""Magnitudes run from 0 to 30, as in torchvision."""


@dataclass(frozen=True)
class Operation:
    """An operation of RandAugment.

    Attributes:
        change: changes uint8 [B, C, H, W], given the strength.
        signed: the strength's sign is drawn.
        strength: of the magnitude as a share of the largest one, and the width and height in pixels.
        coloured: it changes colours alone, and means nothing to grey images.
    """

    change: Callable[[Tensor, float], Tensor]
    signed: bool = False
    strength: Callable[[float, int, int], float] = lambda share, width, height: 0.0
    coloured: bool = False


def _moved(images: Tensor, strength: float, *, across: bool) -> Tensor:
    pixels = int(strength)
    offset = [pixels, 0] if across else [0, pixels]
    moved: Tensor = F.affine(images, angle=0.0, translate=offset, scale=1.0, shear=[0.0, 0.0])
    return moved


def _sheared(images: Tensor, strength: float, *, across: bool) -> Tensor:
    degrees = math.degrees(math.atan(strength))
    shear = [degrees, 0.0] if across else [0.0, degrees]
    sheared: Tensor = F.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0.0, 0.0])
    return sheared


def _by(change: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """A change by a factor of 1 and the strength."""
    return lambda images, strength: change(images, 1.0 + strength)


def _up_to(largest: float) -> Callable[[float, int, int], float]:
    return lambda share, width, height: largest * share


_FARTHEST = 150.0 / 331.0  # largest shift as a share of the side (Cubuk et al., 2020)

OPERATIONS = {
    "Identity": Operation(lambda images, strength: images),
    "ShearX": Operation(partial(_sheared, across=True), True, _up_to(0.3)),
    "ShearY": Operation(partial(_sheared, across=False), True, _up_to(0.3)),
    "TranslateX": Operation(partial(_moved, across=True), True, lambda share, width, height: _FARTHEST * width * share),
    "TranslateY": Operation(
        partial(_moved, across=False), True, lambda share, width, height: _FARTHEST * height * share
    ),
    "Rotate": Operation(lambda images, strength: F.rotate(images, angle=strength), True, _up_to(30.0)),
    "Brightness": Operation(_by(F.adjust_brightness), True, _up_to(0.9)),
    "Color": Operation(_by(F.adjust_saturation), True, _up_to(0.9), coloured=True),
    "Contrast": Operation(_by(F.adjust_contrast), True, _up_to(0.9)),
    "Sharpness": Operation(_by(F.adjust_sharpness), True, _up_to(0.9)),
    "Posterize": Operation(
        lambda images, strength: F.posterize(images, bits=int(strength)),
        strength=lambda share, width, height: 8 - round(4 * share),
    ),
    "Solarize": Operation(
        lambda images, strength: F.solarize(images, threshold=255.0 * strength),
        strength=lambda share, width, height: 1.0 - share,
    ),
    "AutoContrast": Operation(lambda images, strength: F.autocontrast(images)),
    "Equalize": Operation(lambda images, strength: F.equalize(images)),
}
"""The operations of RandAugment by torchvision's names."""


def rand_augment(images: Tensor, number: int, magnitude: int, draw: Draw, names: tuple[str, ...] = ()) -> Tensor:
    """`number` random operations of one magnitude on each image (RandAugment; Cubuk et al., 2020).

    Args:
        images: uint8 [B, C, H, W], C of 1 or 3.
        number: n, operations an image, one after another.
        magnitude: m, 0 to 30.
        draw: random numbers for these images.
        names: of the operations to draw from; () means all, of grey images all but those of colours.

    Returns:
        uint8 [B, C, H, W].
    """
    channels, height, width = images.shape[1:]
    chosen = [OPERATIONS[name] for name in names] or [
        operation for operation in OPERATIONS.values() if channels == 3 or not operation.coloured
    ]
    share = magnitude / (BINS - 1)
    for _ in range(number):
        turns = draw.integers(0, 2 * len(chosen)).to("cpu")  # operation and sign in one number
        changed = torch.empty_like(images)
        for turn in turns.unique().tolist():
            operation, negative = chosen[turn // 2], turn % 2 == 1
            strength = operation.strength(share, width, height)
            rows = (turns == turn).nonzero().flatten().to(images.device)
            changed[rows] = operation.change(images[rows], -strength if operation.signed and negative else strength)
        images = changed
    return images
