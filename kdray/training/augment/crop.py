"""Random crops of the padded image, and mirror images."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kdray.errors import ConfigError
from kdray.training.augment.base import Augment, Draw, augments
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@augments.register
class Crop(Augment):
    """Random shifts, which are crops of the padded image, and mirroring."""

    kind: Literal["crop"] = "crop"
    shift: Annotated[int, Field(ge=0)] = 0
    """Largest shift in pixels, each way, in both directions."""
    flip: bool = False
    """Mirror left-right half of the time. Leave off where left and right mean something, as in digits."""

    @property
    def changes(self) -> bool:
        """See `Augment`."""
        return self.shift > 0 or self.flip

    def __call__(self, images: "Tensor", draw: Draw) -> "Tensor":
        """See `Augment`."""
        images = random_shift(images, self.shift, draw)
        return random_flip(images, draw) if self.flip else images

    def check(self, image_shape: tuple[int, int, int], field: str = "augment") -> None:
        """See `Augment`."""
        check_shift(self.shift, image_shape, f"{field}.shift")


def check_shift(shift: int, image_shape: tuple[int, int, int], field: str) -> None:
    """Refuse a shift that leaves images (C, H, W).

    Raises:
        ConfigError: it does; the message calls it `field`.
    """
    _, height, width = image_shape
    if shift >= min(height, width):
        raise ConfigError(f"{field}: {shift} pixels do not fit images of {height}x{width}")


def random_shift(images: "Tensor", shift: int, draw: Draw) -> "Tensor":
    """Move each image by up to `shift` pixels, independently in both directions; edges are mirrored.

    Args:
        images: uint8 [B, C, H, W].
        shift: largest shift in pixels, below H and W; 0 returns the images as they are.
        draw: random numbers for these images.

    Returns:
        uint8 [B, C, H, W].
    """
    if shift == 0:
        return images
    batch, channels, height, width = images.shape
    # Reflection padding exists for floating types only, and pixel values are exact in float32.
    padded = torch.nn.functional.pad(images.float(), (shift,) * 4, mode="reflect").to(torch.uint8)
    dy, dx = draw.integers(0, 2 * shift + 1, (2,)).unbind(1)
    rows = dy.view(-1, 1) + torch.arange(height, device=images.device)  # [B, H]
    columns = dx.view(-1, 1) + torch.arange(width, device=images.device)  # [B, W]
    which = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[which, channel, rows.view(batch, 1, -1, 1), columns.view(batch, 1, 1, -1)]


def random_flip(images: "Tensor", draw: Draw) -> "Tensor":
    """Mirror each image left-right with probability one half: [B, C, H, W] in and out, of one type."""
    return torch.where(draw.chance(0.5).view(-1, 1, 1, 1), images.flip(-1), images)
