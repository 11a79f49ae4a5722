"""Makes one student: chooses its recipe where that is asked for, trains those that label, and trains it."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdray.errors import TrainingError
from kdray.models.checkpoint import ModelCard, model_bytes
from kdray.models.classifier import ImageClassifier, build_model
from kdray.models.start import load_start, weights_of
from kdray.pools.base import Pool, placed
from kdray.training.augment.auto import Auto
from kdray.training.augment.none import Nothing
from kdray.training.choice import SHARE, Choice, choose, networks
from kdray.training.length import compared, early, length
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
        start: weights to start from, see `kdray.models.start`; None: fresh ones.
    """

    card: ModelCard
    mean: list[float]
    std: list[float]
    recipe: Recipe
    seed: int
    threads: int
    pool: Pool | None = None
    start: bytes | None = None


def with_candidates(spec: StudentSpec, pool: Pool) -> StudentSpec:
    """The same student, with candidates of this pool if its recipe has `unpaid`."""
    return spec if spec.pool is None else replace(spec, pool=pool)


def with_start(spec: StudentSpec, student: bytes) -> StudentSpec:
    """The same student, which starts from the weights of one whose file has these bytes."""
    return replace(spec, start=weights_of(student))


def untrained(spec: StudentSpec) -> tuple[bytes, TrainResult]:
    """The file of a student before training, as `fit` gives it: for a round 0 that asks nothing."""
    model = build_model(
        spec.card.model, spec.card.image_shape, spec.card.num_classes, seed=spec.seed, mean=spec.mean, std=spec.std
    )
    if spec.start is not None:
        load_start(model.network, spec.start)
    return model_bytes(model.eval(), spec.card), TrainResult()


def smallest_batch(spec: StudentSpec, count: int, *, final: bool = True) -> int:
    """Images in the smallest batch of all trainings of one student on `count` answers."""
    trained = {count}
    if final:
        for _, changes in _open(spec.recipe, spec.card.image_shape):
            trained |= {count - held for _, held in networks(len(changes), count)}
    return min(length(spec.recipe, number).smallest_batch for number in trained)


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
    """Train a student from fresh weights, or from those of `spec.start`; see `kdray.training.base.Trainer.fit`.

    Args:
        shard: this process's share of the work; None: all of it.

    Raises:
        ModelError: the network cannot be built for these images.
        ConfigError, TrainingError: see `kdray.training.loop.train`.
    """
    saved = None
    if last or on_state is not None:
        start = hashlib.blake2b(spec.start or b"").hexdigest()
        facts = spec.card.model, spec.mean, spec.std, spec.seed, round, final, start
        saved = Saved(training_key(spec.recipe, images, targets, *facts), last, on_state or (lambda state: None))
    making = _Making(spec, images, targets, round, on_epoch, shard, saved)
    if not final:
        return making.one(early(spec.recipe, len(images)))
    return making.kept(spec.recipe)


