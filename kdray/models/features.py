"""Features of images: the input of a student's last linear layer."""

import torch
from torch import Tensor, nn

from kdray.errors import ModelError


def head(model: nn.Module) -> nn.Linear:
    """The linear layer that gives a model's logits, its last.

    Raises:
        ModelError: the model does not end in one.
    """
    layers = [layer for layer in model.modules() if not any(layer.children())]
    if not layers or not isinstance(layers[-1], nn.Linear):
        raise ModelError(
            "the student does not end in a linear layer, whose input they would be; choose another student.model or "
            "select.strategy"
        )
    return layers[-1]


def penultimate(model: nn.Module, images: Tensor) -> Tensor:
    """Features of uint8 images [B, C, H, W]: float32 [B, D].

    Raises:
        ModelError: see `head`.
    """
    return features_and_logits(model, images)[0]


def features_and_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and the logits float32 [B, K] that the model makes of them."""
    seen: list[Tensor] = []
    hook = head(model).register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    try:
        logits: Tensor = model(images)
    finally:
        hook.remove()
    return torch.cat(seen).float(), logits.float()
