"""A network with its input normalisation, which takes images as they are stored."""

import copy
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdray.errors import ModelError
from kdray.models.base import Architecture, find_model
from kdray.utils.seeds import global_numbers, torch_seed
from kdray.utils.stored import rows_in_a_part

_TRIES = 16  # of a network that leaves layers out at random: each of them has its turn


class ImageClassifier(nn.Module):
    """uint8 images [B, C, H, W] in, logits float [B, K] out.

    Args:
        network: takes normalised float [B, C, H, W].
        image_shape: (C, H, W) it was made for.
        mean, std: of each channel, in units of pixel / 255.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, image_shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.network = network
        self.image_shape = _as_shape(image_shape)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of uint8 images [B, C, H, W].

        Raises:
            ModelError: images of another shape than `image_shape`.
        """
        if tuple(images.shape[1:]) != self.image_shape:
            raise ModelError(f"the model takes images of shape {self.image_shape}, got {tuple(images.shape[1:])}")
        logits: Tensor = self.network(self.normalise(images))
        return logits

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels uint8 [B, C, H, W] as the network takes them: (pixel / 255 - mean) / std, float [B, C, H, W]."""
        scale, offset = 1.0 / (255.0 * self.std), self.mean / self.std
        return torch.addcmul(-offset, images.to(self.mean.dtype), scale)


def build_network(name: str, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A network with weights from the global random state: normalised float [B, C, H, W] in, logits [B, K] out.

    Args:
        name: see `kdray.models.base.find_model`.
        image_shape: (C, H, W).
        num_classes: K.

    Raises:
        ModelError: an unknown name, images too small for the network, or a user's own class or function that does not
            give such a network.
    """
    architecture = find_model(name)
    if architecture.users_own:
        return _build_users_own(architecture, image_shape, num_classes)
    return architecture.build(image_shape, num_classes)


def _build_users_own(architecture: Architecture, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build a user's network, and try a copy of it on two black images, in training mode and in eval mode."""
    name = architecture.name
    build: Callable[..., Any] = architecture.build
    if isinstance(build, nn.Module):
        raise ModelError(f"{name} is a network already; name its class, or a function that makes one")
    arguments, named = _arguments(build, image_shape, num_classes)
    try:
        network = build(*arguments, **named)
    except Exception as error:  # a user's function may raise anything
        call = ", ".join([*map(str, arguments), *(f"{key}={value}" for key, value in named.items())])
        raise ModelError(f"{name}({call}) failed ({type(error).__name__}: {error})") from None
    if not isinstance(network, nn.Module):
        raise ModelError(f"{name} gave a {type(network).__name__}, not a torch.nn.Module")
    if any(is_lazy(tensor) for tensor in itertools.chain(network.parameters(), network.buffers())):
        _try(network.eval(), name, image_shape, num_classes)  # now their shapes are known
        network.train()
    trial = copy.deepcopy(network)
    _try(trial.eval(), name, image_shape, num_classes)
    trial.train()
    for _ in range(_TRIES):
        logits = _try(trial, name, image_shape, num_classes)
        if not logits.requires_grad:
            raise ModelError(f"{name} made a network that has no parameters to train")
        logits.sum().backward()
        idle = [key for key, value in trial.named_parameters() if value.requires_grad and value.grad is None]
        if not idle:
            break
    else:
        raise ModelError(f"{name} made a network whose logits do not depend on its parameter {idle[0]}; remove it")
    return network


def _arguments(
    build: Callable[..., Any], image_shape: tuple[int, int, int], num_classes: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a user's class or function is called: with the image shape and the number of classes by their names where it
    needs no other arguments than `num_classes` and `image_shape`, else with both in this order."""
    given = {"image_shape": image_shape, "num_classes": num_classes}
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):  # some that are not written in Python have none
        return (image_shape, num_classes), {}
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = {name for name, one in parameters.items() if one.default is one.empty and one.kind not in free}
    if "num_classes" not in parameters or not needed <= given.keys():
        return (image_shape, num_classes), {}
    return (), {name: value for name, value in given.items() if name in parameters}


def _try(network: nn.Module, name: str, image_shape: tuple[int, int, int], num_classes: int) -> Tensor:
    """The logits of two black images.

    Raises:
        ModelError: the network fails, or gives anything but float [2, num_classes].
    """
    try:
        with torch.enable_grad():
            logits = network(torch.zeros(2, *image_shape))
    except Exception as error:  # a user's network may raise anything
        raise ModelError(
            f"{name} made a network that cannot take float images {[2, *image_shape]} ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(logits, Tensor) or list(logits.shape) != [2, num_classes] or not logits.is_floating_point():
        got = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ModelError(
            f"{name} made a network that gives {got} for two images and {num_classes} classes; it must "
            f"give float logits {[2, num_classes]}"
        )
    return logits


def build_model(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    seed: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageClassifier:
    """A classifier with fresh weights, the same for the same seed; the global random state does not change.

    Args:
        name: of the network, see `kdray.models.base.find_model`.
        image_shape: (C, H, W).
        num_classes: K.
        seed: of the initial weights.
        mean, std: input normalisation of each channel, in units of pixel / 255; None: 0.5 and 0.25.

    Raises:
        ModelError: see `build_network`.
    """
    shape = _as_shape(image_shape)
    find_model(name)  # imports a user's module, which may draw random numbers, before these are seeded
    with global_numbers(torch_seed(seed, f"weights of {name}")):
        network = build_network(name, shape, num_classes)
    return ImageClassifier(network, shape, mean or [0.5] * shape[0], std or [0.25] * shape[0])


def _as_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width


def pixel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 images [N, C, H, W], in units of pixel / 255.

    The sums are of exact integers, so they do not depend on threads or batches. A constant channel gets the standard
    deviation 1.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in images.split(rows_in_a_part(images.shape[1:])):  # all at once would be several copies of the set
        counts += torch.stack([part[:, c].flatten().bincount(minlength=256) for c in range(part.shape[1])])
    values = torch.arange(256, dtype=torch.float64) / 255.0
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    mean = share @ values
    std = ((share @ values.square()) - mean.square()).clamp_min(0).sqrt()
    return mean.tolist(), torch.where(std < 1e-6, 1.0, std).tolist()
