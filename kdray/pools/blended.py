"""The pool of blended pairs: a random blend of two images, each transformed before.

Candidate id = pair * draws + draw. All that is random in a candidate is a hash of its id and the run's seed: the
variant of each image, whose share is drawn, and how the two are blended. Only the images are stored, and on a worker
the variants that it has made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from kdray.errors import ConfigError
from kdray.pools.base import pools
from kdray.pools.blends.base import Blend, blends
from kdray.pools.counter import BITS, CounterRandom, below
from kdray.pools.sample import OfPairs, PairSample, check_images
from kdray.pools.transforms.base import Transform, transforms
from kdray.utils.lazy import torch
from kdray.utils.seeds import torch_seed

if TYPE_CHECKING:
    from torch import Tensor

_RENDER_BATCH = 1024
_WORDS = 3  # random numbers of a candidate besides those of its blend


@pools.register
class PairsSection(OfPairs):
    """The candidates are pairs of images, transformed and blended at random, several times each."""

    mixes: ClassVar[bool] = True

    kind: Literal["pairs"] = "pairs"
    blend: Annotated[Blend, blends] = Field(default_factory=blends.default)
    """How a candidate is made of two images: the kind alone, or a section with its kind and its other fields."""
    pre: Annotated[Transform, transforms] = Field(default_factory=transforms.default)
    """What is done to each of the two images before: the kind alone, or a section with its kind and its other
    fields."""
    draws: Annotated[int, Field(ge=1, le=1 << 20)] = 4
    """Candidates of each pair. A strategy that chooses at most one per pair takes the one of lowest score."""

    def build(self, images: Tensor, seed: int) -> BlendedPool:
        """See `PoolSection`."""
        return BlendedPool(images, self.blend, self.pre, draws=self.draws, pairs=self.count, seed=seed)


class BlendedPool:
    """Random blends of all pairs i < j of images, or of a sample of the pairs, rendered on demand.

    All arithmetic is exact, so the same id gives the same bits on every worker, CPU or GPU, in any order of ids.

    Args:
        images: uint8 [N, C, H, W], N >= 2; the pool lives on their device.
        blend: how two images are blended.
        pre: what is done to each of them before.
        draws: candidates of each pair.
        pairs: number of pairs to sample, without replacement; None means all pairs, in row-major order.
        seed: the run's seed. A larger sample with the same seed begins with the smaller one.

    Raises:
        ImageSetError: there are fewer than two images, or they are not uint8 [N, C, H, W].
        ConfigError: `draws` is not positive, or `pairs` exceeds the number of pairs.
    """

    linear = False
    real = False

    def __init__(
        self, images: Tensor, blend: Blend, pre: Transform, *, draws: int = 1, pairs: int | None = None, seed: int = 0
    ) -> None:
        check_images(images, "pair")
        if draws < 1:
            raise ConfigError(f"pool.draws: a pair needs at least one candidate, got {draws}")
        self.images = images
        self._parts, self._draws, self._pairs, self._seed = (blend, pre), draws, pairs, seed
        self._sample = PairSample(len(images), pairs, torch_seed(seed, "pairs"))
        self._random = CounterRandom(seed, "blends", _WORDS + blend.words)
        self._variants = pre.build(images.contiguous(), seed)
        self._blend = blend.build(self.image_shape, images.device)

    def __len__(self) -> int:
        return self.num_groups * self.group_size

    @property
    def source(self) -> str:
        """See `Pool`: the blend, after the pre-transform if there is one."""
        blend, pre = self._parts
        return blend.kind if pre.kind == "none" else f"{pre.kind}+{blend.kind}"

    @property
    def num_groups(self) -> int:
        """Number of pairs in the pool."""
        return len(self._sample)

    @property
    def group_size(self) -> int:
        """Candidates of each pair."""
        return self._draws

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every candidate."""
        return (self.images.shape[1], self.images.shape[2], self.images.shape[3])

    def to(self, device: str | torch.device) -> BlendedPool:
        """The same pool with its images on `device`; this object if they are there already."""
        if self.images.device == torch.device(device):
            return self
        return BlendedPool(self.images.to(device), *self._parts, draws=self._draws, pairs=self._pairs, seed=self._seed)

    def pair(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Map groups int64 [B] to the numbers (i, j) of their two images, int64 [B] each, i < j.

        Raises:
            IndexError: a group is negative or not below num_groups.
        """
        return self._sample(groups)

    def render(self, ids: Tensor) -> Tensor:
        """Map candidate ids int64 [B] to images uint8 [B, C, H, W].

        Raises:
            IndexError: an id is negative or not below len(pool).
        """
        ids = ids.to(self.images.device)
        rendered = self.images.new_empty((len(ids), *self.image_shape))
        for part, out in zip(ids.split(_RENDER_BATCH), rendered.split(_RENDER_BATCH), strict=True):
            out.copy_(self._blended(*self._drawn(*self.pair(part // self._draws), part)))
        return rendered

    def batches(self, groups: Tensor, step: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Images of the candidates of `groups` int64 [G], `step` groups at a time.

        They equal `render` of their ids. All that is random is drawn for all groups at once.

        Args:
            indices: numbers of draws; None means all.

        Yields:
            uint8 [B * len(indices), C, H, W]. The candidates of a group are consecutive.
        """
        groups = groups.to(self.images.device)
        draws = torch.tensor(list(range(self._draws) if indices is None else indices), device=groups.device)
        i, j = (side.repeat_interleave(len(draws)) for side in self.pair(groups))
        one, other, words = self._drawn(i, j, (groups.unsqueeze(1) * self._draws + draws).flatten())
        self._variants.prepare(torch.cat([one, other]))
        for begin in range(0, len(one), max(1, step * len(draws))):
            part = slice(begin, begin + step * len(draws))
            yield self._blended(one[part], other[part], words[:, part])

    def describe(self, ids: Tensor) -> dict[str, list[Any]]:
        """Columns for the record of chosen candidates: image numbers `i`, `j`, the number of the `draw`, the numbers of
        the variants that were blended, `variant_i`, `variant_j`, and the `share` of image i."""
        ids = ids.to(self.images.device)
        i, j = self.pair(ids // self._draws)
        words = self._random(ids)
        variants = below(words[1:_WORDS], self._variants.each)
        share = self._blend.shares(words[_WORDS:])
        return {
            "i": i.tolist(),
            "j": j.tolist(),
            "draw": (ids % self._draws).tolist(),
            "variant_i": variants[0].tolist(),
            "variant_j": variants[1].tolist(),
            "share": torch.where(_swapped(words), 1.0 - share, share).tolist(),
        }

    def middle(self) -> int:
        """Index of the draw that the random strategy takes: the first, since they are all alike."""
        return 0

    def _drawn(self, i: Tensor, j: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the candidates `ids` of pairs (i, j), int64 [B] each, are made of: the variants `one` and `other`, int64
        [B] each, and the blend's random numbers, int64 [words, B]."""
        words = self._random(ids)
        each = self._variants.each
        first, second = (image * each + below(word, each) for image, word in zip((i, j), words[1:_WORDS], strict=True))
        swapped = _swapped(words)
        return torch.where(swapped, second, first), torch.where(swapped, first, second), words[_WORDS:]

    def _blended(self, one: Tensor, other: Tensor, words: Tensor) -> Tensor:
        return self._blend(self._variants(one), self._variants(other), words)


def _swapped(words: Tensor) -> Tensor:
    """Whether image j, not i, is the one whose share is drawn."""
    return words[0] >> (BITS - 1) == 1
