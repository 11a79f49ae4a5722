"""The augmentation is chosen by the answers themselves; see `kdray.training.choice`."""

from typing import TYPE_CHECKING, Literal

from kdray.errors import ConfigError
from kdray.training.augment.affine import Affine
from kdray.training.augment.base import Augment, Draw, augments
from kdray.training.augment.crop import Crop
from kdray.training.augment.none import Nothing
from kdray.training.augment.regimes import Standard

if TYPE_CHECKING:
    from torch import Tensor

_SHIFT = 14  # a crop moves by up to a fourteenth of the shorter side: 2 pixels of 28


@augments.register
class Auto(Augment):
    """The kind with which students agree best with answers that were held out. Rounds before the last use affine."""

    kind: Literal["auto"] = "auto"
    flip: bool = True
    """Whether kinds that mirror images are tried. A flip that turns one digit into another is found out."""

    def __call__(self, images: "Tensor", draw: Draw) -> "Tensor":
        """Not to be called: `chosen` takes its place."""
        raise ConfigError("augment: auto is chosen for a student, by its answers; name a kind here")

    def plain(self) -> Augment:
        """The kind for students that only choose."""
        return Affine()

    def candidates(self, image_shape: tuple[int, int, int]) -> dict[str, Augment]:
        """The kinds that are tried on images (C, H, W), by name."""
        shift = max(1, round(min(image_shape[1:]) / _SHIFT))
        some: dict[str, Augment] = {
            "affine": Affine(),
            "affine, flip": Affine(flip=True),
            "crop": Crop(shift=shift),
            "crop, flip": Crop(shift=shift, flip=True),
            "standard": Standard(shift=shift),
            "none": Nothing(),
        }
        return {name: one for name, one in some.items() if self._fits(one, image_shape)}

    def _fits(self, one: Augment, image_shape: tuple[int, int, int]) -> bool:
        if getattr(one, "flip", False) and not self.flip:
            return False
        try:
            one.check(image_shape)
        except ConfigError:
            return False
        return True
