"""What a pre-transform is: the variants of each image that a pair pool blends; and the registry of pre-transforms."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol

from pydantic import Field

from kdray.pools.counter import CounterRandom
from kdray.pools.warp import warp
from kdray.sections.base import Section
from kdray.sections.registry import Registry
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_USUAL, _FEWEST = 32, 4  # variants of an image
_MADE_AT_ONCE = 4096
_MOST_BYTES = 256 << 20  # most memory of a worker for variants that are kept


class Variants(Protocol):
    """The variants of a pool's images: row `image * each + k` is variant k of an image. An object is picklable."""

    each: int
    """Variants of an image."""

    def prepare(self, rows: Tensor) -> None:
        """Be told which variants will be asked for, int64 [B], in parts. They may be made now, all at once."""

    def __call__(self, rows: Tensor) -> Tensor:
        """The variants with the numbers `rows`, int64 [B], as a new tensor uint8 [B, C, H, W]."""


class Transform(Section):
    """What is done to each of the two images before they are blended: its kind alone, or a section with its fields."""

    # A subclass adds its own fields and `build`; it leaves `kind` alone, or narrows it to its name and registers.

    kind: str
    """Kind of pre-transform, or a class of your own as module:class."""

    @abstractmethod
    def build(self, images: Tensor, seed: int) -> Variants:
        """The variants of images uint8 [N, C, H, W], which are on their device.

        Args:
            seed: the run's seed. The bits of a variant follow from it, the image and the number of the variant.
        """


transforms = Registry[Transform](
    Transform,  # type: ignore[type-abstract]  # the registry holds subclasses
    field="pre",
    package="kdray.pools.transforms",
    default="none",
)


class Originals:
    """The images as they are."""

    each = 1

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def prepare(self, rows: Tensor) -> None:
        """See `Variants`."""

    def __call__(self, rows: Tensor) -> Tensor:
        """See `Variants`."""
        return _rows(self._images, rows)


class WarpTransform(Transform):
    """A pre-transform that samples an image by a random affine map."""

    words: ClassVar[int]
    """Random numbers that a map takes."""

    variants: Annotated[int, Field(ge=1, le=1 << 20)] | Literal["auto"] = "auto"
    """Number of random transforms of each image. A candidate takes one of them for each of its two images. A worker
    keeps the transformed images where all of them fit into 256 MiB, which makes scoring faster. auto: 32, or as many as
    fit if those are at least 4."""

    def build(self, images: Tensor, seed: int) -> Warped:
        """See `Transform`."""
        return Warped(images, self, seed)

    def count(self, pixels: int) -> int:
        """Variants of each image, where all images have so many pixel values."""
        if self.variants != "auto":
            return self.variants
        fit = _MOST_BYTES // max(1, pixels)
        return min(_USUAL, fit) if fit >= _FEWEST else _USUAL

    @abstractmethod
    def maps(self, words: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Map random numbers int64 [words, B] of 31 bits to affine maps int64 [B, 6], see `kdray.pools.warp.warp`.

        Args:
            shape: (C, H, W) of the images.
        """


class Warped:
    """Images transformed by affine maps. Where all variants fit, those that were made are kept.

    Args:
        images: uint8 [N, C, H, W].
        transform: gives the maps.
        seed: see `Transform.build`.
    """

    def __init__(self, images: Tensor, transform: WarpTransform, seed: int) -> None:
        self.each = transform.count(images.numel())
        self._images, self._transform = images, transform
        self._random = CounterRandom(seed, "variants", transform.words)
        self._kept: tuple[Tensor, Tensor] | None = None

    def prepare(self, rows: Tensor) -> None:
        """See `Variants`."""
        if self.each * self._images.numel() > _MOST_BYTES:
            return
        if self._kept is None:
            with torch.inference_mode(False):  # a tensor of this mode could not be written to outside it
                whole = self._images.new_empty(len(self._images) * self.each, self._images[0].numel())
                self._kept = (whole, torch.zeros(len(whole), dtype=torch.bool, device=whole.device))
        whole, known = self._kept
        wanted = torch.zeros_like(known)
        wanted[rows] = True
        for missing in (wanted & ~known).nonzero().flatten().split(_MADE_AT_ONCE):
            whole.index_copy_(0, missing, self._made(missing).flatten(1))
            known[missing] = True

    def __call__(self, rows: Tensor) -> Tensor:
        """See `Variants`."""
        if self._kept is None or not bool(self._kept[1][rows].all()):
            return self._made(rows)
        return _rows(self._kept[0].view(-1, *self._images.shape[1:]), rows)

    def _made(self, rows: Tensor) -> Tensor:
        _, channels, height, width = self._images.shape
        maps = self._transform.maps(self._random(rows), (channels, height, width))
        return warp(_rows(self._images, rows // self.each), maps)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_kept": None}  # a worker makes its own: they are many times as large as the images


def _rows(images: Tensor, rows: Tensor) -> Tensor:
    """images[rows] as a new tensor. On a CPU it is many times as fast, as it copies whole images."""
    return images.flatten(1).index_select(0, rows).view(-1, *images.shape[1:])
