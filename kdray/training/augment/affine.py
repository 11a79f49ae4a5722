"""Small random affine maps."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kdray.training.augment.base import Augment, Draw, augments
from kdray.training.augment.crop import random_flip
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@augments.register
class Affine(Augment):
    """Small rotations, changes of scale, shears and shifts, all at once."""

    kind: Literal["affine"] = "affine"
    degrees: Annotated[float, Field(ge=0, le=180)] = 12.0
    """Largest rotation, each way."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.12
    """Largest change of size: 0.12 draws factors from 1 / 1.12 to 1.12."""
    shear: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Largest shear: columns shift by this many rows a row, each way."""
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.08
    """Largest shift in both directions, each way, as a share of the image's side."""
    flip: bool = False
    """Mirror left-right half of the time. Leave off where left and right mean something, as in digits."""

    @property
    def changes(self) -> bool:
        """See `Augment`."""
        return any((self.degrees, self.scale, self.shear, self.shift, self.flip))

    def __call__(self, images: "Tensor", draw: Draw) -> "Tensor":
        """See `Augment`."""
        images = random_affine(images, self, draw)
        return random_flip(images, draw) if self.flip else images


def random_affine(images: "Tensor", how: Affine, draw: Draw) -> "Tensor":
    """Turn, scale, shear and shift each image; pixels in between are bilinear, and edges continue outwards.

    Args:
        images: uint8 [B, C, H, W].
        how: the largest changes.
        draw: random numbers for these images.

    Returns:
        Pixels 0 to 255, float32 [B, C, H, W].
    """
    functional = torch.nn.functional
    radians, growth = math.radians(how.degrees), math.log1p(how.scale)
    angle, scale = draw.uniform(-radians, radians), draw.uniform(-growth, growth).exp()
    shear = draw.uniform(-how.shear, how.shear)
    shift = draw.uniform(-2 * how.shift, 2 * how.shift, (2,))  # a side is 2 long in the coordinates of grid_sample
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    aspect = images.shape[3] / images.shape[2]  # of the sides: without it a rotated image would be sheared as well
    rows = [
        torch.stack([cosine, (shear * cosine - sine) / aspect, shift[:, 0]], dim=1),
        torch.stack([sine * aspect, shear * sine + cosine, shift[:, 1]], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
