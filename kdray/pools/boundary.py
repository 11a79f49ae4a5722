"""A pool whose candidates lie in pairs on both sides of the student's decision boundaries, made anew in each round.

The pairs are those of "What Makes a Good Dataset for Knowledge Distillation?", section 4.1; see
`kdray.models.boundary`. There the teacher's gradients lead to its own boundaries. A teacher that shows its answers
alone has none to give, so the student's lead to the student's boundaries, and the teacher's answers say where its own
are.

A round takes all candidates that it makes, so that a pair is bought as a whole: what to choose from is which images
are moved, and to which class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from kdray.errors import PoolExhausted
from kdray.pools.base import Pool, PoolSection, pools, rendered
from kdray.pools.counter import CounterRandom, below
from kdray.pools.endless import EndlessSection
from kdray.pools.listed import ListedPool
from kdray.pools.mixture import Part
from kdray.pools.nested import built, named, renamed
from kdray.pools.pairs import check_range
from kdray.pools.remade import Made
from kdray.pools.sample import LEAST
from kdray.sections.boundary import BoundarySettings
from kdray.utils.lazy import torch
from kdray.utils.seeds import torch_seed

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.pools.remade import Basis

_moved = pools.with_default("lines")
_ENDLESS = 1 << 60  # candidates of a pool that does not run out
_OF_A_ROUND = 1 << 40  # of these
_TRIES = 4  # images that are moved for each pair that is wanted, before a round makes do with fewer
_LEAST = 64  # images moved at a time


@pools.register
class BoundarySection(BoundarySettings, PoolSection):
    """The candidates are pairs of images on both sides of a decision boundary of the newest student: the candidates of
    another pool, moved by the student's gradients until they cross it ("What Makes a Good Dataset for Knowledge
    Distillation?", section 4.1). Each round makes as many as it asks about, and takes them all."""

    remade: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    kind: Literal["boundary"] = "boundary"
    of: Annotated[PoolSection, _moved] = Field(default_factory=_moved.default)
    """The pool whose candidates are moved. They are not asked about themselves."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a round's candidates that are pairs, of which each round has at least one. The others are candidates of
    the pool `of` as they are; a round that finds none that was not asked about before asks fewer queries."""
    gradients: Literal["student", "teacher"] = "student"
    """Whose gradients move the images, and whose boundaries are crossed. teacher: its own, for a local teacher with a
    named network, whose weights may be looked into. That asks no queries; the pairs are asked about as always."""

    @field_validator("of")
    @classmethod
    def _one_that_stays(cls, value: PoolSection) -> PoolSection:
        if value.remade or len(value.kinds) > 1:
            raise ValueError(f"the candidates of {value.kind} are not the same all along; name another pool")
        return value

    @model_validator(mode="after")
    def _images_are_moved(self) -> BoundarySection:
        if self.of.kind == "images" and self.share < 1:
            raise ValueError(
                f"share is {self.share:g}, but the other candidates would be images, which round 0 asks about; set "
                "share to 1, or name another pool in of"
            )
        return self

    @property
    def white_box(self) -> bool:
        """See `PoolSection`."""
        return self.gradients == "teacher"

    def recorded(self, other: PoolSection) -> PoolSection:
        """See `PoolSection`."""
        return self._over(self.of.recorded(other.of)) if isinstance(other, BoundarySection) else self

    def resolved(self, image_shape: tuple[int, int, int]) -> tuple[PoolSection, list[str]]:
        """See `PoolSection`."""
        with named(self.of, "pool.of"):
            of, notes = self.of.resolved(image_shape)
        return self._over(of), [renamed(note, self.of, "pool.of") for note in notes]

    def enlarged(self, images: int) -> str:
        """See `PoolSection`."""
        return self.of.enlarged(images).replace("pool.", "pool.of.")

    def _over(self, of: PoolSection) -> BoundarySection:
        return self.model_copy(update={"of": of})

    def build(self, images: Tensor, seed: int) -> BoundaryPool:
        """See `PoolSection`."""
        own_seed = torch_seed(seed, "boundary")  # the images of round 0 may be drawn from the same pool
        of = self.of
        if isinstance(of, EndlessSection) and of.candidates == "auto":
            of = of.with_size(_ENDLESS).showing(LEAST)
        return BoundaryPool(self, built(of, images, own_seed, "pool.of"), own_seed)


