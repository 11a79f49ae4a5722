"""What an augmentation is, the random numbers that it draws, and the registry of augmentations."""

from abc import abstractmethod
from typing import TYPE_CHECKING

from kdray.errors import ConfigError
from kdray.sections.base import Section
from kdray.sections.registry import Registry
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


_ROUNDING = 0.01  # by how much pixels between others may leave 0 to 255


class Draw:
    """Random numbers for each image of a batch, on the device of the images.

    Where several processes share a batch, each draws the numbers of all its images and gets those of its own rows. So
    they see the images that one process would see.

    Args:
        generator: on the device of the images.
        rows: the rows of the batch that are at hand.
        of: images in the whole batch.
    """

    def __init__(self, generator: "torch.Generator", rows: slice, of: int) -> None:
        self.generator, self._rows, self._of = generator, rows, of

    @classmethod
    def whole(cls, generator: "torch.Generator", count: int) -> "Draw":
        """Numbers for a batch of `count` images, all of which are at hand."""
        return cls(generator, slice(0, count), count)

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> "Tensor":
        """float32 [B, *shape] in [low, high)."""
        device = self.generator.device
        drawn = torch.rand((self._of, *shape), generator=self.generator, device=device)[self._rows]
        return drawn.mul_(high - low).add_(low)

    def integers(self, low: int, high: int, shape: tuple[int, ...] = ()) -> "Tensor":
        """int64 [B, *shape] in [low, high)."""
        device = self.generator.device
        drawn = torch.randint(low, high, (self._of, *shape), generator=self.generator, device=device)
        return drawn[self._rows]

    def chance(self, share: float) -> "Tensor":
        """bool [B], true with probability `share`."""
        return self.uniform() < share


class Augment(Section):
    """How an image is changed each time it is trained on. Its answer is kept, if `student.labels` is reuse."""

    # A subclass adds its own fields, `__call__` and perhaps `check`; it leaves `kind` alone, or narrows it to its name
    # and registers.

    kind: str
    """Kind of augmentation, or a class of your own as module:class."""

    @property
    def changes(self) -> bool:
        """Whether it changes any image."""
        return True

    @abstractmethod
    def __call__(self, images: "Tensor", draw: Draw) -> "Tensor":
        """The images, changed.

        Args:
            images: uint8 [B, C, H, W].
            draw: random numbers for these images. All random numbers come from it.

        Returns:
            [B, C, H, W] of the same pixel scale, 0 to 255, uint8 or float32.
        """

    def check(self, image_shape: tuple[int, int, int], field: str = "augment") -> None:
        """Refuse images (C, H, W) that it cannot change, before anything is trained or paid.

        Args:
            field: the config field, for messages.

        Raises:
            ConfigError: the images do not fit; the message names the field, its value and the images.
        """


augments = Registry(
    Augment,  # type: ignore[type-abstract]  # a registry holds what is derived from it
    field="augment",
    package="kdray.training.augment",
    skip=("operations", "warps"),
    default="crop",
)
"""The augmentations, by name."""


def check_augment(augment: Augment, image_shape: tuple[int, int, int], field: str = "augment") -> None:
    """Refuse an augmentation that does not fit images (C, H, W); one of the user's own is tried on two of them.

    Raises:
        ConfigError: it does not fit, fails, or gives no images of that shape with pixels of 0 to 255.
    """
    augment.check(image_shape, field)
    if ":" not in augment.kind:
        return
    images = torch.stack([torch.full(image_shape, value, dtype=torch.uint8) for value in (0, 255)])
    try:
        changed = augment(images.clone(), Draw.whole(torch.Generator().manual_seed(0), 2))
    except Exception as error:  # a user's class may raise anything
        raise ConfigError(
            f"{field}: {augment.kind} failed on images {list(images.shape)} ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(changed, torch.Tensor) or changed.shape != images.shape:
        got = list(changed.shape) if isinstance(changed, torch.Tensor) else type(changed).__name__
        raise ConfigError(f"{field}: {augment.kind} gave {got} for images {list(images.shape)}; it must give as many")
    if changed.dtype not in (torch.uint8, torch.float32):
        raise ConfigError(f"{field}: {augment.kind} gave {changed.dtype}; it must give uint8 or float32")
    if not bool(((changed >= -_ROUNDING) & (changed <= 255 + _ROUNDING)).all()):
        raise ConfigError(
            f"{field}: {augment.kind} gave pixels of {float(changed.min()):g} to {float(changed.max()):g}; they must "
            "be 0 to 255"
        )
