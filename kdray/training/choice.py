"""Which of several recipes learns best from the answers at hand: cross-validation by agreement with held-out answers.

Halving saves time: all recipes are tried with the first part held out, the better half of them with the second, and the
better half of these with the third, but two at least. Test labels are never looked at.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdray.models.classifier import ImageClassifier
from kdray.models.predict import images_at_a_time
from kdray.training.losses import soft_cross_entropy
from kdray.utils.seeds import torch_generator
from kdray.utils.stored import taken

_BATCH = 512
FOLDS, SHARE = 3, 0.3
"""Parts of the labelled set, and the share of the student's steps for which a network is trained that is compared."""
Fit = Callable[[str, Tensor, Tensor, int], ImageClassifier | None]
"""Trains a fresh network by the recipe of this name on images and targets; the number of the fold seeds it. None: the
training failed."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        name: of the recipe that was chosen.
        agreement: of each recipe, the share of held-out answers whose top class its students gave.
        answers: of each recipe, how many answers were held out.
    """

    name: str
    agreement: dict[str, float]
    answers: dict[str, int]

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {"chosen": self.name, "agreement": self.agreement, "answers": self.answers}

    def note(self, field: str) -> str:
        """In words; `field` is what was to be chosen."""
        if not self.agreement:
            return f"{field}: auto took {self.name}, as there are no answers to hold out"
        shares = {name: f"{share:.1%} of {self.answers[name]:,}" for name, share in self.agreement.items()}
        rest = ", ".join(f"{name} {share}" for name, share in shares.items() if name != self.name)
        return f"{field}: auto chose {self.name}, which agrees with {shares[self.name]} held-out answers; {rest}"


def networks(recipes: int, count: int, *, halving: bool = True) -> list[tuple[int, int]]:
    """What `choose` trains: for each fold, how many networks, and how many of `count` images are held out from them.
    Of a single image none can be held out."""
    folds, number, plan = min(FOLDS, count) if count > 1 else 0, recipes, []
    for fold in range(folds):
        plan.append((number, -(-(count - fold) // folds)))
        if halving:
            number = min(number, max(2, math.ceil(number / 2)))
    return plan


def choose(
    names: Sequence[str], images: Tensor, targets: Tensor, *, fit: Fit, seed: int, round: int, halving: bool = True
) -> Choice:
    """The recipe whose students agree best with answers that were held out from them.

    Args:
        names: of the recipes; of equal ones the first is chosen.
        images: uint8 [N, C, H, W]; of a single one nothing is learnt, and the first recipe is chosen.
        targets: float32 [N, K].
        fit: trains one student.
        seed, round: name the random numbers that divide the images.
        halving: try only the better ones with the other parts.
    """
    plan = networks(len(names), len(images), halving=halving)
    order = torch.randperm(len(images), generator=torch_generator(seed, "cross-validation", round))
    part = order % max(1, len(plan))
    found: dict[str, list[tuple[int, int, float]]] = {name: [] for name in names}  # agreeing, of, loss of each fold
    running = list(names)
    for fold, (number, _) in enumerate(plan):
        best = sorted(running, key=lambda name: _rank(found[name]))[:number]
        running = [name for name in running if name in best]
        rest, held = (part != fold).nonzero().flatten(), (part == fold).nonzero().flatten()
        learnt, judged = taken(images, rest), taken(images, held)
        for name in running:
            student = fit(name, learnt, targets[rest], fold)
            found[name].append(_judge(student, judged, targets[held]))
    totals = {name: (sum(one[0] for one in some), sum(one[1] for one in some)) for name, some in found.items()}
    return Choice(
        name=min(running, key=lambda name: _rank(found[name])),
        agreement={name: agreeing / of for name, (agreeing, of) in totals.items() if of},
        answers={name: of for name, (_, of) in totals.items() if of},
    )


def _judge(student: ImageClassifier | None, images: Tensor, targets: Tensor) -> tuple[int, int, float]:
    if student is None:
        return 0, len(images), math.inf
    with torch.inference_mode():
        step = images_at_a_time(_BATCH, images.shape[1:], images.device)
        logits = torch.cat([student(some) for some in images.split(step)])
        agreeing = int((logits.argmax(dim=1) == targets.argmax(dim=1)).sum())
        return agreeing, len(images), float(soft_cross_entropy(logits, targets)) * len(images)


def _rank(folds: list[tuple[int, int, float]]) -> tuple[float, float]:
    """Lower is better: disagreement, then loss."""
    if not folds:
        return 0.0, 0.0
    of = sum(count for _, count, _ in folds)
    return -sum(agreeing for agreeing, _, _ in folds) / of, sum(loss for _, _, loss in folds) / of
