"""torchvision's classifiers by name, with fresh weights: for images of any number of channels, and without the heads
that some of them have for training alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdray.errors import ModelError
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "torchvision/"
"""What a name of kdray's begins with where it names a network of torchvision's."""

_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Networks with further classifiers for training alone, and what the names of these classifiers' weights begin with."""


def torchvision_names() -> list[str]:
    """Names of torchvision's classifiers, sorted. This imports torchvision."""
    import torchvision

    return sorted(torchvision.models.list_models(module=torchvision.models))


def build_torchvision(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A classifier of torchvision's with fresh weights: normalised float [B, C, H, W] in, logits [B, K] out.

    Where the images have not three channels, the first convolution is replaced by one that takes as many as they have.
    Classifiers for training alone (GoogLeNet, Inception v3) are left out.

    Args:
        name: one of `torchvision_names`.
        shape: (C, H, W).
        classes: K.

    Raises:
        ModelError: the network cannot take images of this size.
    """
    import torchvision

    options: dict[str, Any] = {}
    if name in _AUXILIARY:
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        options = {"image_size": shape[1]}
    elif name.startswith("maxvit"):
        options = {"input_size": shape[1:]}
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
        if shape[0] != 3:
            _replace_first_convolution(network, shape[0])
        _try(network, shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{PREFIX}{name} cannot take images of {shape[1]}x{shape[2]} ({reason}); resize them (images.size), for "
            "example to 224"
        ) from None
    return network


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    """Make the first convolution take so many channels; its weights are drawn anew."""
    from torch import nn

    name, old = next((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        kernel_size=old.kernel_size,  # type: ignore[arg-type]  # torch keeps two numbers, whatever it was given
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new)


def _try(network: nn.Module, shape: tuple[int, int, int]) -> None:
    """Let a network take two images on torch's meta device, where shapes are computed and nothing else.

    Raises:
        RuntimeError, ValueError, AssertionError: it cannot.
    """
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    nowhere = {name: value.to("meta") for name, value in state.items()}
    with torch.no_grad():
        torch.func.functional_call(network, nowhere, (torch.zeros(2, *shape, device="meta"),))


def without_auxiliary(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network without those of classifiers for training alone, which files of torchvision's hold.

    Args:
        name: of any network, as configs have it.
        tensors: by their names in the network.
    """
    left_out = _AUXILIARY.get(name.removeprefix(PREFIX), ()) if name.startswith(PREFIX) else ()
    return {key: value for key, value in tensors.items() if not key.startswith(left_out)}
