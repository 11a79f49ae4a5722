"""Augmented copies of what was bought, about which the last round asks (`student.labels: requery`)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdray.pools.permutation import sample_without
from kdray.training.augment.base import Augment, Draw
from kdray.utils.seeds import torch_generator
from kdray.utils.stored import gathered

_MAX_TRIES = 16  # a flip leaves half of the images as they are, and what is known already is no use


class Copies:
    """Augmented copies of N images, as many of each as there are ids. Number v * N + n is copy v of image n.

    A copy follows from the seed, its number and its image alone, so that a run that is resumed asks about the same. It
    is drawn again where it is no other image than the one that it is a copy of.

    Args:
        images: uint8 [N, C, H, W], at least one.
        augment: changes them.
        seed: the run's.
    """

    source = "augmented copy"

    def __init__(self, images: Tensor, augment: Augment, seed: int) -> None:
        self._images, self._augment, self._seed = images, augment, seed

    def drawn(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Numbers of `count` copies, int64: the images have equally many, and random ones one more."""
        whole, rest = divmod(count, len(self._images))
        more = sample_without(len(self._images), rest, np.empty(0, np.int64), generator)
        return np.concatenate([np.arange(whole * len(self._images)), whole * len(self._images) + np.sort(more)])

    def render(self, ids: np.ndarray) -> Tensor:
        """The copies with these numbers, uint8 [B, C, H, W]; see `kdray.utils.stored`."""
        if len(ids) == 0:
            return self._images[:0]
        return gathered((self._copy(number).numpy() for number in ids.tolist()), len(ids))

    def _copy(self, number: int) -> Tensor:
        """One copy, uint8 [1, C, H, W]."""
        row = number % len(self._images)
        image = self._images[row : row + 1]
        draw = Draw.whole(torch_generator(self._seed, "augmented copy", number), 1)
        for _ in range(_MAX_TRIES):
            copy = self._augment(image.clone(), draw).float().round().to(torch.uint8)  # a user's may work in place
            if not torch.equal(copy, image):
                break
        return copy

    def describe(self, ids: np.ndarray) -> dict[str, list[Any]]:
        """Columns for the record: of which labelled image each is a copy, by its row in labelled/, and which copy."""
        return {"copy_of": (ids % len(self._images)).tolist(), "copy": (ids // len(self._images)).tolist()}
