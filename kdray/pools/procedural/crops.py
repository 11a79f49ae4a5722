"""Random parts of images: a set of photographs, of whatever they show, is a pool without end.

Images that have nothing to do with the teacher's task are candidates in Active Mixup, section 4.3, and in "What Makes a
Good Dataset for Knowledge Distillation?", section 3.1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal
from weakref import WeakValueDictionary

from pydantic import Field, PrivateAttr, model_validator

from kdray.errors import ConfigError
from kdray.images.base import ImageSource, open_rows, sources
from kdray.images.on_demand import ImagesOnDemand
from kdray.pools.base import PoolSection, pools
from kdray.pools.counter import CounterRandom, below
from kdray.pools.permutation import RandomOrder
from kdray.pools.procedural.base import Painter, ProceduralPool, ProceduralSection
from kdray.pools.ranges import PositiveShares
from kdray.pools.transforms.flip_crop import FlipCrop
from kdray.pools.warp import warp
from kdray.utils.lazy import torch
from kdray.utils.memory import give_back_memory
from kdray.utils.seeds import numpy_generator
from kdray.utils.stored import IN_MEMORY

if TYPE_CHECKING:
    from torch import Tensor

_DETAIL = 2  # times as large as a candidate are the images that parts are taken from
_IN_USE: WeakValueDictionary[str, Tensor | ImagesOnDemand] = (
    WeakValueDictionary()
)  # a run builds its pool more than once


@pools.register
class CropsSection(ProceduralSection):
    """The candidates are random parts of images, scaled to the size of a candidate, and mirrored left-right half of the
    time; or whole images, each once. The images need not show what the teacher knows."""

    resumable_fields: ClassVar[tuple[str, ...]] = ("read",)

    kind: Literal["crops"] = "crops"
    images: Annotated[ImageSource, sources] | None = None
    """The images that parts are taken from, a section like `images`; null takes the user's own. They become as grey or
    coloured as these. Without a `size` they are read at twice the size of a candidate."""
    read: Literal["auto", "ahead", "on-demand"] = "auto"
    """When they are read: all ahead, or each whenever a candidate shows it. auto: on demand, if they take more than 256
    MiB and are more than the candidates that are shown. The candidates are the same."""
    whole: bool = False
    """Whether a candidate is a whole image of `images`, and no part. Then there are no more candidates than images."""
    area: PositiveShares = (0.08, 1.0)
    """[least, most] area of the part, as a share of the image."""
    longest: Annotated[float, Field(ge=1)] = 1.33
    """Largest ratio of the part's sides, measured in sides of the image."""
    flip: bool = True
    """Whether parts are mirrored."""

    _shown: int | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _a_whole_image_has_no_part(self) -> CropsSection:
        if self.whole and self.images is None:
            raise ValueError("whole: your own images as they are are a pool of kind images; or name others in images")
        fields = type(self).model_fields
        for name in ("area", "longest", "flip"):
            if self.whole and getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name} says which parts of images are taken, and whole is true; leave {name} out, or set "
                    "whole to false"
                )
        return self

    def showing(self, count: int) -> CropsSection:
        """See `PoolSection`."""
        section = self.model_copy()
        section._shown = count
        return section

    @property
    def drawn(self) -> bool:
        """See `EndlessSection`."""
        return self.images is not None

    def enlarged(self, images: int) -> str:
        """See `PoolSection`."""
        return "give more images (pool.images)" if self.whole else super().enlarged(images)

    def sized(self, images: int, queries: int) -> tuple[PoolSection, str | None]:
        """See `PoolSection`."""
        section, note = super().sized(images, queries)
        return section, None if self.whole else note  # there may be fewer images

    def build(self, images: Tensor, seed: int) -> ProceduralPool:
        """See `PoolSection`."""
        pool = super().build(images, seed)
        return pool.up_to(len(pool.painter)) if isinstance(pool.painter, WholePainter) else pool

    def recorded(self, other: PoolSection) -> CropsSection:
        """See `PoolSection`."""
        if self.images is None or not isinstance(other, CropsSection) or other.images is None:
            return self
        return self.model_copy(update={"images": self.images.recorded(other.images)})

    def resolved(self, image_shape: tuple[int, int, int]) -> tuple[CropsSection, list[str]]:
        """See `PoolSection`."""
        if self.images is None:
            return self, []
        images, told = self.images.resolved("pool.images")
        return self.model_copy(update={"images": images}), told

    def painter(self, images: Tensor, seed: int) -> Painter:
        """See `ProceduralSection`."""
        _, channels, height, width = images.shape
        transform = FlipCrop(area=self.area, longest=self.longest, flip=self.flip)
        if self.images is None:
            return CropsPainter(images, (height, width), transform, seed)
        if channels not in (1, 3):
            raise ConfigError(
                f"pool.images: parts of them are grey or RGB, and the user's images have {channels} channels; leave "
                "pool.images out"
            )
        detail = 1 if self.whole else _DETAIL
        size = self.images.size or (detail * height, detail * width)
        if size[0] % height or size[0] // height * width != size[1]:
            raise ConfigError(
                f"pool.images.size: {size[0]} x {size[1]} is no whole multiple of a candidate's {height} x {width}; "
                "give one that is, or leave it out"
            )
        colour: Literal["grey", "rgb"] = "grey" if channels == 1 else "rgb"
        section = self.images.model_copy(update={"size": size, "colour": colour})
        read = self._read(section, seed)
        return (
            WholePainter(read, (height, width), seed)
            if self.whole
            else CropsPainter(read, (height, width), transform, seed)
        )

    def _read(self, section: ImageSource, seed: int) -> Tensor | ImagesOnDemand:
        """The images of a section, read or opened once as long as they are in use."""
        from kdray.images.decode import decode_rows

        key = f"{seed} {section.model_dump_json()}"
        images = _IN_USE.get(key)
        if images is None or self._demanded(len(images), section) != isinstance(images, ImagesOnDemand):
            opened, rows = open_rows(section, generator=numpy_generator(seed, "crops"), field="pool.images")
            if self._demanded(len(rows), section):
                images = ImagesOnDemand(section, opened, rows, "pool.images")
            else:
                images, _ = decode_rows(opened, rows, section, "pool.images")
            give_back_memory()
            _IN_USE[key] = images
        return images

    def _demanded(self, count: int, section: ImageSource) -> bool:
        """Whether `count` images are read on demand. By itself where all of them would fill memory and fewer are
        decoded if each is where a candidate shows it."""
        assert section.size is not None
        bytes_ = count * (1 if section.colour == "grey" else 3) * math.prod(section.size)
        shown = self.size if self._shown is None else min(self._shown, self.size)
        return self.read == "on-demand" or (self.read == "auto" and bytes_ > IN_MEMORY and count > shown)


