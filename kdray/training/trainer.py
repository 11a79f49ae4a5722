"""Training a student from fresh weights to the bytes of its file; every trainer runs `fit`."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kdray.models.checkpoint import ModelCard, model_bytes
from kdray.models.classifier import build_model
from kdray.training.loop import TrainResult, train
from kdray.training.recipe import Recipe
from kdray.training.saved import Saved, training_key
from kdray.training.shard import Shard


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """All that a student depends on, apart from the images and the answers.

    Attributes:
        card: model, shape and classes.
        mean, std: input normalisation, in units of pixel / 255.
        recipe: how it is trained.
        seed: the run's seed.
        threads: CPU threads of training.
    """

    card: ModelCard
    mean: list[float]
    std: list[float]
    recipe: Recipe
    seed: int
    threads: int


def fit(
    spec: StudentSpec,
    images: Tensor,
    targets: Tensor,
    round: int,
    on_epoch: Callable[[int, int, float], None] | None = None,
    shard: Shard | None = None,
    *,
    last: bytes | None = None,
    on_state: Callable[[bytes], None] | None = None,
) -> tuple[bytes, TrainResult]:
    """Train a student from scratch; see `kdray.training.base.Trainer.fit`.

    Args:
        shard: this process's share of the work; None: all of it.

    Raises:
        ModelError: the network cannot be built for these images.
        ConfigError, TrainingError: see `kdray.training.loop.train`.
    """
    saved = None
    if last or on_state is not None:
        key = training_key(spec.recipe, images, targets, spec.card.model, spec.mean, spec.std, spec.seed, round)
        saved = Saved(key, last, on_state or (lambda state: None))
    model = build_model(
        spec.card.model, spec.card.image_shape, spec.card.num_classes, seed=spec.seed, mean=spec.mean, std=spec.std
    )
    result = train(
        model,
        images,
        targets,
        spec.recipe,
        seed=spec.seed,
        round=round,
        threads=spec.threads,
        on_epoch=on_epoch,
        shard=shard,
        saved=saved,
    )
    return model_bytes(model, spec.card), result


class LocalTrainer:
    """A `kdray.training.base.Trainer` that trains in this process."""

    def __init__(self, spec: StudentSpec) -> None:
        self._spec = spec

    def fit(
        self,
        images: Tensor,
        targets: Tensor,
        round: int,
        on_epoch: Callable[[int, int, float], None] | None = None,
        *,
        last: bytes | None = None,
        on_state: Callable[[bytes], None] | None = None,
    ) -> tuple[bytes, TrainResult]:
        """See `kdray.training.base.Trainer.fit`."""
        return fit(self._spec, images, targets, round, on_epoch, last=last, on_state=on_state)
