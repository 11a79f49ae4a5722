"""A pool of real images. Each image is a candidate, and a group of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from kdray.errors import ImageSetError
from kdray.pools.base import PoolSection, pools
from kdray.pools.pairs import check_range
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@pools.register
class ImagesSection(PoolSection):
    """The candidates are the images themselves (RAD's setting, Algorithm 1)."""

    kind: Literal["images"] = "images"

    def build(self, images: Tensor, seed: int) -> ImagePool:
        """See `PoolSection`."""
        return ImagePool(images)


class ImagePool:
    """The user's unlabelled images as candidates: id k is image k (RAD's setting, Algorithm 1).

    Args:
        images: uint8 [N, C, H, W], N >= 1; the pool lives on their device.

    Raises:
        ImageSetError: there is no image, or the images are not uint8 [N, C, H, W].
    """

    linear = False
    real = True
    source = "image"
    group_size = 1

    def __init__(self, images: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
            raise ImageSetError(
                f"a pool of images needs uint8 images [N, C, H, W], got {images.dtype} {list(images.shape)}"
            )
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_groups(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every candidate."""
        return (self.images.shape[1], self.images.shape[2], self.images.shape[3])

    def to(self, device: str | torch.device) -> ImagePool:
        """The same pool with its images on `device`; this object if they are there already."""
        return self if self.images.device == torch.device(device) else ImagePool(self.images.to(device))

    def render(self, ids: Tensor) -> Tensor:
        """Map candidate ids int64 [B] to images uint8 [B, C, H, W].

        Raises:
            IndexError: an id is negative or not below len(pool).
        """
        check_range(ids, len(self), "ids")
        return self.images[ids.to(self.images.device)]

    def batches(self, groups: Tensor, step: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """The images with the numbers `groups` int64 [G], `step` at a time: uint8 [B, C, H, W]."""
        yield from (self.render(part) for part in groups.split(step))

    def describe(self, ids: Tensor) -> dict[str, list[Any]]:
        """Columns for the record of chosen candidates: the number of each `image`."""
        return {"image": ids.tolist()}

    def middle(self) -> int:
        """Index of the only candidate of a group."""
        return 0
