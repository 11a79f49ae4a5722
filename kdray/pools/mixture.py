"""Several pools as one, each with its share of the candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kdray.pools.base import Pool, PoolSection, pools
from kdray.pools.counter import CounterRandom, below
from kdray.pools.endless import EndlessSection
from kdray.pools.nested import built, naming
from kdray.pools.pairs import check_range
from kdray.pools.permutation import RandomOrder
from kdray.pools.several import SeveralSection, check_alike, source_names
from kdray.utils.lazy import torch
from kdray.utils.seeds import torch_seed

if TYPE_CHECKING:
    from torch import Tensor

CYCLE = 1000
"""Candidates within which every part has its share, rounded to whole candidates."""


def _usual() -> list[PoolSection]:
    """The pools of a mixture where none are named."""
    return [pools.parse(kind) for kind in ("lines", "spectrum")]


@pools.register
class MixtureSection(SeveralSection, EndlessSection):
    """The candidates are those of several pools, each with its share. There are as many as `candidates` says, or fewer
    if one of the pools runs out before."""

    kind: Literal["mixture"] = "mixture"
    of: Annotated[list[Annotated[PoolSection, pools]], Field(min_length=2, max_length=CYCLE)] = Field(
        default_factory=_usual
    )
    """The pools, each the kind alone, or a section with its kind and its other fields. The usual two are lines and
    spectrum."""
    shares: list[Annotated[float, Field(gt=0)]] | None = None
    """How much of the mixture each of them is, in proportion; without it they have equal shares."""

    @field_validator("of")
    @classmethod
    def _parts_are_pools_to_choose_from(cls, value: list[PoolSection]) -> list[PoolSection]:
        for number, one in enumerate(value):
            if len(one.kinds) > 1:
                raise ValueError(f"{number}: a pool of kind {one.kind} is several pools; name them one by one")
            if one in value[:number]:
                raise ValueError(f"{number}: this pool is named twice; give it a larger share (pool.shares)")
        return value

    @model_validator(mode="after")
    def _each_part_has_a_share(self) -> MixtureSection:
        if self.shares is not None and len(self.shares) != len(self.of):
            raise ValueError(f"shares: {len(self.shares)} given for {len(self.of)} pools; give one for each")
        if 0 in (weights := self._weights):
            raise ValueError(
                f"shares: that of pool {weights.index(0)} is less than one in {CYCLE:,} candidates; leave the pool "
                "out, or raise its share"
            )
        return self

    @property
    def drawn(self) -> bool:
        """See `EndlessSection`."""
        return all(isinstance(one, EndlessSection) and one.drawn for one in self.of)

    @property
    def _weights(self) -> list[int]:
        return whole_shares(self.shares or [1.0] * len(self.of))

    def enlarged(self, images: int) -> str:
        """See `PoolSection`."""
        return "raise pool.candidates, and the sizes of the pools in pool.of that run out"

    def sized(self, images: int, queries: int) -> tuple[PoolSection, str | None]:
        """See `PoolSection`."""
        sized, note = super().sized(images, queries)
        parts = [
            one if isinstance(one, EndlessSection) else one.sized(images, -(-queries * weight // CYCLE))[0]
            for one, weight in zip(self.of, self._weights, strict=True)
        ]
        if (sized, parts) == (self, self.of):
            return self, None
        return sized.model_copy(update={"of": parts}), note if parts == self.of and self.drawn else None

    def build(self, images: Tensor, seed: int) -> MixturePool:
        """See `PoolSection`."""
        parts = []
        for number, (one, weight) in enumerate(zip(self.of, self._weights, strict=True)):
            own_seed = torch_seed(seed, "mixture", number)  # else two parts of one kind would draw alike
            enough = one
            if isinstance(one, EndlessSection) and one.candidates == "auto":
                enough = one.with_size(-(-self.size // CYCLE) * weight)
            pool = built(enough, images, own_seed, f"pool.of.{number}")
            parts.append(Part(pool, weight, None if isinstance(one, EndlessSection) else own_seed))
        return MixturePool(parts, min(self.size, capacity(parts)))


def whole_shares(shares: Sequence[float]) -> list[int]:
    """Positive shares, in proportion, as whole numbers of a `CYCLE`: rounded down, and what is left over goes to those
    that lost most by that (the largest remainders)."""
    exact = [CYCLE * Fraction(share) / sum(map(Fraction, shares)) for share in shares]
    whole = [int(one) for one in exact]
    by_loss = sorted(range(len(exact)), key=lambda number: whole[number] - exact[number])
    for number in by_loss[: CYCLE - sum(whole)]:
        whole[number] += 1
    return whole


def turns(weights: Sequence[int]) -> list[int]:
    """The numbers of the parts whose turn it is, one after another, as often as their weights say and evenly spread."""
    order = [(Fraction(2 * k + 1, 2 * weight), number) for number, weight in enumerate(weights) for k in range(weight)]
    return [number for _, number in sorted(order)]


@dataclass(frozen=True)
class Part:
    """One of the pools of a mixture.

    Attributes:
        weight: candidates of it in a cycle.
        seed: its groups are taken in a random order of this seed, one candidate of each; None: its candidates are
            taken as they come.
    """

    pool: Pool
    weight: int
    seed: int | None

    def candidates(self, ranks: Tensor) -> Tensor:
        """Ids that the pool has for the candidates that are taken of it at `ranks`, int64 [B]."""
        if self.seed is None:
            return ranks
        groups = RandomOrder(self.pool.num_groups, self.seed)(ranks)
        members = below(CounterRandom(self.seed, "member", 1)(groups)[0], self.pool.group_size)
        return groups * self.pool.group_size + members


def capacity(parts: Sequence[Part]) -> int:
    """How many candidates a mixture has before one of its parts runs out."""
    order = turns([part.weight for part in parts])

    def until(number: int, part: Part) -> int:
        cycles, rest = divmod(part.pool.num_groups, part.weight)
        return cycles * CYCLE + [place for place, one in enumerate(order) if one == number][rest]

    return min(until(number, part) for number, part in enumerate(parts))


class MixturePool:
    """Several pools as one: candidates take turns, so any first part of the pool has the same shares. Each candidate is
    a group of its own, and of a part's groups none gives two.

    Args:
        parts: at least one, over the same images; their weights sum to `CYCLE`.
        count: number of candidates, see `capacity`.

    Raises:
        ConfigError: see `check_alike`.
    """

    linear = False
    real = False
    source = "mixture"
    group_size = 1

    def __init__(self, parts: Sequence[Part], count: int) -> None:
        pools = [part.pool for part in parts]
        check_alike(pools)
        self.images, self.image_shape = pools[0].images, pools[0].image_shape
        self.parts, self._count = tuple(parts), count
        order = torch.tensor(turns([part.weight for part in parts]))
        self._order = order
        self._earlier = torch.stack([(order == number).cumsum(0) for number in range(len(parts))])  # [parts, CYCLE]

    def __len__(self) -> int:
        return self._count

    @property
    def num_groups(self) -> int:
        """Number of candidates."""
        return self._count

    def to(self, device: str | torch.device) -> MixturePool:
        """See `Pool`."""
        return MixturePool([replace(part, pool=part.pool.to(device)) for part in self.parts], self._count)

    def name_errors(self, section: PoolSection, field: str) -> MixturePool:
        """See `naming`."""
        parts = [replace(part, pool=naming(part.pool, section, field)) for part in self.parts]
        return MixturePool(parts, self._count)

    def _place(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the parts of candidates int64 [B], and the candidates' ranks in them."""
        check_range(ids, len(self), "ids")
        cycles, slots = ids // CYCLE, ids % CYCLE
        numbers = self._order.to(ids.device)[slots]
        weights = torch.tensor([part.weight for part in self.parts], device=ids.device)
        return numbers, cycles * weights[numbers] + self._earlier.to(ids.device)[numbers, slots] - 1

    def render(self, ids: Tensor) -> Tensor:
        """See `Pool`."""
        numbers, ranks = self._place(ids.to(self.images.device))
        rendered = self.images.new_empty((len(ids), *self.image_shape))
        for number, part in enumerate(self.parts):
            mine = (numbers == number).nonzero().flatten()
            if len(mine):
                rendered[mine] = part.pool.render(part.candidates(ranks[mine]))
        return rendered

    def batches(self, groups: Tensor, step: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """See `Pool`."""
        yield from (self.render(part) for part in groups.split(step))

    def describe(self, ids: Tensor) -> dict[str, list[Any]]:
        """Columns for the record: the `kind` of each candidate."""
        names = source_names([part.pool for part in self.parts])
        return {"kind": [names[number] for number in self._place(ids)[0].tolist()]}

    def middle(self) -> int:
        """Index of the only candidate of a group."""
        return 0
