"""Predictions of a classifier, and their accuracy."""

import torch
from torch import Tensor, nn

from kdray.utils.devices import cpu_threads, resolve_device


def predict(
    model: nn.Module, images: Tensor, *, batch_size: int = 256, device: str = "cpu", threads: int | None = None
) -> Tensor:
    """Probabilities float32 [N, K] of uint8 images [N, C, H, W]; the model is left on the device and in eval mode.

    Args:
        model: uint8 images [B, C, H, W] to logits [B, K].
        images: on any device.
        batch_size: images a forward pass.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads; None leaves the setting alone.

    Raises:
        ConfigError: a GPU is named that is not there.
    """
    target = resolve_device(device)
    model = model.to(target).eval()
    with cpu_threads(threads), torch.inference_mode():
        parts = [model(batch.to(target)).float().softmax(dim=1).cpu() for batch in images.split(batch_size)]
    return torch.cat(parts)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of equal entries of two int64 [N]; where `labels` are the teacher's, it is the agreement with it."""
    return float((predictions == labels).double().mean())
