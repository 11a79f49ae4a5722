"""Augmentation of batches on their own device, one kind a module. Their functions can be used alone."""

from kdray.training.augment.base import Augment, Draw, augments, check_augment
from kdray.training.augment.crop import Crop

__all__ = ["Augment", "Crop", "Draw", "augments", "check_augment"]
