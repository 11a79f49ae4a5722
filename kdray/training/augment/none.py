"""No augmentation."""

from typing import TYPE_CHECKING, Literal

from kdray.training.augment.base import Augment, Draw, augments

if TYPE_CHECKING:
    from torch import Tensor


@augments.register
class Nothing(Augment):
    """Images are trained on as they are."""

    kind: Literal["none"] = "none"

    @property
    def changes(self) -> bool:
        """See `Augment`."""
        return False

    def __call__(self, images: "Tensor", draw: Draw) -> "Tensor":
        """See `Augment`."""
        return images