class BoundaryPool:
    """Before there is a student, the candidates that are to be moved; `made` gives those of a round.

    Args:
        section: says how they are moved.
        of: the candidates to move. If they do not run out, each round has some of its own; else each moves any of them,
            in another random order, and none is taken twice as it is.
        seed: of this order, and of the target classes.
    """

    linear = False
    real = False
    source = "boundary"
    group_size = 1

    def __init__(self, section: BoundarySection, of: Pool, seed: int) -> None:
        self.images, self.image_shape = of.images, of.image_shape
        self._section, self._of, self._seed = section, of, seed
        self._endless = len(of) >= _ENDLESS
        self._sources = _OF_A_ROUND if self._endless else of.num_groups

    def __len__(self) -> int:
        """Candidates that a round can make without moving one image twice."""
        return int(self._sources / (self._section.share / len(self._section.sides) + 1.0 - self._section.share))

    @property
    def num_groups(self) -> int:
        """Number of candidates."""
        return len(self)

    def to(self, device: str | torch.device) -> BoundaryPool:
        """See `Pool`."""
        return BoundaryPool(self._section, self._of.to(device), self._seed)

    def render(self, ids: Tensor) -> Tensor:
        """See `Pool`."""
        check_range(ids, len(self), "ids")
        return self._of.render(self._moved(0, ids))

    def batches(self, groups: Tensor, step: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """See `Pool`."""
        yield from (self.render(part) for part in groups.split(step))

    def describe(self, ids: Tensor) -> dict[str, list[Any]]:
        """See `Pool`."""
        return {"kind": [self._of.source] * len(ids)}

    def middle(self) -> int:
        """Index of the only candidate of a group."""
        return 0

    def _moved(self, number: int, ranks: Tensor) -> Tensor:
        """Ids that the pool `of` has for the candidates that a round takes of it at `ranks`, int64 [B]."""
        if self._endless:
            return number * _OF_A_ROUND + ranks % _OF_A_ROUND
        part = Part(self._of, 1, torch_seed(self._seed, "order", number))
        return part.candidates(ranks % self._sources)

    def make(self, basis: Basis) -> Made:
        """See `kdray.pools.remade.RemadePool`.

        Raises:
            PoolExhausted: too few images crossed a boundary, and the others cannot take their places.
        """
        wanted = min(basis.count, max(len(self._section.sides), round(self._section.share * basis.count)))
        others = basis.count - wanted
        pairs = -(-wanted // len(self._section.sides))
        images, moved, tried = self._cross(basis, pairs, others)
        images = images.flatten(0, 1)[:wanted]
        notes = []
        if missing := wanted - len(images):
            what = (
                f"{len(moved):,} of {tried:,} images of {self._of.source} gave a boundary pair in round "
                f"{basis.number}, and {pairs:,} are wanted"
            )
            if self._of.real:
                raise PoolExhausted(f"{what}; raise pool.steps or pool.threshold, or name another pool in pool.of")
            notes.append(f"{what}: {missing:,} candidates are images that were not moved")
        plain, used = self._plain(basis, others, others + tried, missing)
        if fewer := others + missing - len(plain):
            notes.append(
                f"round {basis.number} asks about {fewer:,} candidates fewer: all {self._sources:,} of "
                f"{self._of.source} were asked about as they are"
            )
        rows, none = torch.arange(len(images)), torch.full_like(plain, -1)
        return Made(
            tensors={
                "images": torch.cat([images, rendered(self._of, plain)]),
                "of": torch.cat([moved[rows // len(self._section.sides)], plain]),
                "pair": torch.cat([rows // len(self._section.sides), none]),
                "side": torch.cat([rows % len(self._section.sides), none]),
                "used": torch.tensor(used),
            },
            facts={"moved": tried, "found": len(moved)},
            notes=notes,
        )

    def _plain(self, basis: Basis, others: int, rank: int, missing: int) -> tuple[Tensor, int]:
        """Ids that `of` has for candidates that are not moved, int64: `others`, and as many as are `missing`, in an
        endless pool from `rank` of the round on; and of how many from the start no later round may take any."""
        if self._endless:
            return self._moved(basis.number, torch.cat([torch.arange(others), rank + torch.arange(missing)])), 0
        before = 0 if basis.last is None else int(basis.last.get("used", 0))
        used = min(self._sources, before + others + missing)
        return self._moved(0, torch.arange(before, used)), used

    def _cross(self, basis: Basis, pairs: int, first: int) -> tuple[Tensor, Tensor, int]:
        """Move images from rank `first` on until so many pairs are found, or too many images were tried.

        Returns:
            The images of at most `pairs` pairs, uint8 [P, S, C, H, W]; the ids that `of` has for the images that were
            moved, int64 [P]; how many were tried.
        """
        from kdray.models.boundary import boundary_pairs
        from kdray.models.predict import predict

        network = basis.student.to(basis.device) if basis.teacher is None else basis.teacher
        device = str(next(network.parameters()).device)
        random = CounterRandom(torch_seed(self._seed, "targets", basis.number), "targets", 1)
        sides = (0, len(self._section.sides), *self.image_shape)
        images, moved, tried = torch.empty(sides, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), 0
        while len(moved) < pairs and tried < _TRIES * pairs:
            ranks = first + tried + torch.arange(max(_LEAST, pairs - len(moved)))
            ids = self._moved(basis.number, ranks)
            start = rendered(self._of, ids)
            probs = predict(network, start, device=device)
            # Any class but the network's own, each as likely.
            away = 1 + below(random(ranks)[0], probs.shape[1] - 1)
            found = boundary_pairs(network, start, (probs.argmax(dim=1) + away) % probs.shape[1], self._section)
            images, moved = torch.cat([images, found.images]), torch.cat([moved, ids[found.rows]])
            tried += len(ranks)
            basis.on_progress(min(len(moved), pairs), pairs)
        return images[:pairs], moved[:pairs], tried

    def made(self, number: int, tensors: Mapping[str, Tensor]) -> ListedPool:
        """See `kdray.pools.remade.RemadePool`."""
        names, other = self._section.sides, self._of.source
        sides = [None if side < 0 else names[side] for side in tensors["side"].tolist()]
        return ListedPool(
            tensors["images"],
            {
                "kind": [other if side is None else f"{self.source}: {side}" for side in sides],
                "of": tensors["of"].tolist(),
                "pair": [None if pair < 0 else pair for pair in tensors["pair"].tolist()],
                "side": sides,
            },
            self.source,
        )
