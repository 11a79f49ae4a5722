"""Predictions of a classifier and what they are worth."""

import torch
from torch import Tensor, nn

from kdray.students.train import cpu_threads, resolve_device


def predict(
    model: nn.Module, images: Tensor, *, batch_size: int = 256, device: str = "cpu", threads: int | None = None
) -> Tensor:
    """Probabilities float32 [N, K] of uint8 images [N, C, H, W], in batches of fixed size, in eval mode."""
    target = resolve_device(device)
    model = model.to(target).eval()
    with cpu_threads(threads), torch.inference_mode():
        parts = [model(batch.to(target)).float().softmax(dim=1).cpu() for batch in images.split(batch_size)]
    return torch.cat(parts)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of equal entries of two int64 [N]; also the agreement, when `labels` are the teacher's."""
    return float((predictions == labels).double().mean())
