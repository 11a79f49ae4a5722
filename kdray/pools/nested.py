"""Pools in other sections: what they say names their fields where they are in the config."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdray.errors import ConfigError, ImageSetError
from kdray.pools.base import Pool, PoolSection

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.pools.procedural.base import Painter


def renamed(text: str, section: PoolSection, field: str) -> str:
    """`text`, in which a section calls its fields pool.NAME, with `field` in the place of pool."""
    names = "|".join(map(re.escape, type(section).model_fields))
    return re.sub(rf"(?<![\w./])pool(?=\.(?:{names})\b)", lambda _: field, text)


@contextmanager
def named(section: PoolSection, field: str) -> Iterator[None]:
    """Errors within this block name the fields of the section as those of `field`, such as pool.of.2."""
    try:
        yield
    except (ConfigError, ImageSetError) as error:
        raise type(error)(renamed(str(error), section, field)) from None


def built(section: PoolSection, images: Tensor, seed: int, field: str) -> Pool:
    """The pool of a section that stands at `field`: its errors name its fields there, also later ones, of drawing."""
    with named(section, field):
        pool = section.build(images, seed)
    return naming(pool, section, field)


def naming(pool: Pool, section: PoolSection, field: str) -> Pool:
    """The same pool, whose errors name the fields of its section as those of `field`; see `built`."""
    own = getattr(pool, "name_errors", None)  # of a pool whose drawing may fail
    renaming: Pool = pool if own is None else own(section, field)
    return renaming


class NamedPainter:
    """A painter whose errors name the fields of its section as those of `field`."""

    def __init__(self, painter: Painter, section: PoolSection, field: str) -> None:
        self.batch = painter.batch
        self._painter, self._section, self._field = painter, section, field

    def __call__(self, ids: Tensor) -> Tensor:
        """See `kdray.pools.procedural.base.Painter`."""
        with named(self._section, self._field):
            return self._painter(ids)
