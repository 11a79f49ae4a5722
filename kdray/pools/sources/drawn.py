"""Images that are drawn, for a user who has none."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from kdray.images.base import ImageRows, ImageSource, sources
from kdray.pools.base import PoolSection, pools
from kdray.pools.endless import EndlessSection
from kdray.pools.nested import built, named, renamed
from kdray.sections.base import Size
from kdray.utils.lazy import torch
from kdray.utils.stored import rows_in_a_part

if TYPE_CHECKING:
    from PIL import Image

ROWS = 1_000_000
"""Candidates of the pool that the images are taken from, at random by the run's seed; fewer of a smaller pool."""
_AT_ONCE = 256  # images that are drawn together: one by one, some pools take fifty times as long
_SEED = 1 << 30  # of the pool: its candidates are not those of a run's own pool of the same kind


@sources.register
class DrawnImages(ImageSource):
    """Random candidates of a procedural pool, in place of images of the user's own. They have no labels."""

    at_random = True

    source: Literal["drawn"] = "drawn"
    size: Size | None
    """Their [height, width], or one number squared: what the teacher takes."""
    pool: Annotated[PoolSection, pools]
    """What is drawn: a pool whose candidates are drawn, or a mixture of such."""
    count: Annotated[int, Field(ge=1, le=ROWS)] | None = 200
    """How many images to draw."""

    @field_validator("pool")
    @classmethod
    def _can_be_drawn(cls, value: PoolSection) -> PoolSection:
        if not (isinstance(value, EndlessSection) and value.drawn):
            raise ValueError(
                f"the candidates of {value.kind} are made of images, and here there are none; name a pool whose "
                "candidates are drawn, such as lines"
            )
        return value

    @field_validator("size", "count", mode="before")
    @classmethod
    def _is_a_number(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("drawn images have no size or number of their own; give one")
        return value

    @field_validator("rows", "shuffle")
    @classmethod
    def _no_rows(cls, value: object) -> None:
        if value is not None:
            raise ValueError("drawn images are random ones; leave rows and shuffle out, and say how many in count")

    def recorded(self, other: ImageSource) -> "DrawnImages":
        """See `ImageSource`."""
        if not isinstance(other, DrawnImages):
            return self
        return self.model_copy(update={"pool": self.pool.recorded(other.pool)})

    def resolved(self, field: str) -> "tuple[DrawnImages, list[str]]":
        """See `ImageSource`."""
        with named(self.pool, f"{field}.pool"):
            pool, notes = self.pool.resolved(self._shape)
        told = [renamed(note, self.pool, f"{field}.pool") for note in notes]
        return self.model_copy(update={"pool": pool}), told

    @property
    def _shape(self) -> tuple[int, int, int]:
        assert self.size is not None
        return (1 if self.colour == "grey" else 3, *self.size)

    def open(self, field: str) -> ImageRows:
        """See `ImageSource.open`."""
        from PIL import Image

        assert isinstance(self.pool, EndlessSection)
        assert self.count is not None
        section = self.pool.with_size(ROWS) if self.pool.candidates == "auto" else self.pool
        images = torch.empty(0, *self._shape, dtype=torch.uint8)
        pool = built(section.showing(self.count), images, _SEED, f"{field}.pool")
        at_once = max(1, min(_AT_ONCE, rows_in_a_part(self._shape)))

        def draw(rows: np.ndarray) -> "Iterator[Image.Image]":
            for part in torch.from_numpy(rows).split(at_once):
                for pixels in pool.render(part).numpy():
                    one = len(pixels) == 1
                    yield Image.fromarray(pixels[0] if one else np.ascontiguousarray(pixels.transpose(1, 2, 0)))

        return ImageRows(
            name=f"drawn {self.pool.kind}",
            rows=min(len(pool), ROWS),
            decode=lambda row: next(draw(np.array([row]))),
            decode_many=draw,
            where=lambda row: f"image {row} of drawn {self.pool.kind}",
            no_labels="drawn images have none",
        )
