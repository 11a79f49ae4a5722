"""What a run's trainings amount to, and how long they take here: for a plan."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from kdray.models.classifier import build_model
from kdray.training.augment.auto import Auto
from kdray.training.choice import FOLDS, SHARE, networks
from kdray.training.length import compared, early, length
from kdray.training.loop import train
from kdray.training.recipe import Recipe, StudentSection

_WARM = 2  # steps before the clock is started
_LONG = 5  # times the seconds of a probe, above which those steps are measured themselves


class Training(NamedTuple):
    """Networks that are trained alike.

    Attributes:
        model: their name.
        number: how many.
        steps: of each.
        batch: images a step.
    """

    model: str
    number: int
    steps: int
    batch: int


def workload(
    section: StudentSection,
    answers: Sequence[int],
    image_shape: tuple[int, int, int],
    tried: tuple[int, int] | None = None,
) -> list[Training]:
    """All trainings of a run.

    Args:
        answers: images that the student of each round learns from.
        image_shape: (C, H, W).
        tried: kinds of candidates that are compared, and images that a student of the comparison learns from.
    """
    section = section.for_images(image_shape)
    some = [_training(section.model, 1, early(section, count), count) for count in answers[:-1]]
    if tried is not None:
        kinds, count = tried
        some.append(_training(section.model, FOLDS * kinds, early(section, count), count))
    count = answers[-1]
    short = compared(section, count, SHARE)
    choices = [len(section.augment.candidates(image_shape))] if isinstance(section.augment, Auto) else []
    choices += [len(section.variants())] if section.recipe == "auto" else []
    for recipes in choices:
        some += [_training(section.model, number, short, count - held) for number, held in networks(recipes, count)]
    own = _training(section.model, 1, section, count)
    if (unpaid := section.unpaid) is not None:
        some.append(own._replace(model=unpaid.model or section.model, number=unpaid.students))
        own = own._replace(batch=round(own.batch / (1.0 - unpaid.share)))
    return [*some, own]


def _training(model: str, number: int, recipe: Recipe, count: int) -> Training:
    if count == 0:
        return Training(model, number, 0, 0)
    planned = length(recipe, count)
    return Training(model, number, planned.steps, -(-count // (len(planned.edges) - 1)))


def probed(
    trainings: Sequence[Training],
    section: StudentSection,
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    probe_s: float,
    threads: int,
) -> dict[str, float]:
    """Seconds an image that each network of the trainings takes here, from a probe of each.

    Args:
        probe_s: of all probes, about; a network's probe has as many steps as its trainings at most.
        threads: CPU threads of training.
    """
    steps: Counter[str] = Counter()
    for training in trainings:
        steps[training.model] += training.number * training.steps
    return {
        name: _seconds_an_image(name, section, image_shape, classes, probe_s / len(steps), most, threads)
        for name, most in steps.items()
    }


def seconds_of(trainings: Sequence[Training], seconds: Mapping[str, float]) -> float:
    """Seconds that the trainings take, without the labels of unpaid candidates, by what `probed` has found."""
    return sum(one.number * one.steps * one.batch * seconds[one.model] for one in trainings)


def _seconds_an_image(
    name: str,
    section: StudentSection,
    shape: tuple[int, int, int],
    classes: int,
    probe_s: float,
    most: int,
    threads: int,
) -> float:
    augment = section.augment.plain() if isinstance(section.augment, Auto) else section.augment
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (section.batch_size, *shape), generator=generator, dtype=torch.uint8)
    targets = torch.full((len(images), classes), 1.0 / classes)
    model = build_model(name, shape, classes, seed=0)

    # Nothing that ends before its last step.
    plain = {"augment": augment, "epochs": None, "early_stop": None, "lr": 1e-6}

    def seconds(steps: int) -> float:
        recipe = section.model_copy(update=plain | {"steps": steps})
        begin = time.perf_counter()
        train(model, images, targets, recipe, seed=0, threads=threads)
        return time.perf_counter() - begin

    if (first := seconds(_WARM)) > _LONG * probe_s:
        return first / (_WARM * len(images))
    steps = max(1, min(most, int(probe_s * _WARM / seconds(_WARM))))
    return seconds(steps) / (steps * len(images))
