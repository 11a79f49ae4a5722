"""Predictions of a classifier, and their accuracy."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kdray.utils.devices import cpu_threads, resolve_device

_NUMBERS = {"cpu": 16 * 3 * 224 * 224, "gpu": 4096 * 3 * 64 * 64}


def predict(
    model: nn.Module, images: Tensor, *, batch_size: int = 256, device: str = "cpu", threads: int | None = None
) -> Tensor:
    """Probabilities float32 [N, K] of uint8 images [N, C, H, W]; the model is left on the device and in eval mode.

    Args:
        model: uint8 images [B, C, H, W] to logits [B, K].
        images: on any device.
        batch_size: most images in a forward pass; large images go fewer at a time, see `images_at_a_time`.
        device: auto, cpu, cuda or cuda:N.
        threads: CPU threads; None leaves the setting alone.

    Raises:
        ConfigError: a GPU is named that is not there.
    """
    return _passes(model, images, lambda logits: logits.softmax(dim=1), batch_size, device, threads)


def predict_log_probs(
    model: nn.Module, images: Tensor, *, batch_size: int = 256, device: str = "cpu", threads: int | None = None
) -> Tensor:
    """Natural logarithms of what `predict` gives, also of probabilities that float32 rounds to 0 or 1."""
    return _passes(model, images, lambda logits: logits.log_softmax(dim=1), batch_size, device, threads)


def _passes(
    model: nn.Module,
    images: Tensor,
    finish: Callable[[Tensor], Tensor],
    batch_size: int,
    device: str,
    threads: int | None,
) -> Tensor:
    target = resolve_device(device)
    model = model.to(target).eval()
    step = images_at_a_time(batch_size, images.shape[1:], target)
    with cpu_threads(threads), torch.inference_mode():
        parts = [finish(model(batch.to(target)).float()).cpu() for batch in images.split(step)]
    return torch.cat(parts)


def images_at_a_time(most: int, image_shape: Sequence[int], device: str | torch.device) -> int:
    """Images in a forward pass: `most`, or for large images the highest power of two that a pass has memory for.

    A pass holds several times the numbers of its input. `most` is meant for images of up to 3x64x64, so others go as
    many at a time as have the numbers of `_NUMBERS`. It depends on the kind of device alone, never on what is free: the
    bits of a result may depend on it.
    """
    room = _NUMBERS["cpu" if torch.device(device).type == "cpu" else "gpu"] // math.prod(image_shape)
    return min(most, 1 << max(0, room.bit_length() - 1))


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of equal entries of two int64 [N]; where `labels` are the teacher's, it is the agreement with it."""
    return float((predictions == labels).double().mean())
