"""The multiplications in a student's forward pass, and the number of images in one batch."""

import torch
from torch import Tensor, nn

from kdray.models.classifier import ImageClassifier
from kdray.models.predict import images_at_a_time

# Images in one batch. A CPU batch fits into the caches (design, section 8), so it is smaller for a network with large
# layers. A GPU batch is large enough to keep the GPU busy.
CPU_BATCH, SLOW_CPU_BATCH, GPU_BATCH = 256, 64, 4096
_SLOW = 10_000_000  # multiplications per image; LeNet-5 needs 0.4 million, ResNet-20 needs 40 million


def multiplications(model: nn.Module, image_shape: tuple[int, int, int]) -> list[int]:
    """Multiplications in each convolution and linear layer for one image uint8 [C, H, W], in order of execution."""
    counts: list[int] = []

    def count(layer: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        assert isinstance(layer.weight, Tensor)
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
    """Images in one batch of `model` on `device`.

    The number depends on the network, its images and the kind of device, never on a measurement, because the bits of a
    result may depend on the batch size.
    """
    gpu = torch.device(device).type != "cpu"
    if not isinstance(model, ImageClassifier):
        return GPU_BATCH if gpu else CPU_BATCH
    slow = not gpu and sum(multiplications(model, model.image_shape)) > _SLOW
    most = GPU_BATCH if gpu else SLOW_CPU_BATCH if slow else CPU_BATCH
    return images_at_a_time(most, model.image_shape, device)
