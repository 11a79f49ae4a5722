"""Training a student from fresh weights to the bytes of its file; every trainer runs `fit`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdray.models.checkpoint import ModelCard, model_bytes
from kdray.models.classifier import ImageClassifier, build_model
from kdray.pools.base import Pool
from kdray.training.length import early
from kdray.training.loop import TrainResult, train
from kdray.training.recipe import Recipe, StudentSection
from kdray.training.saved import Saved, training_key
from kdray.training.shard import Shard
from kdray.training.unpaid import Labeller, Unpaid
from kdray.utils.devices import resolve_device
from kdray.utils.seeds import torch_seed

OnEpoch = Callable[[int, int, float], None]


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """All that a student depends on, apart from the images and the answers.

    Attributes:
        card: model, shape and classes.
        mean, std: input normalisation, in units of pixel / 255.
        recipe: how it is trained.
        seed: the run's seed.
        threads: CPU threads of training.
        pool: candidates for a recipe with `unpaid`.
    """

    card: ModelCard
    mean: list[float]
    std: list[float]
    recipe: Recipe
    seed: int
    threads: int
    pool: Pool | None = None


def fit(
    spec: StudentSpec,
    images: Tensor,
    targets: Tensor,
    round: int,
    on_epoch: OnEpoch | None = None,
    shard: Shard | None = None,
    *,
    final: bool = True,
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
    recipe = spec.recipe if final else early(spec.recipe, len(images))
    saved = None
    if last or on_state is not None:
        key = training_key(recipe, images, targets, spec.card.model, spec.mean, spec.std, spec.seed, round)
        saved = Saved(key, last, on_state or (lambda state: None))
    unpaid = recipe.unpaid if final and isinstance(recipe, StudentSection) else None
    students: list[ImageClassifier] = []
    networks = 1 + (0 if unpaid is None else unpaid.students)

    def tell(done: int, of: int, loss: float) -> None:
        if on_epoch is not None:
            on_epoch(len(students) * of + done, networks * of, loss)

    def trained(model: ImageClassifier, seed: int, labeller: Labeller | None = None) -> TrainResult:
        return train(
            model,
            images,
            targets,
            recipe,
            seed=seed,
            round=round,
            threads=spec.threads,
            on_epoch=tell,
            shard=shard,
            unpaid=labeller,
            saved=saved,
        )

    labeller = None
    if unpaid is not None:
        for number in range(unpaid.students):
            seed = torch_seed(spec.seed, f"student {number} that labels")
            model = _fresh(spec, seed)
            if saved is not None and number < len(saved.done):
                model.load_state_dict(saved.done[number])
            else:
                trained(model, seed)
                if saved is not None:
                    saved.finish(model.state_dict())
            students.append(model.eval())
        labeller = _labeller(spec, unpaid, students)
    model = _fresh(spec, spec.seed)
    result = trained(model, spec.seed, labeller)
    return model_bytes(model, spec.card), result


def _fresh(spec: StudentSpec, seed: int) -> ImageClassifier:
    card = spec.card
    return build_model(card.model, card.image_shape, card.num_classes, seed=seed, mean=spec.mean, std=spec.std)


def _labeller(spec: StudentSpec, unpaid: Unpaid, students: list[ImageClassifier]) -> Labeller:
    assert spec.pool is not None, "see `StudentSpec.pool`"
    device = resolve_device(spec.recipe.device)
    ready = [student.to(device).to(memory_format=torch.channels_last) for student in students]
    return Labeller(unpaid, spec.pool.to(device), ready, spec.recipe.augment)


class LocalTrainer:
    """A `kdray.training.base.Trainer` that trains in this process."""

    def __init__(self, spec: StudentSpec) -> None:
        self._spec = spec

    def fit(
        self,
        images: Tensor,
        targets: Tensor,
        round: int,
        on_epoch: OnEpoch | None = None,
        *,
        final: bool = True,
        last: bytes | None = None,
        on_state: Callable[[bytes], None] | None = None,
    ) -> tuple[bytes, TrainResult]:
        """See `kdray.training.base.Trainer.fit`."""
        return fit(self._spec, images, targets, round, on_epoch, final=final, last=last, on_state=on_state)
