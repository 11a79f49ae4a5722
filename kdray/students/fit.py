"""A student from nothing to a file: fresh weights, training, the file's bytes. What every trainer runs."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kdray.students.export import ModelCard, model_bytes
from kdray.students.models import build_model
from kdray.students.train import TrainResult, train


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """All that decides a student, apart from the images.

    Attributes:
        card: model, shape and classes.
        mean, std: input normalisation, in units of pixel / 255.
        recipe: a `kdray.config.TrainConfig`.
        seed: the run's seed.
        threads: CPU threads of training.
    """

    card: ModelCard
    mean: list[float]
    std: list[float]
    recipe: object
    seed: int
    threads: int


def fit(
    spec: StudentSpec, images: Tensor, targets: Tensor, round: int, on_epoch: Callable[[int, float], None] | None = None
) -> tuple[bytes, TrainResult]:
    """Train a student from scratch on uint8 images [N, C, H, W] and targets float32 [N, K]; the model file's bytes."""
    model = build_model(
        spec.card.model, spec.card.image_shape, spec.card.num_classes, seed=spec.seed, mean=spec.mean, std=spec.std
    )
    result = train(
        model, images, targets, spec.recipe, seed=spec.seed, round=round, threads=spec.threads, on_epoch=on_epoch
    )
    return model_bytes(model, spec.card), result


class LocalTrainer:
    """Trains in this process."""

    def __init__(self, spec: StudentSpec) -> None:
        self._spec = spec

    def fit(
        self, images: Tensor, targets: Tensor, round: int, on_epoch: Callable[[int, float], None] | None = None
    ) -> tuple[bytes, TrainResult]:
        """See `fit`."""
        return fit(self._spec, images, targets, round, on_epoch)
