"""The config sections that say how a network is trained."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kdray.models.base import ModelName
from kdray.sections.base import Device, Section
from kdray.training.losses.base import Loss, losses


class Augment(Section):
    """Changes made to an image each time it is trained on. Its answer is kept: nothing is asked again."""

    shift: Annotated[int, Field(ge=0)] = 0
    """Largest shift in pixels, each way, in both directions (a random crop of the padded image)."""
    flip: bool = False
    """Mirror left-right half of the time. Leave off where left and right mean something, as in digits."""


class EarlyStop(Section):
    """Stop when a held-out part of the *labelled set* stops improving. Test labels are never looked at."""

    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the labelled set held out."""
    patience: Annotated[int, Field(ge=1)] = 10
    """Epochs without a lower held-out loss before training stops; the best weights are kept."""


class Recipe(Section):
    """How a network is trained: SGD with Nesterov momentum."""

    epochs: Annotated[int, Field(ge=1)] = 40
    """Passes over the labelled set."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images a step, at most: an epoch is cut into batches of one size, give or take one image."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Peak learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty on weights; biases and normalisation layers are left out."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 2.0
    """Longer gradients are cut to this length; null cuts none. On few images a single one may undo all training."""
    loss: Annotated[Loss, losses] = Field(default_factory=losses.default)
    """The loss: its kind alone, or a section with its kind and its other fields."""
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    """How the learning rate moves: up for a quarter and down to zero, or down from the start."""
    augment: Augment = Augment()
    """Random shifts and flips."""
    early_stop: EarlyStop | None = None
    """Null trains all epochs."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N; auto takes a GPU where there is one."""


class StudentSection(Recipe):
    """The student, trained anew each round on all that has been bought."""

    path_fields: ClassVar[tuple[str, ...]] = ("init",)

    model: ModelName = "lenet5"
    """A network of kdray's zoo or one of torchvision's classifiers by name (docs/models.md), or a class or function of
    your own as module:object."""
    init: str | None = None
    """A file of weights that each round's student starts from: safetensors, or a torch state dict (.pt, .pth). Its last
    layer is left out where it has another number of classes. null starts from random weights."""
