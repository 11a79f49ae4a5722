"""How long a network is trained: optimisation steps, and the epochs that they make."""

import math
from dataclasses import dataclass
from itertools import pairwise

from kdray.training.augment.auto import Auto
from kdray.training.recipe import Recipe, StudentSection

_LEAST, _AT = 2000, 1000
"""auto: 2,000 steps up to 1,000 answers, and more in proportion to their square root; see docs/training.md."""


@dataclass(frozen=True)
class Length:
    """How long a training is, and how its images are cut into batches.

    Attributes:
        steps: optimisation steps.
        edges: boundaries of the batches of an epoch; see `batch_edges`.
    """

    steps: int
    edges: tuple[int, ...]

    @property
    def epochs(self) -> int:
        """Passes over the images; the last one may be cut short."""
        return -(-self.steps // (len(self.edges) - 1))

    @property
    def smallest_batch(self) -> int:
        """Images in the smallest batch."""
        return min(stop - start for start, stop in pairwise(self.edges))


def length(recipe: Recipe, answers: int) -> Length:
    """How long `recipe` trains on `answers` images, of which early stopping holds some out."""
    count = answers - held_out(answers, recipe)
    edges = batch_edges(count, recipe.batch_size)
    if recipe.epochs is not None:
        steps = recipe.epochs * (len(edges) - 1)
    else:
        factor = recipe.steps_factor if isinstance(recipe, StudentSection) else None
        steps = auto_steps(count, factor or 1.0) if recipe.steps == "auto" else recipe.steps
    return Length(steps, tuple(edges))


def early(recipe: Recipe, answers: int) -> Recipe:
    """The recipe of a round before the last."""
    if isinstance(recipe.augment, Auto):
        recipe = recipe.model_copy(update={"augment": recipe.augment.plain()})
    return shortened(recipe, answers, recipe.early) if isinstance(recipe, StudentSection) else recipe


def shortened(recipe: Recipe, answers: int, share: float) -> Recipe:
    """The recipe for a share of the steps that it has for so many answers."""
    if share == 1:
        return recipe
    steps = max(1, round(length(recipe, answers).steps * share))
    return recipe.model_copy(update={"steps": steps, "epochs": None})


def compared(recipe: Recipe, answers: int, share: float) -> Recipe:
    """The recipe of a network that is only compared with others: a share of the steps. Those of `auto` are taken
    without a factor above 1, as they were where the choice was measured (benchmarks/student.py augment)."""
    if isinstance(recipe, StudentSection) and recipe.steps_factor is not None:
        recipe = recipe.model_copy(update={"steps_factor": min(1.0, recipe.steps_factor)})
    return shortened(recipe, answers, share)


def auto_steps(answers: int, factor: float = 1.0) -> int:
    """Steps after which longer training gains little, by the number of answers (benchmarks/steps.py)."""
    return max(1, round(factor * _LEAST * math.sqrt(max(1.0, answers / _AT))))


def held_out(count: int, recipe: Recipe) -> int:
    """Images of `count` that early stopping holds out: none without it, or of a single image."""
    if recipe.early_stop is None or count < 2:
        return 0
    return min(max(1, round(count * recipe.early_stop.holdout)), count - 1)


def batch_edges(count: int, batch_size: int) -> list[int]:
    """Boundaries of batches of one size, give or take one image: `batch_size` at most, two images at least.

    Full batches and a rest would train worse: the gradient of a handful of images, at the rate meant for a whole
    batch, undoes much of the epoch. LeNet-5 on 2,500 CIFAR-10 images has an accuracy of 51.0 %; it was 46.2 % with
    batches of 64 and a last one of 4. Batch normalisation needs two images, so an odd count in batches of two has one
    batch of three.
    """
    batches = -(-count // batch_size)
    if batch_size > 1:
        batches = min(batches, max(1, count // 2))
    return [count * number // batches for number in range(batches + 1)]


def rate_factor(step: int, steps: int, schedule: str) -> float:
    """Share of the peak learning rate at `step` (from 0) of `steps`, taken at the middle of the step.

    cosine: from 1 down to 0 (Loshchilov and Hutter, 2017, equation 5). one-cycle: from 1/25 up to 1 in the first
    quarter, then down to 0, both along a cosine (Smith and Topin, 2018). constant: 1.
    """
    if schedule == "constant":
        return 1.0
    position, rise = (step + 0.5) / steps, 0.25 if schedule == "one-cycle" else 0.0
    if position < rise:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * position / rise)) / 2
    return (1 + math.cos(math.pi * (position - rise) / (1 - rise))) / 2
