"""Mixing behind the student's first layer instead of before it.

Mixup is affine, and so are normalisation and a convolution (with its zero padding) or linear layer: the first layer's
output for a mixed image is the same mix of its outputs for the two images. They are worked out once for each image, so
the layer itself is saved for every candidate. What is scored that way is the mix before its pixels are rounded.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdray.search.work import multiplications
from kdray.students.models import ImageClassifier

_WORTH = 0.2  # of the multiplications must lie in the first layer: elsewhere mixing larger outputs costs what it saves
_MOST_BYTES = 256 << 20  # of a worker's memory for the outputs of all images
_LEAST_RUN = 8  # pairs with one image in common, on average: fewer are mixed one by one in no less time


def split(model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """A student as its first layer (uint8 images to that layer's outputs) and the rest (those to logits).

    None where it is no `ImageClassifier` around a sequence that begins with a convolution or linear layer.
    """
    if not isinstance(model, ImageClassifier):
        return None
    found = _cut(model.network)
    if found is None:
        return None
    first, rest = found
    return _First(model, first), rest


class _First(nn.Module):
    def __init__(self, model: ImageClassifier, layer: nn.Module) -> None:
        super().__init__()
        self.model, self.layer = model, layer

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(self.model.normalise(images))


def _cut(network: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The first layer of a sequence (of sequences), and a sequence of all others."""
    if not isinstance(network, nn.Sequential) or len(network) == 0:
        return None
    head, *others = network
    if type(head) in (nn.Conv2d, nn.Linear):
        return (head, nn.Sequential(*others)) if getattr(head, "padding_mode", "zeros") == "zeros" else None
    found = _cut(head)
    return None if found is None else (found[0], nn.Sequential(OrderedDict(head=found[1], tail=nn.Sequential(*others))))


def pays(model: nn.Module, image_shape: tuple[int, int, int], images: int) -> bool:
    """Whether mixing behind the first layer is faster, as far as arithmetic tells, and the outputs of so many images
    fit: a property of network and pool alone, so that every worker decides alike."""
    parts = split(model)
    if parts is None:
        return False
    counts = multiplications(model, image_shape)
    with torch.inference_mode():
        device = next(model.parameters()).device
        size = parts[0](torch.zeros(1, *image_shape, dtype=torch.uint8, device=device)).numel()
    return counts[0] >= _WORTH * sum(counts) and 4 * size * images <= _MOST_BYTES


class Outputs:
    """The first layer's outputs for all images of a pool, ready to be mixed.

    Args:
        first: images to outputs, float32 [B, ...]; of a convolution [B, C, H, W].
        images: [N, ...]. They go through it `step` at a time.
    """

    def __init__(self, first: nn.Module, images: Tensor, step: int = 256) -> None:
        for start in range(0, len(images), step):
            rows = first(images[start : start + step])
            if start == 0:
                self._images = rows.ndim == 4
            rows = rows.permute(0, 2, 3, 1) if self._images else rows  # as channels_last lies in memory
            if start == 0:  # filled bit by bit: it may be large, and is there once
                self._inner = rows.shape[1:]
                self._flat = rows.new_empty(len(images), self._inner.numel())
            self._flat[start : start + step] = rows.flatten(1)

    def mix(self, pairs: tuple[Tensor, Tensor], lambdas: Sequence[float]) -> Tensor:
        """λ row i + (1 - λ) row j for pairs (i, j) int64 [B] and all λ: float32 [B * len(lambdas), ...], those of a
        pair together; images in channels_last."""
        i, j = pairs
        flat, count = self._flat, len(lambdas)
        weight = torch.tensor(lambdas, dtype=flat.dtype, device=flat.device).view(1, -1, 1)
        mixed = flat.new_empty(len(i), count, flat.shape[1])
        for start, stop, first, second in _runs(i, j):
            one, other = flat[first].unsqueeze(1), flat[second].unsqueeze(1)
            torch.lerp(other, one, weight, out=mixed[start:stop])
        mixed = mixed.view(-1, *self._inner)
        return mixed.permute(0, 3, 1, 2) if self._images else mixed


def _runs(i: Tensor, j: Tensor) -> list[tuple[int, int, Tensor | slice, Tensor | slice]]:
    """Pairs (i, j) int64 [B] in parts [start, stop), with the rows of both sides for each.

    Pairs in the pool's order have i in common for a long time, and j one after the other. Rows that lie so need not be
    gathered, which takes as long as mixing them many times over. On a GPU it does not.
    """
    if i.device.type != "cpu" or len(i) == 0:
        return [(0, len(i), i, j)]
    breaks = (torch.nonzero(i.diff()).flatten() + 1).tolist()
    if len(breaks) > len(i) // _LEAST_RUN:
        return [(0, len(i), i, j)]
    parts = []
    for start, stop in zip([0, *breaks], [*breaks, len(i)], strict=True):
        first, second = int(i[start]), j[start:stop]
        if bool((second.diff() == 1).all()):
            second = slice(int(second[0]), int(second[-1]) + 1)
        parts.append((start, stop, slice(first, first + 1), second))
    return parts