class CropsPainter:
    """Draws random parts of images.

    Args:
        images: uint8 [N, C, k H, k W], k times as large as a candidate; a tensor, or rows that are read on demand.
        size: (H, W) of a candidate.
        transform: which parts.
        seed: the run's seed.
    """

    batch = 64

    def __init__(self, images: Tensor | ImagesOnDemand, size: tuple[int, int], transform: FlipCrop, seed: int) -> None:
        self._images, self._size, self._transform = images, size, transform
        self._random = CounterRandom(seed, "crops", 1 + transform.words)

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Painter`."""
        words = self._random(ids)
        device = self._images.device if isinstance(self._images, torch.Tensor) else "cpu"
        rows = below(words[0], len(self._images)).to(device)
        _, channels, height, width = self._images.shape
        parts = warp(self._images[rows].to(ids.device), self._transform.maps(words[1:], (channels, height, width)))
        return shrunk(parts, self._size)


class WholePainter:
    """Shows each image once, in a random order.

    Args:
        images, size, seed: see `CropsPainter`.
    """

    batch = 64

    def __init__(self, images: Tensor | ImagesOnDemand, size: tuple[int, int], seed: int) -> None:
        self._images, self._size = images, size
        self._order = RandomOrder(len(images), seed)

    def __len__(self) -> int:
        return len(self._images)

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Painter`; ids are below the number of images."""
        device = self._images.device if isinstance(self._images, torch.Tensor) else "cpu"
        return shrunk(self._images[self._order(ids).to(device)].to(ids.device), self._size)


def shrunk(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images uint8 [B, C, k H, k W] at `size` (H, W): means of blocks, rounded."""
    times = images.shape[2] // size[0]
    if times == 1:
        return images
    blocks = images.view(*images.shape[:2], size[0], times, size[1], times)
    return ((blocks.sum(dim=(3, 5)) + times * times // 2) // (times * times)).to(torch.uint8)
