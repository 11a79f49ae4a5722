"""The mixup pool of Active Mixup: every pair of real images, or a sample of them, at every coefficient of a grid.

Candidate id = group * len(lambdas) + lambda_index. A group is a pair at all λ. If the pool holds all pairs, the group
is the number of the pair; if it holds a sample, the group is the position of the pair in a random order. Only the
images are stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from kdray.errors import ConfigError
from kdray.pools.base import pools
from kdray.pools.sample import OfPairs, PairSample, check_images
from kdray.sections.base import Section
from kdray.sections.search import SearchSettings
from kdray.utils.lazy import torch
from kdray.utils.seeds import torch_seed

if TYPE_CHECKING:
    from torch import Tensor

# Fixed point with 22 fractional bits: 255 * 2^22 still fits int32, so one int32 multiplication mixes a pixel.
_SHIFT = 22
# λ of up to four decimals is a multiple of 1e-4, its 22-bit form is off by at most 2^-23, so a pixel is off by
# at most 255 * 2^-23 = 3.04e-5. Adding slightly more than that makes exact ties round up, and cannot carry
# over a value that lies below the tie (by at least 1e-4).
_HALF_UP = (1 << (_SHIFT - 1)) + 131
_RENDER_BATCH = 1024
_MAX_LAMBDAS = 10_000  # pixels have 256 values: a finer grid only repeats images


class LambdaGrid(Section):
    """λ from `min` to `max` in steps of `step`."""

    min: float
    """First λ."""
    max: float
    """Upper end of the grid. It is the last λ if a step falls on it."""
    step: Annotated[float, Field(gt=0)]
    """Distance between two λ."""

    def values(self) -> tuple[float, ...]:
        """The grid, each value rounded to ten decimals so that 0.3 + 5 * 0.04 is 0.5."""
        steps = (self.max - self.min) / self.step + 1e-9
        if not steps < _MAX_LAMBDAS:
            values = f"{int(steps) + 1:,}" if math.isfinite(steps) else "too many"
            raise ConfigError(f"pool.lambdas: {values} values of λ; give a step that makes {_MAX_LAMBDAS:,} at most")
        return tuple(round(self.min + k * self.step, 10) for k in range(int(steps) + 1)) if self.max >= self.min else ()


@pools.register
class MixupSection(SearchSettings, OfPairs):
    """The candidates are pairs of images, mixed at every λ of a grid (Active Mixup, eq. 1)."""

    mixes: ClassVar[bool] = True
    segments: ClassVar[bool] = True

    kind: Literal["mixup"] = "mixup"
    lambdas: LambdaGrid | list[float] = LambdaGrid(min=0.30, max=0.70, step=0.04)
    """The λ grid: {min, max, step}, or a list."""

    @field_validator("lambdas")
    @classmethod
    def _grid_is_usable(cls, value: LambdaGrid | list[float]) -> LambdaGrid | list[float]:
        try:
            check_lambdas(value.values() if isinstance(value, LambdaGrid) else value)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("pool.lambdas: ")) from None
        return value

    def grid(self) -> tuple[float, ...]:
        """The λ values, in order."""
        return self.lambdas.values() if isinstance(self.lambdas, LambdaGrid) else tuple(self.lambdas)

    def build(self, images: Tensor, seed: int) -> MixupPool:
        """See `PoolSection`."""
        return MixupPool(images, self.grid(), self.count, torch_seed(seed, "pairs"))


class MixupPool:
    """Candidates x_ij(λ) = λ x_i + (1 - λ) x_j for all i < j (Active Mixup, eq. 1), rendered on demand.

    Pixels are mixed in int32 fixed point and rounded half up, so the same id gives the same bits on every
    worker, CPU or GPU. For λ with at most four decimals this equals exact decimal rounding.

    Args:
        images: uint8 [N, C, H, W], N >= 2; the pool lives on their device.
        lambdas: the grid of coefficients, distinct values in [0, 1].
        pairs: number of pairs to sample, without replacement; None means all pairs, in row-major order.
        seed: seed of the sample. A larger sample with the same seed begins with the smaller one.

    Raises:
        ImageSetError: there are fewer than two images, or they are not uint8 [N, C, H, W].
        ConfigError: the grid is empty, or a λ lies outside [0, 1] or is given twice; or `pairs` exceeds the number of
            pairs.
    """

    linear = True
    real = False
    source = "mixup"

    def __init__(self, images: Tensor, lambdas: Sequence[float], pairs: int | None = None, seed: int = 0) -> None:
        check_images(images, "mixup")
        self.images = images
        self.lambdas = check_lambdas(lambdas)
        self._weights = torch.tensor(
            [round(value * (1 << _SHIFT)) for value in self.lambdas], dtype=torch.int32, device=images.device
        )
        self._pairs, self._seed = pairs, seed
        self._sample = PairSample(len(images), pairs, seed)

    def __len__(self) -> int:
        return self.num_groups * self.group_size

    @property
    def num_groups(self) -> int:
        """Number of pairs in the pool."""
        return len(self._sample)

    @property
    def group_size(self) -> int:
        """Candidates in each group: the number of λ."""
        return len(self.lambdas)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every candidate."""
        return (self.images.shape[1], self.images.shape[2], self.images.shape[3])

    def to(self, device: str | torch.device) -> MixupPool:
        """The same pool with its images on `device`; this object if they are there already."""
        if self.images.device == torch.device(device):
            return self
        return MixupPool(self.images.to(device), self.lambdas, self._pairs, self._seed)

    def pair(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Map groups int64 [B] to the numbers (i, j) of their two images, int64 [B] each, i < j.

        Raises:
            IndexError: a group is negative or not below num_groups.
        """
        return self._sample(groups)

    def group(self, i: int, j: int) -> int:
        """The group that mixes images i < j, in a pool of all pairs."""
        return self._sample.number(i, j)

    def render(self, ids: Tensor) -> Tensor:
        """Map candidate ids int64 [B] to images uint8 [B, C, H, W].

        Raises:
            IndexError: an id is negative or not below len(pool).
        """
        ids = ids.to(self.images.device)
        rendered = self.images.new_empty((len(ids), *self.image_shape))
        # Ids are rendered in parts: mixing needs twelve bytes per pixel, which must not grow with the number of ids.
        for part, out in zip(ids.split(_RENDER_BATCH), rendered.split(_RENDER_BATCH), strict=True):
            i, j = self.pair(part // self.group_size)
            weights = self._weights[part % self.group_size].view(-1, 1, 1, 1)
            out.copy_(_mix(self.images[i], self.images[j], weights))
        return rendered

    def batches(self, groups: Tensor, step: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Images of the candidates of `groups` int64 [G], `step` groups at a time.

        They equal `render` of their ids. This is faster, because the pairs of all groups are found at once, and the
        images of a pair are gathered once for all λ.

        Args:
            indices: indices of λ in the grid; None means all.

        Yields:
            uint8 [B * len(indices), C, H, W]. The candidates of a group are consecutive.
        """
        i, j = self.pair(groups.to(self.images.device))
        weights = self._weights if indices is None else self._weights[list(indices)]
        weights = weights.view(1, -1, 1, 1, 1)
        for one, other in zip(i.split(step), j.split(step), strict=True):
            mixed = _mix(self.images[one].unsqueeze(1), self.images[other].unsqueeze(1), weights)  # [B, L, C, H, W]
            yield mixed.flatten(0, 1)

    def describe(self, ids: Tensor) -> dict[str, list[Any]]:
        """Columns for the record of chosen candidates: image numbers `i`, `j` and coefficient `lambda`."""
        i, j = self.pair(ids // self.group_size)
        return {"i": i.tolist(), "j": j.tolist(), "lambda": [self.lambdas[k] for k in (ids % self.group_size).tolist()]}

    def middle(self) -> int:
        """Index of the λ nearest 0.5, the lower one on a tie. The random strategy takes this λ."""
        return min(range(self.group_size), key=lambda k: (abs(self.lambdas[k] - 0.5), k))


def _mix(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """round_half_up(w first + (1 - w) second) of uint8 tensors, as uint8; `weights` are int32, 22 fractional bits."""
    base = second.to(torch.int32)
    difference = first.to(torch.int32).sub_(base)
    base = base.bitwise_left_shift_(_SHIFT).add_(_HALF_UP)
    return (difference * weights).add_(base).bitwise_right_shift_(_SHIFT).to(torch.uint8)


def check_lambdas(lambdas: Sequence[float]) -> tuple[float, ...]:
    """The grid as a tuple of floats.

    Raises:
        ConfigError: the grid is empty, or a λ lies outside [0, 1] or is given twice.
    """
    values = tuple(float(value) for value in lambdas)
    if not values:
        raise ConfigError("pool.lambdas: the grid is empty; give at least one λ in [0, 1]")
    outside = [value for value in values if not 0.0 <= value <= 1.0]
    if outside:
        raise ConfigError(f"pool.lambdas: λ = {outside[0]:g} lies outside [0, 1]; every λ must lie in [0, 1]")
    if len(set(values)) < len(values):
        raise ConfigError("pool.lambdas: a λ is given twice; every λ of the grid must differ")
    return values
