"""How much work a student is, and how many images go through it at once."""

import torch
from torch import Tensor, nn

from kdray.students.models import ImageClassifier

# Images in one forward pass: on a CPU small enough for its caches (design, section 8), which is less where a network's
# layers are large; on a GPU enough to fill it.
CPU_BATCH, SLOW_CPU_BATCH, GPU_BATCH = 256, 64, 4096
_SLOW = 10_000_000  # multiplications an image: LeNet-5 takes 0.4 million, ResNet-20 forty


def multiplications(model: nn.Module, image_shape: tuple[int, int, int]) -> list[int]:
    """Multiplications of each convolution and linear layer for one image uint8 [C, H, W], in the order they are run."""
    counts: list[int] = []

    def count(layer: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        counts.append(out[0].numel() * layer.weight[0].numel())

    hooks = [
        layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    was = model.training
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, *image_shape, dtype=torch.uint8, device=next(model.parameters()).device))
    finally:
        model.train(was)
        for hook in hooks:
            hook.remove()
    return counts


def batch_on(device: str | torch.device, model: nn.Module) -> int:
    """Images in one forward pass of `model` on `device`.

    A property of the network and of the kind of device, never of a measurement: bits may depend on the size of a pass.
    """
    if torch.device(device).type != "cpu":
        return GPU_BATCH
    slow = isinstance(model, ImageClassifier) and sum(multiplications(model, model.image_shape)) > _SLOW
    return SLOW_CPU_BATCH if slow else CPU_BATCH
