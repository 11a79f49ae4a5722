"""Mixing behind the student's first layer instead of before it.

Mixup is affine, and so are normalisation and a convolution (with its zero padding) or linear layer: the first layer's
output for a mixed image is the same mix of its outputs for the two images. They are worked out once for each image, so
the layer itself is saved for every candidate. What is scored that way is the mix before its pixels are rounded.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdray.students.models import ImageClassifier

_WORTH = 0.2  # of the multiplications must lie in the first layer: elsewhere mixing larger outputs costs what it saves
_MOST_BYTES = 256 << 20  # of a worker's memory for the outputs of all images


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
    counts: list[int] = []

    def count(layer: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        counts.append(out[0].numel() * layer.weight[0].numel())

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    was, device = model.training, next(model.parameters()).device
    with torch.inference_mode():
        blank = torch.zeros(1, *image_shape, dtype=torch.uint8, device=device)
        model.eval()(blank)
        size = parts[0](blank).numel()
    model.train(was)
    for hook in hooks:
        hook.remove()
    return counts[0] >= _WORTH * sum(counts[:-1]) and 4 * size * images <= _MOST_BYTES


def mix(table: Tensor, pairs: tuple[Tensor, Tensor], lambdas: Sequence[float]) -> Tensor:
    """λ table[i] + (1 - λ) table[j] for pairs (i, j) int64 [B] and all λ: float32 [B * len(lambdas), ...], those of a
    pair together."""
    i, j = pairs
    weight = torch.tensor(lambdas, dtype=table.dtype, device=table.device).view(1, -1, *[1] * (table.ndim - 1))
    return torch.lerp(table[j].unsqueeze(1), table[i].unsqueeze(1), weight).flatten(0, 1)
