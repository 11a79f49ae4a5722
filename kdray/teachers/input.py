"""The teacher's own input: size and colour of the images it is asked about, apart from the student's.

An image is converted before it is hashed, so the ledger keeps answers by the pixels that the teacher saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from kdray.errors import TeacherError
from kdray.ledger.records import hash_images
from kdray.sections.base import Section, Size
from kdray.utils.lazy import torch
from kdray.utils.stored import gathered

if TYPE_CHECKING:
    from torch import Tensor

_PART_BYTES = 32 << 20  # of converted images that are held to be hashed
_FILTERS = {"area": "BOX", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS", "nearest": "NEAREST"}


class TeacherInput(Section):
    """What the teacher sees of an image. The student, the run directory and the exported data set keep the image as it
    is; the teacher is asked about the converted one, and the ledger keeps its answer under that one's pixels."""

    size: Size | None = None
    """Resize to [height, width], or to one number squared; null leaves images as they are."""
    resize: Literal["bilinear", "nearest", "bicubic", "area", "lanczos"] = "bilinear"
    """How `size` resizes, as Pillow does: all but nearest average over the pixels that a smaller image leaves out. area
    is Pillow's BOX."""
    colour: Literal["rgb", "bgr", "grey"] | None = None
    """Convert to this colour, and send its channels in this order; null leaves images as they are. Grey has one
    channel, Pillow's L (ITU-R 601); a grey image in colour has three equal ones."""

    def shape(self, image_shape: Sequence[int]) -> tuple[int, int, int]:
        """(C, H, W) that the teacher sees of images (C, H, W)."""
        channels, height, width = image_shape
        height, width = self.size or (height, width)
        return {None: channels, "grey": 1}.get(self.colour, 3), height, width

    def changes(self, image_shape: Sequence[int]) -> bool:
        """Whether the teacher sees other pixels than those of an image (C, H, W)."""
        reverses = self.colour == "bgr" and image_shape[0] == 3
        return reverses or self.shape(image_shape) != tuple(image_shape)

    def view(self, images: Tensor) -> Tensor:
        """What the teacher sees of uint8 images [B, C, H, W]: uint8 [B, C', H', W'] with `shape`; the images
        themselves where nothing changes.

        Each image is converted alone, by Pillow's whole-number arithmetic: the result depends on its pixels only.
        """
        if not self.changes(images.shape[1:]):
            return images
        shape = self.shape(images.shape[1:])
        if len(images) == 0:
            return torch.empty(0, *shape, dtype=torch.uint8)
        seen = (np.broadcast_to(self._converted(image), (1, *shape)) for image in images.numpy())
        return gathered(seen, len(images))

    def hashes(self, images: Tensor) -> list[bytes]:
        """The ledger's key of each image, uint8 [N, C, H, W]: the hash of what the teacher sees of it. Converted images
        are held a part at a time."""
        if not self.changes(images.shape[1:]):
            return hash_images(images)
        part = max(1, _PART_BYTES // int(np.prod(self.shape(images.shape[1:]))))
        return [key for some in images.split(part) for key in hash_images(self.view(some))]

    def _converted(self, image: np.ndarray) -> np.ndarray:
        """One image, uint8 [C, H, W], converted; one channel stands for three equal ones."""
        from PIL import Image

        picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        if self.colour == "grey":
            picture = picture.convert("L")
        if self.size is not None:
            height, width = self.size
            picture = picture.resize((width, height), Image.Resampling[_FILTERS[self.resize]])
        array = np.asarray(picture)
        if array.ndim == 2:
            return array[None]
        planes = array.transpose(2, 0, 1)
        return planes[::-1] if self.colour == "bgr" else planes


class PixelInput(TeacherInput):
    """What the teacher sees of an image, and in which numbers."""

    pixels: Literal["uint8", "unit"] = "uint8"
    """Pixels as whole numbers 0..255, or divided by 255 (then normalised, if `mean` and `std` are set)."""
    mean: list[float] | None = None
    """What the model expects of its input: (pixel / 255 - mean) / std. One number in [0, 1] for each channel, in the
    order in which the channels are sent; null: it normalises by itself."""
    std: list[Annotated[float, Field(gt=0)]] | None = None
    """Standard deviations, one for each channel, together with `mean`."""

    @model_validator(mode="after")
    def _mean_and_std(self) -> PixelInput:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both, or none")
        if self.mean is not None and self.pixels != "unit":
            raise ValueError("mean and std need pixels: unit")
        return self

    @property
    def normalise(self) -> dict[str, Any] | None:
        """`mean` and `std` as the identity of a teacher holds them, or None."""
        return None if self.mean is None else {"mean": self.mean, "std": self.std}

    def check_channels(self, channels: int) -> None:
        """Refuse images with another number of channels than `mean` and `std` have.

        Raises:
            TeacherError: one of them has not one number for each of `channels`.
        """
        mean, std = self.mean or [], self.std or []
        if self.mean is not None and (len(mean) != channels or len(std) != channels):
            raise TeacherError(
                f"teacher.input has {len(mean)} means and {len(std)} standard deviations, "
                f"but the teacher's images have {channels} channels; give one number a channel, or set "
                "teacher.input.colour"
            )
