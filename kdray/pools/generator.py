"""IDEAL's pool: each round trains a generator against its student, and the candidates are what that draws
("IDEAL: Query-Efficient Data-Free Learning from Black-Box Models", Zhang, Chen and Lyu, ICLR 2023).

A candidate's noise follows from the run's seed, the round and the id, and its label from the id: they take turns. The
bits of an image follow from the machine too, since a network computes in floats: a run that is resumed elsewhere may
find other images under the same ids. What was bought stays as it was bought.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kdray.errors import PoolExhausted, TrainingError
from kdray.generate.base import GeneratorName, build_generator
from kdray.pools.base import PoolSection, pools
from kdray.pools.procedural.base import ProceduralPool
from kdray.pools.procedural.normal import TableIndices, normal_table
from kdray.pools.remade import Basis, Made
from kdray.utils.devices import cpu_threads
from kdray.utils.lazy import torch
from kdray.utils.seeds import torch_generator, torch_seed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kdray.generate.train import GeneratorRecipe

_LEAST = 100  # candidates where no round chooses
_SCALE = 1 << 12  # of the table of normal numbers
_TRIES = 20  # candidates that are tried for each that `ask_below` keeps, at most
_UNKNOWN_CLASSES = 10  # of a generator before there is a student
_WEIGHTS = "generator."


@pools.register
class GeneratorSection(PoolSection):
    """The candidates are images of a generator, which each round trains anew so that its student is sure of their
    classes (IDEAL). No image is needed, and the teacher is asked about what the strategy chooses alone."""

    remade = True
    untaught = True
    kind: Literal["generator"] = "generator"
    network: GeneratorName = "dcgan"
    """The generator: `dcgan`, `stylegan` or `transformer` (Table 6), of 0.5, 0.5 and 2.6 million weights at 32 x 32, or
    your own as module:object. dcgan grows with the images: at 224 x 224 it has 22 million."""
    steps: Annotated[int, Field(ge=1)] = 5
    """E_G, training steps of a round's generator. Many more make images that the student knows better and learns less
    from."""
    weight: float | None = 5.0
    """λ, the weight of the information loss, which keeps the classes balanced. null trains without it (Table 4)."""
    cross_entropy: bool = True
    """Whether the generator learns to make images of given classes; false leaves that loss out (Table 4)."""
    restart: bool = True
    """Whether each round starts from fresh weights; false goes on with those of the round before (Table 4)."""
    conditional: bool = True
    """Whether the generator is told the class that an image should have. With noise alone, as equation 1 has it, an
    image cannot follow its label."""
    batch: Annotated[int, Field(ge=2)] = 250
    """Images a training step."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of Adam."""
    noise: Annotated[int, Field(ge=1, le=4096)] = 100
    """Normal numbers of each image."""
    ask_below: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep only candidates on which the student's confidence is below this (QEDG, AAAI 2025); null keeps all. A round
    that finds too few asks fewer queries."""
    requery: bool = False
    """Ask again about all images so far in every round, as IDEAL's released code does, and train on these answers. Each
    is paid for: E rounds of B new images are B E (E + 1) / 2 queries. A teacher that always answers alike says nothing
    new; false asks once about an image."""
    candidates: Annotated[int, Field(ge=1, lt=1 << 31)] | Literal["auto"] = "auto"
    """Candidates of each round. auto: as many as the largest round asks about, as in IDEAL, where all are alike, or ten
    times as many if the choice looks at them (another strategy than random, or `select.balance`)."""

    @field_validator("weight")
    @classmethod
    def _weight_is_positive(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"the weight of the information loss is above 0, got {value:g}; null trains without it")
        return value

    @model_validator(mode="after")
    def _there_is_a_loss(self) -> GeneratorSection:
        if self.weight is None and not self.cross_entropy:
            raise ValueError(
                "cross_entropy is false and weight is null, which leaves the generator no loss; set one of them"
            )
        return self

    @property
    def asks_again(self) -> bool:
        """See `PoolSection`."""
        return self.requery

    @property
    def recipe(self) -> GeneratorRecipe:
        """How a round's generator is trained."""
        from kdray.generate.train import GeneratorRecipe

        return GeneratorRecipe(
            steps=self.steps, batch=self.batch, lr=self.lr, weight=self.weight, cross_entropy=self.cross_entropy
        )

    def sized(self, images: int, queries: int) -> tuple[PoolSection, str | None]:
        """See `PoolSection`; `queries` are the candidates that a round looks at."""
        if self.candidates != "auto" or queries == 0:
            return self, None
        return self.model_copy(update={"candidates": queries}), f"pool.candidates: auto makes {queries:,} a round"

    def notes_on(self, classes: int) -> list[str]:
        """Where labels do not divide evenly among the classes; see `PoolSection`."""
        counts = {"pool.batch": self.batch, "pool.candidates, or select.per_round where it is auto": self.candidates}
        return [
            f"{field}: {count:,} images do not divide evenly among {classes:,} classes; the first {count % classes:,} "
            "have one more each"
            for field, count in counts.items()
            if isinstance(count, int) and count % classes
        ]

    def enlarged(self, images: int) -> str:
        """See `PoolSection`."""
        return "raise pool.candidates"

    def build(self, images: Tensor, seed: int) -> GeneratorPool:
        """See `PoolSection`."""
        return GeneratorPool(images, self, seed)


