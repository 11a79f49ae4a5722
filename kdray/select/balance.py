"""How evenly answers are spread over the classes ("What Makes a Good Dataset for Knowledge Distillation?", Table 3)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LOW = 0.6
"""Relative entropy under which a run warns."""
_EACH, _ENOUGH = 10, 200  # answers a class, on average, or in all, before a warning says something


ALIKE = 200
"""Equal answers after which a run that has more to ask stops between two rounds."""
FIRST_ALIKE = 1000
"""Equal answers after which it stops within a round of random candidates. These are more, since of some pools a sound
teacher names one class nearly always: of white noise a teacher of MNIST names it 99 times in 100."""


def all_alike(targets: Tensor) -> bool:
    """Whether answers float32 [N, K] are `ALIKE` or more, and all the same: there is nothing to learn from them."""
    return len(targets) >= ALIKE and bool((targets == targets[0]).all())


def alike(count: int, label: int, names: Sequence[str] | None) -> str:
    """Why a run stops after `count` answers that are all the same: class `label`, one of `names` if these are known."""
    return (
        f"all {count:,} answers so far are the same, class {names[label] if names else label}; a student learns "
        "nothing from them, and the rest of the budget is kept. Check the teacher and teacher.input, or start a new "
        "run with other images or candidates (images, pool.kind)"
    )


def relative_entropy(labels: Tensor | np.ndarray | Sequence[int], num_classes: int) -> float:
    """Entropy of the classes' frequencies, as a share of that of equal frequencies: H(p) / log K (section 4.1).

    Args:
        labels: integers [N], each in [0, num_classes).
        num_classes: number of classes K, also those that no label names.

    Returns:
        0 where all labels are one class, 1 where each class is equally frequent. 1 for a single class; 0 for no labels.

    Raises:
        ValueError: `num_classes` is not positive, labels are no integers [N], or one is out of range.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be positive, got {num_classes}")
    labels = torch.as_tensor(labels)
    if labels.numel() == 0:
        return 0.0
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels must be integers [N], got {labels.dtype} {list(labels.shape)}; take argmax of answers"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(f"labels must lie in [0, {num_classes}), got {int(labels.min())}..{int(labels.max())}")
    if num_classes == 1:
        return 1.0
    shares = [count / len(labels) for count in torch.bincount(labels).tolist() if count]
    entropy: float = -sum(share * math.log(share) for share in shares) / math.log(num_classes)
    return max(0.0, min(1.0, entropy))


def remedies(can_balance: bool) -> str:
    """What may help where the answers favour few classes.

    Args:
        can_balance: whether the config may have `select.balance`, and has none.
    """
    others = "images or candidates of another kind (images, pool.kind) may show the others"
    even = "select.balance: 8 chooses as many candidates of each class that the student predicts"
    return f"{others}; {even}" if can_balance else others


def imbalance(labels: Tensor, num_classes: int, *, can_balance: bool) -> str | None:
    """What a user should know of answers that name few classes; None where they do not, or are too few to say.

    Args:
        labels, num_classes: see `relative_entropy`.
        can_balance: see `remedies`.
    """
    entropy, most = relative_entropy(labels, num_classes), 1.0
    if 1 < len(labels) < num_classes:
        most = math.log(len(labels)) / math.log(num_classes)
    if entropy >= LOW * most or len(labels) < min(_EACH * num_classes, _ENOUGH):
        return None
    reach = f", and so few answers can have {most:.2f}" if most < 1 else ""
    missing = int((torch.bincount(labels, minlength=num_classes) == 0).sum())
    without = f"; {missing:,} of {num_classes:,} classes have none" if missing else ""
    return (
        f"the {len(labels):,} answers so far favour few classes: relative entropy {entropy:.2f}, where 1 is even"
        f"{reach}{without}. The student learns little about the others; {remedies(can_balance)}"
    )
