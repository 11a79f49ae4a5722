"""The mixup pool of Active Mixup: every pair of real images, or a sample of them, at every coefficient of a grid.

Candidate id = group * len(lambdas) + lambda_index. A group is a pair with all its λ: pair number `group`, or, of a
sample, the pair at that place of a random order. Nothing is stored but the images.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kdray.errors import ConfigError, ImageSetError
from kdray.pools.order import RandomOrder
from kdray.pools.pairs import check_range, count_pairs, rank_pairs, unrank_pairs

# Fixed point with 22 fractional bits: 255 * 2^22 still fits int32, so one int32 multiplication mixes a pixel.
_SHIFT = 22
# λ of up to four decimals is a multiple of 1e-4, its 22-bit form is off by at most 2^-23, so a pixel is off by
# at most 255 * 2^-23 = 3.04e-5. Adding slightly more than that makes exact ties round up, and cannot carry
# over a value that lies below the tie (by at least 1e-4).
_HALF_UP = (1 << (_SHIFT - 1)) + 131
_RENDER_BATCH = 1024


class MixupPool:
    """Candidates x_ij(λ) = λ x_i + (1 - λ) x_j for all i < j (Active Mixup, eq. 1), rendered on demand.

    Pixels are mixed in int32 fixed point and rounded half up, so the same id gives the same bits on every
    worker, CPU or GPU. For λ with at most four decimals this equals exact decimal rounding.

    Args:
        images: uint8 [N, C, H, W], N >= 2; the pool lives on their device.
        lambdas: the grid of coefficients, each in [0, 1], none twice.
        pairs: how many pairs to sample, without replacement; None takes all, in row-major order.
        seed: of the sample. A larger sample of the same seed begins with the smaller one.

    Raises:
        ImageSetError: fewer than two images, or not uint8 [N, C, H, W].
        ConfigError: an empty grid, a λ outside [0, 1], or one given twice; more pairs than there are.
    """

    linear = True
    """The candidates of a group lie on the straight line between two images."""
    real = False
    source = "mixup"

    def __init__(self, images: Tensor, lambdas: Sequence[float], pairs: int | None = None, seed: int = 0) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ImageSetError(
                f"a mixup pool needs uint8 images [N, C, H, W], got {images.dtype} {list(images.shape)}"
            )
        if len(images) < 2:
            raise ImageSetError(f"a mixup pool needs at least two images to mix, got {len(images)}; raise images.count")
        self.images = images
        self.lambdas = check_lambdas(lambdas)
        self._weights = torch.tensor(
            [round(value * (1 << _SHIFT)) for value in self.lambdas], dtype=torch.int32, device=images.device
        )
        every = count_pairs(len(images))
        if pairs is not None and not 1 <= pairs <= every:
            raise ConfigError(
                f"pool.pairs: {pairs:,} pairs wanted, {len(images):,} images make {every:,}; lower it, or set it to all"
            )
        self._pairs, self._seed = pairs, seed
        self._order = None if pairs is None else RandomOrder(every, seed)

    def __len__(self) -> int:
        return self.num_groups * self.group_size

    @property
    def num_groups(self) -> int:
        """Number of pairs, or of those in the sample."""
        return count_pairs(len(self.images)) if self._pairs is None else self._pairs

    @property
    def group_size(self) -> int:
        """Candidates a group holds: the number of λ."""
        return len(self.lambdas)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every candidate."""
        return tuple(self.images.shape[1:])

    def to(self, device: str | torch.device) -> "MixupPool":
        """The same pool with its images on `device`; itself where they are there."""
        if self.images.device == torch.device(device):
            return self
        return MixupPool(self.images.to(device), self.lambdas, self._pairs, self._seed)

    def pair(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Groups int64 [B] to the image numbers (i, j) they mix, int64 [B] each, i < j.

        Raises:
            IndexError: a group is negative or not below num_groups.
        """
        if self._order is not None:
            check_range(groups, self.num_groups, "groups")
            groups = self._order(groups)
        return unrank_pairs(groups, len(self.images))

    def group(self, i: int, j: int) -> int:
        """The group that mixes images i < j, of a pool of all pairs."""
        if self._order is not None:
            raise ConfigError("pool.pairs: a sample of pairs cannot be asked which of them holds two images; use all")
        return int(rank_pairs(torch.tensor(i), torch.tensor(j), len(self.images)))

    def render(self, ids: Tensor) -> Tensor:
        """Candidate ids int64 [B] to images uint8 [B, C, H, W].

        Raises:
            IndexError: an id is negative or not below len(pool).
        """
        ids = ids.to(self.images.device)
        rendered = self.images.new_empty((len(ids), *self.image_shape))
        # In parts: mixing takes twelve bytes a pixel, which must not grow with the number of ids.
        for part, out in zip(ids.split(_RENDER_BATCH), rendered.split(_RENDER_BATCH), strict=True):
            i, j = self.pair(part // self.group_size)
            weights = self._weights[part % self.group_size].view(-1, 1, 1, 1)
            out.copy_(_mix(self.images[i], self.images[j], weights))
        return rendered

    def batches(self, groups: Tensor, step: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Candidates of `groups` int64 [G], `step` groups at a time: uint8 [B * len(indices), C, H, W] each, those of a
        group together.

        Equals `render` of their ids; faster, because pairs are found for all groups at once, and each is gathered
        once for all its λ.

        Args:
            indices: which λ of the grid; all of them where None.
        """
        i, j = self.pair(groups.to(self.images.device))
        weights = self._weights if indices is None else self._weights[list(indices)]
        weights = weights.view(1, -1, 1, 1, 1)
        for one, other in zip(i.split(step), j.split(step), strict=True):
            mixed = _mix(self.images[one].unsqueeze(1), self.images[other].unsqueeze(1), weights)  # [B, L, C, H, W]
            yield mixed.flatten(0, 1)

    def describe(self, ids: Tensor) -> dict[str, list]:
        """Columns for the record of what was chosen: image numbers `i`, `j` and coefficient `lambda`."""
        i, j = self.pair(ids // self.group_size)
        return {"i": i.tolist(), "j": j.tolist(), "lambda": [self.lambdas[k] for k in (ids % self.group_size).tolist()]}

    def middle(self) -> int:
        """Index of the λ nearest 0.5, the lower one on a tie: what the random baseline mixes with."""
        return min(range(self.group_size), key=lambda k: (abs(self.lambdas[k] - 0.5), k))


def _mix(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """round_half_up(w first + (1 - w) second), uint8 in, uint8 out; `weights` int32 with 22 fractional bits."""
    base = second.to(torch.int32)
    difference = first.to(torch.int32).sub_(base)
    base = base.bitwise_left_shift_(_SHIFT).add_(_HALF_UP)
    return (difference * weights).add_(base).bitwise_right_shift_(_SHIFT).to(torch.uint8)


def check_lambdas(lambdas: Sequence[float]) -> tuple[float, ...]:
    """The grid as a tuple of floats, or a ConfigError that names what is wrong with it."""
    values = tuple(float(value) for value in lambdas)
    if not values:
        raise ConfigError("pool.lambdas: the grid is empty; give at least one λ in [0, 1]")
    outside = [value for value in values if not 0.0 <= value <= 1.0]
    if outside:
        raise ConfigError(f"pool.lambdas: λ = {outside[0]:g} lies outside [0, 1]; every λ must lie in [0, 1]")
    if len(set(values)) < len(values):
        raise ConfigError("pool.lambdas: a λ is given twice; every λ of the grid must differ")
    return values