class GeneratorPool(ProceduralPool):
    """What a round's generator draws; before round 1, what one draws that is not trained.

    Args:
        images: uint8 [N, C, H, W], the user's; a candidate has their shape.
        section: how generators are made.
        seed: the run's seed.
        number: of the round.
        tensors: what `make` gave; None before round 1.
    """

    def __init__(
        self,
        images: Tensor,
        section: GeneratorSection,
        seed: int,
        number: int = 0,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._section, self._seed = section, seed
        shape = (images.shape[1], images.shape[2], images.shape[3])
        classes = _UNKNOWN_CLASSES if tensors is None else int(tensors["classes"])
        generator = self._generator(classes, number, shape)
        if tensors is not None:
            _load(generator, tensors)
        self._drawn = GeneratorPainter(
            generator.eval(),
            classes=classes,
            noise=section.noise,
            conditional=section.conditional,
            seed=torch_seed(seed, "noise of candidates", number),
            kept=None if tensors is None else tensors.get("kept"),
        )
        count = _LEAST if section.candidates == "auto" else section.candidates
        super().__init__(images, self._drawn, count if self._drawn.kept is None else len(self._drawn.kept), "generator")

    def describe(self, ids: Tensor) -> dict[str, list[Any]]:
        """Columns for the record: the class that the generator was told, or trained for."""
        return {"wanted": self._drawn.labels(ids).tolist()}

    def made(self, number: int, tensors: Mapping[str, Tensor]) -> GeneratorPool:
        """See `RemadePool`."""
        return GeneratorPool(self.images, self._section, self._seed, number, tensors)

    def make(self, basis: Basis) -> Made:
        """See `RemadePool`.

        Raises:
            PoolExhausted: the student is sure of every candidate that was tried.
            TrainingError: the generator's loss is not finite, or no student can be as unsure as `ask_below` wants.
        """
        from kdray.generate.train import train_generator

        section, number = self._section, basis.number
        student = basis.student.to(basis.device)
        with torch.no_grad():
            classes = student(torch.zeros(1, *self.image_shape, dtype=torch.uint8, device=basis.device)).shape[1]
        if section.ask_below is not None and section.ask_below * classes <= 1:
            raise TrainingError(
                f"pool.ask_below: a student of {classes:,} classes is at least {1 / classes:.3g} sure of every image, "
                f"and none is below {section.ask_below:g}. Start a new run with a higher one, such as 0.7"
            )
        generator = self._generator(classes, number, self.image_shape)
        if not section.restart and basis.last is not None:
            _load(generator, basis.last)
        losses = train_generator(
            generator.to(basis.device),
            student,
            section.recipe,
            classes=classes,
            noise=section.noise,
            conditional=section.conditional,
            random=torch_generator(self._seed, "training of generators", number),
            on_progress=basis.on_progress,
        )
        if not all(map(isfinite, losses)):
            loss = "" if section.weight is None else f" and an information loss of weight {section.weight:g}"
            raise TrainingError(
                f"pool.lr: the generator of round {number} diverged, its loss is not finite with a learning rate of "
                f"{section.lr:g}{loss}; the rest of the budget is kept. Start a new run with a lower pool.lr"
                + (" or pool.weight" if loss else "")
            )
        tensors = {f"{_WEIGHTS}{name}": value.detach().cpu() for name, value in generator.state_dict().items()}
        tensors["classes"] = torch.tensor(classes)
        facts: dict[str, Any] = {"losses": losses}
        notes = section.notes_on(classes) if number == 1 else []
        if section.ask_below is not None:
            kept, tried = self.made(number, tensors)._unsure(student.cpu(), section.ask_below, len(self))
            if len(kept) == 0:
                raise PoolExhausted(
                    f"pool.ask_below: the student is {section.ask_below:g} sure, or more, of all {tried:,} candidates "
                    f"that round {number} tried; the rest of the budget is kept. Start a new run with a higher "
                    "ask_below, or fewer pool.steps"
                )
            if len(kept) < len(self):
                notes.append(
                    f"pool.ask_below: round {number} found {len(kept):,} of {len(self):,} candidates of which the "
                    f"student is less than {section.ask_below:g} sure, and tried {tried:,}"
                )
            tensors["kept"], facts["tried"] = kept, tried
        return Made(tensors=tensors, facts=facts, notes=notes)

    def _generator(self, classes: int, number: int, shape: tuple[int, int, int]) -> nn.Module:
        """A generator with the fresh weights of a round."""
        code = self._section.noise + (classes if self._section.conditional else 0)
        return build_generator(self._section.network, code, shape, torch_seed(self._seed, "generator", number))

    def _unsure(self, student: nn.Module, below: float, wanted: int) -> tuple[Tensor, int]:
        """Numbers, int64, of the first `wanted` candidates on which the student's confidence is below `below`, or of
        fewer; and how many candidates were looked at."""
        found: list[Tensor] = []
        tried, step = 0, 256
        with torch.inference_mode():
            while tried < _TRIES * wanted and sum(len(part) for part in found) < wanted:
                numbers = torch.arange(tried, tried + step)
                images = torch.cat([self._drawn(part) for part in numbers.split(self._drawn.batch)])
                found.append(numbers[student(images).softmax(dim=1).amax(dim=1) < below])
                tried += step
        return torch.cat(found)[:wanted].clone(), tried


class GeneratorPainter:
    """Draws the candidates of a generator; see `kdray.pools.procedural.base.Painter`.

    Args:
        generator: in eval mode.
        classes: K.
        noise: normal numbers of an image.
        conditional: see `GeneratorSection`.
        seed: of the noise.
        kept: int64 [N], numbers of the candidates that are in the pool; None: every id is one.
    """

    batch = 32  # always: the bits of an image may depend on it

    def __init__(
        self, generator: nn.Module, *, classes: int, noise: int, conditional: bool, seed: int, kept: Tensor | None
    ) -> None:
        self._generator, self._classes, self._conditional, self.kept = generator, classes, conditional, kept
        self._indices, self._table = TableIndices(seed, "generator", noise), normal_table(_SCALE)

    def _numbers(self, ids: Tensor) -> Tensor:
        return ids if self.kept is None else self.kept.to(ids.device)[ids]

    def labels(self, ids: Tensor) -> Tensor:
        """The class that each candidate should have, int64 [B]."""
        return self._numbers(ids) % self._classes

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Painter`; at most `batch` ids."""
        from kdray.generate.train import codes_of

        padded = torch.cat([ids, ids.new_zeros(self.batch - len(ids))])
        noise = self._table.to(ids.device)[self._indices(self._numbers(padded))].to(torch.float32) / _SCALE
        generator = self._generator.to(ids.device)
        with torch.no_grad(), cpu_threads(1):
            images: Tensor = generator(codes_of(noise, self.labels(padded), self._classes, self._conditional))
            return images[: len(ids)].mul(255.0).round_().to(torch.uint8)


def _load(generator: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = {name.removeprefix(_WEIGHTS): value for name, value in tensors.items() if name.startswith(_WEIGHTS)}
    generator.load_state_dict(own)
