"""What a step is trained on: augmented images and their answers, mixes of them, and unpaid candidates beside them."""

from typing import NamedTuple

import torch
from torch import Tensor

from kdray.training.augment.base import Draw
from kdray.training.losses.mixkd import hard_labels
from kdray.training.mix import Mix, blend, draw_mixing, paste
from kdray.training.recipe import Recipe
from kdray.training.shard import Shard
from kdray.training.unpaid import Labeller


class Batch(NamedTuple):
    """This process's rows of a batch.

    Attributes:
        images: uint8 or float32 [B, C, H, W], pixels of 0 to 255.
        targets: probabilities, float32 [B, K].
        answered: bool [B]: the target is an answer to this image, and no mix; None where all are.
        of: images in the whole batch.
    """

    images: Tensor
    targets: Tensor
    answered: Tensor | None
    of: int


class Feed:
    """Makes the batches of a training.

    Args:
        images: uint8 [N, C, H, W].
        targets: float32 [N, K].
        recipe: augmentation, mixes, and a loss that says how mixes are labelled.
        shard: this process's share.
        unpaid: adds labelled candidates; None adds none.
    """

    def __init__(self, images: Tensor, targets: Tensor, recipe: Recipe, shard: Shard, unpaid: Labeller | None) -> None:
        self._images, self._targets, self._recipe, self._shard = images, targets, recipe, shard
        self._unpaid = unpaid

    def batch(self, numbers: Tensor, vary: torch.Generator) -> Batch:
        """This process's rows of the batch of the images with the `numbers` int64 [B].

        Args:
            vary: draws all that is random, on the device of the images.
        """
        rows, count = self._shard.rows(len(numbers)), len(numbers)
        draw = Draw(vary, rows, count)
        own = numbers[rows]
        x, targets = self._recipe.augment(self._images.index_select(0, own), draw), self._targets.index_select(0, own)
        answered = None
        if self._recipe.mix is not None:
            x, targets, answered = self._mixed(self._recipe.mix, x, targets, numbers, draw)
        if self._unpaid is not None:
            more = self._unpaid.count(count)
            fresh, answers = self._unpaid.draw(Draw(vary, self._shard.rows(more), more))
            x, targets, count = torch.cat([x, fresh.to(x.dtype)]), torch.cat([targets, answers]), count + more
            if answered is not None:
                answered = torch.cat([answered, answered.new_ones(len(fresh))])
        return Batch(x, targets, answered, count)

    def _mixed(
        self, mix: Mix, x: Tensor, targets: Tensor, numbers: Tensor, draw: Draw
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images and targets, a share of them mixed, and which are not: each process has all images to mix with."""
        rows = self._shard.rows(len(numbers))
        drawn = draw_mixing(len(numbers), mix.share, mix.alpha, draw.generator)
        mixed, weight, others = drawn.mixed[rows], drawn.weight[rows], numbers[drawn.partner[rows]]
        partners = self._recipe.augment(self._images[others], draw)
        if mix.kind == "mixup":
            mixes = blend(x, partners, weight)
        else:
            mixes, weight = paste(x, partners, weight, draw.uniform(shape=(2,)))
        first, second = targets, self._targets[others]
        if self._recipe.loss.labels_mixes:
            first, second = hard_labels(first), hard_labels(second)
        labels = torch.lerp(second, first, weight[:, None])
        return (
            torch.where(mixed.view(-1, 1, 1, 1), mixes, x),
            torch.where(mixed[:, None], labels, targets),
            ~mixed,
        )
