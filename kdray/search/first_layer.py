"""Mixing the outputs of the student's first layer instead of pixels.

Mixup, normalisation, and a linear or convolution layer (with zero padding) are affine. So the first layer's output for
a mixed image is the same mix of its outputs for the two images. These outputs are computed once for each image, and no
candidate needs the first layer again. The scored image is the mix before its pixels are rounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kdray.models.classifier import ImageClassifier
from kdray.search.cost import multiplications

_WORTH = 0.2  # least share of multiplications in the first layer; below it, mixing outputs costs as much as it saves
_MOST_BYTES = 256 << 20  # most memory of a worker for the outputs of all images
_LEAST_RUN = 8  # least mean number of consecutive pairs that share an image; shorter runs are not faster


def split(model: nn.Module) -> tuple[FirstLayer, nn.Module] | None:
    """Split a student into its first layer (uint8 images to outputs) and the rest (outputs to logits).

    Returns:
        None unless the student is an `ImageClassifier` around a sequence that begins with a convolution or linear
        layer.
    """
    if not isinstance(model, ImageClassifier):
        return None
    found = _cut(model.network)
    if found is None:
        return None
    first, rest = found
    return FirstLayer(model, first), rest


class FirstLayer:
    """Maps images uint8 [B, C, H, W] to the outputs of a model's first layer."""

    def __init__(self, model: ImageClassifier, layer: nn.Module) -> None:
        self._model, self._layer = model, layer

    def __call__(self, images: Tensor) -> Tensor:
        outputs: Tensor = self._layer(self._model.normalise(images.to(self._model.mean.device)))
        return outputs


def _cut(network: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The first layer of a sequence, which may be nested, and a sequence of the other layers."""
    if not isinstance(network, nn.Sequential) or len(network) == 0:
        return None
    head, *others = network
    if type(head) in (nn.Conv2d, nn.Linear):
        return (head, nn.Sequential(*others)) if getattr(head, "padding_mode", "zeros") == "zeros" else None
    found = _cut(head)
    return None if found is None else (found[0], nn.Sequential(OrderedDict(head=found[1], tail=nn.Sequential(*others))))


def pays(model: nn.Module, image_shape: tuple[int, int, int], images: int) -> bool:
    """Whether mixing behind the first layer pays.

    The first layer must have a large share of the multiplications, and the outputs of `images` images must fit into
    memory. The answer depends on the network and the pool alone, so every worker gives the same one.
    """
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
        first: maps images to outputs float32 [B, ...]; [B, C, H, W] for a convolution.
        images: [N, ...].
        step: images in one call of `first`.
    """

    def __init__(self, first: Callable[[Tensor], Tensor], images: Tensor, step: int = 256) -> None:
        for start in range(0, len(images), step):
            rows = first(images[start : start + step])
            if start == 0:
                self._images = rows.ndim == 4
            rows = rows.permute(0, 2, 3, 1) if self._images else rows  # the memory layout of channels_last
            if start == 0:  # one buffer, filled in parts: it may be large
                self._inner = rows.shape[1:]
                self._flat = rows.new_empty(len(images), self._inner.numel())
            self._flat[start : start + step] = rows.flatten(1)

    def mix(self, pairs: tuple[Tensor, Tensor], lambdas: Sequence[float]) -> Tensor:
        """Mix λ row i + (1 - λ) row j for pairs (i, j) int64 [B] and every λ.

        Returns:
            float32 [B * len(lambdas), ...]. The mixes of a pair are consecutive. Outputs of a convolution are in
            channels_last.
        """
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
    """Split pairs (i, j) int64 [B] into parts [start, stop), each with the rows of both sides.

    In the pool's order, many consecutive pairs share i, and their j ascend by one. Such rows are contiguous and need no
    gathering, which on a CPU takes many times as long as mixing. On a GPU gathering is fast, so all pairs are one part.
    """
    if i.device.type != "cpu" or len(i) == 0:
        return [(0, len(i), i, j)]
    breaks = (torch.nonzero(i.diff()).flatten() + 1).tolist()
    if len(breaks) > len(i) // _LEAST_RUN:
        return [(0, len(i), i, j)]
    parts: list[tuple[int, int, Tensor | slice, Tensor | slice]] = []
    for start, stop in zip([0, *breaks], [*breaks, len(i)], strict=True):
        first, second = int(i[start]), j[start:stop]
        in_a_row = bool((second.diff() == 1).all())
        others = slice(int(second[0]), int(second[-1]) + 1) if in_a_row else second
        parts.append((start, stop, slice(first, first + 1), others))
    return parts
