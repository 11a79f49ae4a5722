"""The contract of a pool: a virtual set of candidate images, addressed by id and rendered on demand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeGuard

from kdray.sections.base import Section
from kdray.sections.registry import Registry
from kdray.utils.lazy import torch
from kdray.utils.stored import gathered, rows_in_a_part

if TYPE_CHECKING:
    from torch import Tensor


class Pool(Protocol):
    """A set of candidates with int64 ids, 0 to len(pool) - 1.

    Candidates form groups of `group_size`: candidate `id` belongs to group `id // group_size`. Some strategies choose
    at most one candidate per group. An id gives the same bits on every worker and device. A pool is picklable and holds
    only the images it is made from.
    """

    images: Tensor
    """uint8 [N, C, H, W]: the user's images, on the pool's device."""

    @property
    def linear(self) -> bool:
        """Whether the candidates of a group lie on the straight line between two images. If so, see `SegmentPool`."""

    @property
    def real(self) -> bool:
        """Whether every candidate is one of `images`. If so, its id is the number of that image."""

    @property
    def source(self) -> str:
        """The origin of a candidate, as recorded in the labelled set."""

    @property
    def num_groups(self) -> int:
        """Number of groups."""

    @property
    def group_size(self) -> int:
        """Candidates in each group."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every candidate."""

    def __len__(self) -> int:
        """Number of candidates: num_groups * group_size."""

    def to(self, device: str | torch.device) -> Pool:
        """The same pool with its images on `device`."""

    def render(self, ids: Tensor) -> Tensor:
        """Map candidate ids int64 [B] to images uint8 [B, C, H, W]. Raises IndexError if an id is out of range."""

    def batches(self, groups: Tensor, step: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Images of the candidates of `groups` int64 [G], `step` groups at a time. They equal `render` of their ids.

        Args:
            indices: indices of candidates within each group; None means all.

        Yields:
            uint8 [B * len(indices), C, H, W]. The candidates of a group are consecutive.
        """

    def describe(self, ids: Tensor) -> dict[str, list[Any]]:
        """Columns for the record of chosen candidates: the images and coefficients that each one is made from."""

    def middle(self) -> int:
        """Index within a group of the candidate that the random strategy takes."""


class PairPool(Pool, Protocol):
    """A pool in which a group is a pair of images, and every candidate shows nothing but parts of these two."""

    def pair(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Map groups int64 [B] to the numbers (i, j) of their two images, int64 [B] each."""


class SegmentPool(PairPool, Protocol):
    """A pool in which a group is all mixes λ x_i + (1 - λ) x_j of two images, at every λ of a grid."""

    lambdas: tuple[float, ...]

    def group(self, i: int, j: int) -> int:
        """The group that mixes images i < j."""


def placed(pool: Pool, device: str | torch.device) -> Pool:
    """The pool with its images on `device`; where they would take more than half of a GPU's free memory, as it is. Its
    candidates are then made by the CPU and go to the GPU a batch at a time."""
    if torch.device(device).type == "cuda" and pool.images.device.type == "cpu":
        free, _ = torch.cuda.mem_get_info(torch.device(device))
        if pool.images.nbytes > free // 2:
            return pool
    return pool.to(device)


def rendered(pool: Pool, ids: Tensor) -> Tensor:
    """The images of candidates int64 [B], uint8 [B, C, H, W] on the CPU; many large ones lie in a file, see
    `kdray.utils.stored`."""
    if len(ids) == 0:
        return pool.render(ids).cpu()
    parts = ids.split(rows_in_a_part(pool.image_shape))
    return gathered((pool.render(part).cpu().numpy() for part in parts), len(ids))


def is_linear(pool: Pool) -> TypeGuard[SegmentPool]:
    """Whether the candidates of a group lie on the line between two images."""
    return pool.linear


def is_paired(pool: Pool) -> TypeGuard[PairPool]:
    """Whether a group is a pair of images."""
    return hasattr(pool, "pair")


class PoolSection(Section):
    """The virtual pool of candidates."""

    mixes: ClassVar[bool] = False
    """Whether every candidate is made of two of the user's images. If so, the pool is a `PairPool`."""
    segments: ClassVar[bool] = False
    """Whether a group is the mixes of two images at every λ of a grid. If so, the pool is a `SegmentPool`."""
    remade: ClassVar[bool] = False
    """Whether each round makes the candidates anew. If so, the pool is a `kdray.pools.remade.RemadePool`, and sizes are
    those of one round."""
    untaught: ClassVar[bool] = False
    """Whether candidates can be made with a student that has learnt nothing: then round 0 need not ask."""
    exact: ClassVar[bool] = False
    """Whether each round makes as many candidates as it asks about, and leaves a strategy nothing to choose."""
    kind: str
    """Kind of pool, or a class of your own as module:class."""

    @property
    def complete(self) -> bool:
        """Whether the pool holds every group, not a sample of groups."""
        return True

    @property
    def white_box(self) -> bool:
        """Whether candidates are made with the teacher's own network."""
        return False

    @property
    def asks_again(self) -> bool:
        """Whether each round asks, and pays, again for all images so far besides its own candidates."""
        return False

    @property
    def kinds(self) -> tuple[PoolSection, ...]:
        """The pools that a round may choose from: this one, or those that it finds the best of."""
        return (self,)

    def trial(self, queries: int) -> int:
        """How many of the queries after round 0 find out which of the kinds is best; 0 where there is but one.

        Raises:
            ConfigError: no query would be left for the rounds after it.
        """
        return 0

    def notes_on(self, classes: int) -> list[str]:
        """What the user should know of the pool as soon as the number of classes is known."""
        return []

    def recorded(self, other: PoolSection) -> PoolSection:
        """This section with what the config of a run that goes on, `other`, has recorded; see `resolved`."""
        return self

    def resolved(self, image_shape: tuple[int, int, int]) -> tuple[PoolSection, list[str]]:
        """This section with what a run records in its config, to go on with the same candidates wherever it is resumed,
        and what the user should know of it. What is recorded already stays.

        Args:
            image_shape: (C, H, W) of the user's images.

        Raises:
            ConfigError: what was recorded does not hold any more.
        """
        return self, []

    def sized(self, images: int, queries: int) -> tuple[PoolSection, str | None]:
        """This section with its size as a number where it follows from the choice, and the reason in words.

        Args:
            images: number of images in the pool.
            queries: number of candidates to choose, over all rounds.
        """
        return self, None

    def showing(self, count: int) -> PoolSection:
        """This section for a pool of which only `count` candidates are rendered, whatever its size: what is read ahead
        may depend on that, and the candidates do not."""
        return self

    def enlarged(self, images: int) -> str:
        """What the user can do to have more candidates than the pool over so many images has, in words."""
        return "give more images (images.count)"

    @abstractmethod
    def build(self, images: Tensor, seed: int) -> Pool:
        """Build the pool over uint8 images [N, C, H, W].

        Args:
            seed: the run's seed.

        Raises:
            ImageSetError, ConfigError: the pool cannot be built from the images.
        """


pools = Registry[PoolSection](
    PoolSection,  # type: ignore[type-abstract]  # the registry holds subclasses
    field="pool",
    package=("kdray.pools", "kdray.pools.procedural"),
    default="mixup",
    skip=("fractals_numba", "leaves_numba", "words_numba"),
)
