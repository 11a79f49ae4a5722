"""The regimes of "What Makes a Good Dataset for Knowledge Distillation?" (section 3.3 and Table 5)."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from kdray.errors import ConfigError
from kdray.sections.base import did_you_mean
from kdray.training.augment.base import Augment, Draw, augments
from kdray.training.augment.crop import check_shift, random_flip, random_shift

if TYPE_CHECKING:
    from torch import Tensor


class Regime(Augment):
    """RandAugment, mirroring, crops of the padded image, and what a regime adds to them."""

    number: Annotated[int, Field(ge=0)] = 2
    """RandAugment's n: operations an image."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 14
    """RandAugment's m: their strength, of 30."""
    operations: list[str] | None = None
    """Names of the operations to draw from, as torchvision names them; null: all, of grey images all but Color."""
    shift: Annotated[int, Field(ge=0)] = 4
    """Padding of the crops, in pixels."""
    flip: bool = True
    """Mirror left-right half of the time. Set false where left and right mean something, as in digits."""

    @field_validator("operations")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        from kdray.training.augment.operations import OPERATIONS

        for name in value or ():
            if name not in OPERATIONS:
                near = did_you_mean(name, OPERATIONS)
                raise ValueError(f"{name!r} is not an operation of RandAugment; {near or ', '.join(OPERATIONS)}")
        if value == []:
            raise ValueError("the list is empty; set number to 0 for no operation, or give null for all")
        return value

    def __call__(self, images: "Tensor", draw: Draw) -> "Tensor":
        """See `Augment`."""
        from kdray.training.augment.operations import rand_augment

        images = rand_augment(images, self.number, self.magnitude, draw, tuple(self.operations or ()))
        images = random_flip(images, draw) if self.flip else images
        return random_shift(images, self.shift, draw)

    def check(self, image_shape: tuple[int, int, int], field: str = "augment") -> None:
        """See `Augment`."""
        from kdray.training.augment.operations import OPERATIONS

        check_shift(self.shift, image_shape, f"{field}.shift")
        if image_shape[0] not in (1, 3):
            raise ConfigError(f"{field}: {self.kind} works on 1 or 3 channels, the images have {image_shape[0]}")
        for name in self.operations or ():
            if image_shape[0] != 3 and OPERATIONS[name].coloured:
                raise ConfigError(f"{field}.operations: {name} changes colours, and the images are grey; leave it out")


@augments.register
class Standard(Regime):
    """RandAugment, mirroring and crops of the padded image: the regime for real images (section 4)."""

    kind: Literal["standard"] = "standard"


class Synthetic(Regime):
    """A regime with elastic warps and inversion."""

    elastic: bool = True
    """Warp images by smooth random displacements."""
    invert: bool = True
    """Invert half of the images."""

    def __call__(self, images: "Tensor", draw: Draw) -> "Tensor":
        """See `Augment`."""
        from kdray.training.augment.warps import random_elastic, random_invert

        images = super().__call__(images, draw)
        images = random_elastic(images, draw) if self.elastic else images
        return random_invert(images, draw) if self.invert else images


@augments.register
class High(Synthetic):
    """Twice the operations, elastic warps and inversion: the regime for synthetic images (section 4)."""

    kind: Literal["high"] = "high"
    number: Annotated[int, Field(ge=0)] = 4
    """RandAugment's n: operations an image."""


@augments.register
class Extreme(Synthetic):
    """RandAugment at its strongest, and random erasing (Table 5)."""

    kind: Literal["extreme"] = "extreme"
    number: Annotated[int, Field(ge=0)] = 8
    """RandAugment's n: operations an image."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 30
    """RandAugment's m: their strength, of 30."""
    erase: bool = True
    """Blacken a random rectangle in half of the images."""

    def __call__(self, images: "Tensor", draw: Draw) -> "Tensor":
        """See `Augment`."""
        from kdray.training.augment.warps import random_erase

        images = super().__call__(images, draw)
        return random_erase(images, draw) if self.erase else images