class _Making:
    """The networks that are trained for one student, one after another; those that are done are part of the state."""

    def __init__(
        self,
        spec: StudentSpec,
        images: Tensor,
        targets: Tensor,
        round: int,
        on_epoch: OnEpoch | None,
        shard: Shard | None,
        saved: Saved | None,
    ) -> None:
        self._spec, self._data, self._round, self._shard, self._saved = spec, (images, targets), round, shard, saved
        self._tell = on_epoch or (lambda done, of, loss: None)
        self._behind, self._epochs, self._networks = 0, 0, 0  # epochs of networks done, of all; networks done
        self._choices: dict[str, Choice] = {}
        self._beside: list[str] = []  # what is to be told of networks beside the student

    def one(self, recipe: Recipe) -> tuple[bytes, TrainResult]:
        """The student, trained alone."""
        self._epochs = length(recipe, len(self._data[0])).epochs
        model = self._fresh(self._spec.seed)
        result = self._trained(model, recipe, *self._data, self._spec.seed)
        return model_bytes(model, self._spec.card), result

    def kept(self, recipe: Recipe) -> tuple[bytes, TrainResult]:
        """The student that is kept, with all that its recipe asks for."""
        count, unpaid = len(self._data[0]), recipe.unpaid if isinstance(recipe, StudentSection) else None
        networks = 1 + (0 if unpaid is None else unpaid.students)
        self._epochs = self._epochs_of_choices(recipe) + networks * length(recipe, count).epochs
        if isinstance(recipe, StudentSection) and recipe.labels == "requery":  # copies are among the images
            recipe = recipe.model_copy(update={"augment": Nothing()})
        recipe = self._chosen(recipe)
        labeller = None if unpaid is None else self._labeller(recipe, unpaid)
        model = self._fresh(self._spec.seed)
        result = self._trained(model, recipe, *self._data, self._spec.seed, labeller)
        return model_bytes(model, self._spec.card), replace(result, choices=self._choices, beside=self._beside)

    def _fresh(self, seed: int, name: str | None = None) -> ImageClassifier:
        """A network before training: the student's, or the one of that name."""
        card, mean, std, start = self._spec.card, self._spec.mean, self._spec.std, self._spec.start
        name = name or card.model
        model = build_model(name, card.image_shape, card.num_classes, seed=seed, mean=mean, std=std)
        if start is not None and name == card.model:
            load_start(model.network, start)
        return model

    def _trained(
        self,
        model: ImageClassifier,
        recipe: Recipe,
        images: Tensor,
        targets: Tensor,
        seed: int,
        labeller: Labeller | None = None,
    ) -> TrainResult:
        """Train `model`, which ends in eval mode on the CPU."""
        behind = self._behind
        result = train(
            model,
            images,
            targets,
            recipe,
            seed=seed,
            round=self._round,
            threads=self._spec.threads,
            on_epoch=lambda done, of, loss: self._tell(behind + done, self._epochs, loss),
            shard=self._shard,
            unpaid=labeller,
            saved=self._saved,
        )
        self._behind += length(recipe, len(images)).epochs
        return result

    def _helper(
        self, recipe: Recipe, images: Tensor, targets: Tensor, seed: int, name: str | None = None, called: str = ""
    ) -> ImageClassifier:
        """A network beside the student; one that was done when the training was broken off is not trained again. Where
        it is `called` something, the user hears of a loss that was not finite."""
        number, self._networks = self._networks, self._networks + 1
        model = self._fresh(seed, name)
        if self._saved is not None and number < len(self._saved.done):
            if not self._saved.done[number]:
                raise TrainingError("it could not be trained before the training was broken off either")
            model.load_state_dict(self._saved.done[number])
            self._beside += self._saved.said[number]
            self._behind += length(recipe, len(images)).epochs
            return model.eval()
        result = self._trained(model, recipe, images, targets, seed)
        said = [f"{called}: {note}" for note in result.notes() if called]
        self._beside += said
        if self._saved is not None:
            self._saved.finish(model.state_dict(), said)
        return model

    def _labeller(self, recipe: Recipe, unpaid: Unpaid) -> Labeller:
        assert self._spec.pool is not None, "see `StudentSpec.pool`"
        device, seed = resolve_device(recipe.device), self._spec.seed
        students = []
        for number in range(unpaid.students):
            one = torch_seed(seed, f"student {number} that labels")
            students.append(self._helper(recipe, *self._data, one, unpaid.model, f"student {number} that labels"))
        ready = [student.to(device).to(memory_format=torch.channels_last) for student in students]
        return Labeller(unpaid, placed(self._spec.pool, device), ready, recipe.augment, device)

    # What is chosen by cross-validation

    def _epochs_of_choices(self, recipe: Recipe) -> int:
        count, short = len(self._data[0]), compared(recipe, len(self._data[0]), SHARE)
        return sum(
            number * length(short, count - held).epochs
            for _, changes in _open(recipe, self._spec.card.image_shape)
            for number, held in networks(len(changes), count)
        )

    def _chosen(self, recipe: Recipe) -> Recipe:
        """The recipe without anything that is still to be chosen."""
        for field, changes in _open(recipe, self._spec.card.image_shape):
            recipes = {name: recipe.model_copy(update=change) for name, change in changes.items()}
            self._choices[field] = self._choice(recipes)
            recipe = recipes[self._choices[field].name]
        return recipe

    def _choice(self, recipes: dict[str, Recipe]) -> Choice:
        def fitted(name: str, images: Tensor, targets: Tensor, fold: int) -> ImageClassifier | None:
            short = compared(recipes[name], len(self._data[0]), SHARE)
            try:
                return self._helper(short, images, targets, torch_seed(self._spec.seed, f"cross-validation {fold}"))
            except TrainingError:  # this recipe is no choice, and the others still are
                self._behind += length(short, len(images)).epochs
                if self._saved is not None and len(self._saved.done) < self._networks:
                    self._saved.finish({})
                return None

        return choose(list(recipes), *self._data, fit=fitted, seed=self._spec.seed, round=self._round)


def _open(recipe: Recipe, image_shape: tuple[int, int, int]) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Fields that are to be chosen, and for each the changes of the recipe to choose from, by name."""
    if isinstance(recipe.augment, Auto):
        kinds = recipe.augment.candidates(image_shape)
        yield "augment", {name: {"augment": one} for name, one in kinds.items()}
    if isinstance(recipe, StudentSection) and recipe.recipe == "auto":
        yield "recipe", recipe.variants()
