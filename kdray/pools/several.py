"""What pools that consist of several pools have in common."""

from __future__ import annotations

from collections.abc import Sequence

from kdray.errors import ConfigError
from kdray.pools.base import Pool


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
