"""Several pools over the same images, of which a run finds out the one whose candidates teach most."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from kdray.errors import ConfigError
from kdray.pools.base import Pool, PoolSection, pools
from kdray.pools.nested import built
from kdray.pools.pairs import check_range
from kdray.pools.permutation import sample_without
from kdray.pools.several import SeveralSection, check_alike, source_names
from kdray.sections.search import SearchSettings
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def _usual() -> list[PoolSection]:
    """The kinds that are tried where none are named."""
    pairs = [{"kind": "pairs", "blend": "cutmix", "pre": pre} for pre in ("none", "affine", "flip-crop")]
    return [pools.parse(one) for one in ({"kind": "mixup"}, *pairs)]


@pools.register
class AutoSection(SeveralSection):
    """Round 1 asks about random candidates of each of several kinds, and round 2 begins by finding out which kind
    teaches most: by students that learn from the candidates of one kind, and their agreement with answers to images
    that were held out from them. The rounds after that choose candidates of that kind."""

    kind: Literal["auto"] = "auto"
    of: Annotated[list[Annotated[PoolSection, pools]], Field(min_length=2)] = Field(default_factory=_usual)
    """The kinds to try, each the kind alone, or a section with its kind and its other fields. Of kinds that do equally
    well the first is taken. The usual four are mixup, and cut pairs of images as they are, affine and flip-crop."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the queries after round 0 that round 1 has. Its answers are learnt from like all others."""

    @field_validator("of")
    @classmethod
    def _kinds_differ(cls, value: list[PoolSection]) -> list[PoolSection]:
        for number, one in enumerate(value):
            if isinstance(one, AutoSection):
                raise ValueError(f"{number}: a pool of kind auto cannot be one of those that it tries")
            if one in value[:number]:
                raise ValueError(f"{number}: this pool is named twice; every one must differ")
        return value

    @model_validator(mode="after")
    def _one_search_for_all(self) -> AutoSection:
        settings = [
            {name: getattr(one, name) for name in SearchSettings.model_fields}
            for one in self.of
            if isinstance(one, SearchSettings)
        ]
        for one in settings:
            if one != settings[0]:
                name = next(name for name in one if one[name] != settings[0][name])
                raise ValueError(
                    f"pool.of: {name} is {settings[0][name]} of one kind and {one[name]} of another, but a run "
                    "searches in one way; give both the same"
                )
        return self

    @property
    def kinds(self) -> tuple[PoolSection, ...]:
        """See `PoolSection`."""
        return tuple(self.of)

    def trial(self, queries: int) -> int:
        """See `PoolSection`."""
        count = max(len(self.of), round(self.share * queries))
        if count >= queries:
            raise ConfigError(
                f"pool.share: {count:,} of the {queries:,} queries after round 0 are for trying {len(self.of)} kinds "
                "of candidates, which leaves none to choose; raise budget.queries, or name one kind of pool"
            )
        return count

    def sized(self, images: int, queries: int) -> tuple[PoolSection, str | None]:
        """See `PoolSection`."""
        sized = [one.sized(images, queries) for one in self.of]
        if all(new is old for (new, _), old in zip(sized, self.of, strict=True)):
            return self, None
        notes = dict.fromkeys(note for _, note in sized if note)
        return self.with_parts(section for section, _ in sized), "; ".join(notes) or None

    def build(self, images: Tensor, seed: int) -> KindsPool:
        """See `PoolSection`."""
        return KindsPool([built(one, images, seed, f"pool.of.{number}") for number, one in enumerate(self.of)])


class KindsPool:
    """Several pools as one. The ids of each kind follow those of the kind before; each candidate is its own group.

    Args:
        kinds: at least one, over the same images.

    Raises:
        ConfigError: the candidates of a kind are the images themselves, or of another shape than the others'.
    """

    linear = False
    real = False
    source = "several kinds"
    group_size = 1

    def __init__(self, kinds: Sequence[Pool]) -> None:
        self.kinds = tuple(kinds)
        self.images, self.image_shape = kinds[0].images, kinds[0].image_shape
        check_alike(kinds)
        self._edges = [0, *accumulate(len(kind) for kind in kinds)]

    @property
    def names(self) -> list[str]:
        """A name of each kind, see `source_names`."""
        return source_names(self.kinds)

    @property
    def num_groups(self) -> int:
        """Number of candidates."""
        return len(self)

    def __len__(self) -> int:
        return self._edges[-1]

    def to(self, device: str | torch.device) -> KindsPool:
        """See `Pool`."""
        return KindsPool([kind.to(device) for kind in self.kinds])

    def check_trial(self, count: int) -> None:
        """Refuse a trial of `count` candidates that `draw` could not draw.

        Raises:
            ConfigError: a kind has too few groups.
        """
        for number, kind in enumerate(self.kinds):
            if (wanted := self._share(number, count)) > kind.num_groups:
                raise ConfigError(
                    f"pool.of.{number}: {wanted:,} candidates wanted for the trial of this kind, and it has "
                    f"{kind.num_groups:,} groups; lower pool.share, raise the size of this "
                    "kind, or give more images (images.count)"
                )

    def _share(self, number: int, count: int) -> int:
        return len(range(number, count, len(self.kinds)))

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Ids of `count` random candidates, int64: equally many of each kind (the first kinds have one more where they
        do not divide evenly), at most one of a group. The kinds take turns, so any first part of them is even too.

        Raises:
            ConfigError: see `check_trial`.
        """
        self.check_trial(count)
        drawn = []
        for number, kind in enumerate(self.kinds):
            wanted = self._share(number, count)
            groups = sample_without(kind.num_groups, wanted, np.empty(0, np.int64), generator)
            drawn.append(self.outer(number, groups * kind.group_size + kind.middle()))
        ids = np.empty(count, np.int64)
        for number, some in enumerate(drawn):
            ids[number :: len(self.kinds)] = some
        return ids

    def outer(self, number: int, ids: np.ndarray) -> np.ndarray:
        """Ids here of candidates that a kind calls `ids`, int64."""
        return ids + self._edges[number]

    def inner(self, number: int, ids: np.ndarray) -> np.ndarray:
        """Of candidates int64 those of a kind, by the ids that it has for them."""
        begin, end = self._edges[number : number + 2]
        return ids[(ids >= begin) & (ids < end)] - begin

    def numbers(self, ids: Tensor) -> Tensor:
        """The number of the kind of each candidate, int64 [B].

        Raises:
            IndexError: an id is out of range.
        """
        check_range(ids, len(self), "ids")
        return torch.tensor([bisect_right(self._edges, one) - 1 for one in ids.tolist()], dtype=torch.int64)

    def render(self, ids: Tensor) -> Tensor:
        """See `Pool`."""
        check_range(ids, len(self), "ids")
        ids = ids.to(self.images.device)
        rendered = self.images.new_empty((len(ids), *self.image_shape))
        for kind, (begin, end) in zip(self.kinds, pairwise(self._edges), strict=True):
            mine = ((ids >= begin) & (ids < end)).nonzero().flatten()
            if len(mine):
                rendered[mine] = kind.render(ids[mine] - begin)
        return rendered

    def batches(self, groups: Tensor, step: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """See `Pool`."""
        yield from (self.render(part) for part in groups.split(step))

    def describe(self, ids: Tensor) -> dict[str, list[Any]]:
        """Columns for the record: the `kind` of each candidate."""
        names = self.names
        return {"kind": [names[number] for number in self.numbers(ids).tolist()]}

    def middle(self) -> int:
        """Index of the only candidate of a group."""
        return 0
