"""What pools that consist of several pools have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Self

from pydantic import field_validator

from kdray.errors import ConfigError
from kdray.pools.base import Pool, PoolSection, pools
from kdray.pools.nested import named, renamed


class SeveralSection(PoolSection):
    """The section of a pool that consists of several pools."""

    of: list[Annotated[PoolSection, pools]]

    @field_validator("of")
    @classmethod
    def _stay_as_they_are(cls, value: list[PoolSection]) -> list[PoolSection]:
        for number, one in enumerate(value):
            if one.remade:
                raise ValueError(
                    f"{number}: each round makes the candidates of {one.kind} anew, and other pools stay as they are; "
                    f"name {one.kind} alone"
                )
        return value

    def recorded(self, other: PoolSection) -> PoolSection:
        """See `PoolSection`."""
        if not isinstance(other, SeveralSection) or len(self.of) != len(other.of):
            return self
        return self.with_parts(one.recorded(its) for one, its in zip(self.of, other.of, strict=True))

    def resolved(self, image_shape: tuple[int, int, int]) -> tuple[PoolSection, list[str]]:
        """See `PoolSection`."""
        resolved, told = [], []
        for number, one in enumerate(self.of):
            field = f"pool.of.{number}"
            with named(one, field):
                section, notes = one.resolved(image_shape)
            resolved.append(section)
            told += [renamed(note, one, field) for note in notes]
        return self.with_parts(resolved), told

    def showing(self, count: int) -> PoolSection:
        """See `PoolSection`."""
        return self.with_parts(one.showing(count) for one in self.of)

    def with_parts(self, parts: Iterable[PoolSection]) -> Self:
        """This section with other pools in `of`."""
        return self.model_copy(update={"of": list(parts)})


def check_alike(parts: Sequence[Pool]) -> None:
    """Refuse pools that cannot be parts of one.

    Raises:
        ConfigError: the candidates of one are the images themselves, or of another shape than the others'.
    """
    for number, part in enumerate(parts):
        if part.real:
            raise ConfigError(
                f"pool.of.{number}: its candidates are the images, which round 0 asks about; leave it out"
            )
        if part.image_shape != parts[0].image_shape:
            raise ConfigError(
                f"pool.of.{number}: its candidates have shape {part.image_shape}, those of the first "
                f"{parts[0].image_shape}; all must be alike"
            )


def source_names(parts: Sequence[Pool]) -> list[str]:
    """A name of each part: where its candidates come from, with a number where that is not enough."""
    sources = [part.source for part in parts]
    return [f"{source} ({number})" if sources.count(source) > 1 else source for number, source in enumerate(sources)]
