"""What a student is trained on: images with true labels first, then what was bought, in the order in which it was."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kdray.images import ImageSet
from kdray.runs.tables import Labelled
from kdray.teachers.answers import training_targets
from kdray.utils.stored import joined


def with_true_labels(given: ImageSet | None, num_classes: int) -> list[Tensor]:
    """Images uint8 [N, C, H, W] and their one-hot targets float32 [N, K]; nothing where there are none."""
    if given is None:
        return []
    return [given.images, F.one_hot(given.true_labels, num_classes).to(torch.float32)]


def of_one_round(held: list[Tensor], given: int, before: int) -> list[Tensor]:
    """Of `held`, images and targets as above, the first `given` rows and those from row `before` on."""
    if before == given:
        return held
    return [joined([part[:given], part[before:]]) if given else part[before:] for part in held]


def with_bought(held: list[Tensor], part: Labelled, top: int | None) -> list[Tensor]:
    """`held`, images and targets as above, with those of `part` behind them.

    Args:
        top: k of the teacher's answers, see `kdray.teachers.answers.training_targets`.
    """
    if len(part) == 0:
        return held
    targets = training_targets(part.answers, top)
    return [joined([held[0], part.images]), torch.cat([held[1], targets])] if held else [part.images, targets]
