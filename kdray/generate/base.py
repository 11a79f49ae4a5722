"""Generators by name: those that come with kdray, and a user's own by `module:object`."""

from __future__ import annotations

import copy
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from kdray.errors import ModelError
from kdray.sections.base import did_you_mean
from kdray.sections.registry import import_object
from kdray.utils.lazy import torch
from kdray.utils.seeds import global_numbers

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHAKEN = 0.1  # standard deviation by which the parameters of a trial are moved
_SAME = 1e-3  # a quarter of a grey level: two calls may differ in the last bits
_NETWORKS = "kdray.generate.networks"
GENERATORS: dict[str, str] = {
    "dcgan": f"{_NETWORKS}.dcgan:DCGAN",
    "stylegan": f"{_NETWORKS}.stylegan:StyleGAN",
    "transformer": f"{_NETWORKS}.transformer:Transformer",
}
"""Where the class of each network is that comes with kdray."""


def known_generator(name: str) -> str:
    """The name of a generator, as it is.

    Raises:
        ValueError: there is none of that name, or what `module:object` names cannot be imported or called.
    """
    if name in GENERATORS:
        return name
    if ":" not in name:
        near = did_you_mean(name, list(GENERATORS))
        raise ValueError(
            f"no generator named {name!r}{f'; {near}' if near else '.'} There are: {', '.join(GENERATORS)}; and your "
            "own as module:object"
        )
    try:
        build = import_object(name)
    except LookupError as error:
        raise ValueError(f"no generator {name!r}: {error.args[0]}") from None
    if not callable(build):
        raise ValueError(
            f"no generator {name!r}: it is a {type(build).__name__}, not a class or a function of (length of a code, "
            "image shape)"
        )
    return name


GeneratorName = Annotated[str, AfterValidator(known_generator)]
"""A config field that names a generator."""


def build_generator(name: str, code: int, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
    """A generator with fresh weights, the same for the same seed; the global random state does not change.

    Args:
        name: a key of `GENERATORS`, or a user's own as `module:object`.
        code: D, length of the codes.
        image_shape: (C, H, W), any.
        seed: of the weights.

    Raises:
        ModelError: a user's own class or function does not give such a network.
    """
    ours = name in GENERATORS
    # A user's module is imported before random numbers are seeded: it may draw some
    build: Callable[..., Any] = pkgutil.resolve_name(GENERATORS[name]) if ours else import_object(name)
    with global_numbers(seed):
        network: nn.Module = build(code, image_shape) if ours else _build_users_own(build, name, code, image_shape)
    return network


def _build_users_own(build: Callable[..., Any], name: str, code: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Build a user's network, and try a copy of it on a few codes, in training mode and in eval mode."""
    if isinstance(build, torch.nn.Module):
        raise ModelError(f"{name} is a network already; name its class, or a function that makes one")
    try:
        network = build(code, image_shape)
    except Exception as error:  # a user's function may raise anything
        raise ModelError(f"{name}({code}, {image_shape}) failed ({type(error).__name__}: {error})") from None
    if not isinstance(network, torch.nn.Module):
        raise ModelError(f"{name} gave a {type(network).__name__}, not a torch.nn.Module")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ModelError(f"{name} made a network that has no parameters to train")
    trial = copy.deepcopy(network)
    for mode in (True, False):
        _try(trial.train(mode), name, torch.randn(2, code), image_shape)
    _try_alone(trial, name, torch.randn(3, code))
    return network


def _try(network: nn.Module, name: str, codes: Tensor, image_shape: tuple[int, int, int]) -> None:
    """Make images of codes float [2, D].

    Raises:
        ModelError: the network fails, or gives anything but images float [2, C, H, W] in [0, 1].
    """
    try:
        with torch.no_grad():
            images = network(codes)
    except Exception as error:
        raise ModelError(
            f"{name} made a network that cannot take codes float {list(codes.shape)} ({type(error).__name__}: {error})"
        ) from None
    wanted = [len(codes), *image_shape]
    if not isinstance(images, torch.Tensor) or not images.is_floating_point() or list(images.shape) != wanted:
        given = f"{images.dtype} {list(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise ModelError(f"{name} gives {given} for two codes; it must give float images {wanted} in [0, 1]")
    if not bool(((images >= 0) & (images <= 1)).all()):  # false for NaN, too
        lowest, highest = images.min().item(), images.max().item()
        raise ModelError(
            f"{name} gives pixels from {lowest:.3g} to {highest:.3g}; they must lie in [0, 1]: end it with a sigmoid"
        )


def _try_alone(network: nn.Module, name: str, codes: Tensor) -> None:
    """Make images of codes float [3, D] in eval mode, twice and in other company.

    Raises:
        ModelError: an image does not follow from its code alone. What is asked about would not be what was scored, and
            a run that goes on would pay for other images.
    """
    with torch.no_grad():
        for parameter in network.parameters():  # noise may have a strength that is 0 before training
            parameter.add_(torch.randn_like(parameter), alpha=_SHAKEN)
        images, again, company = network(codes), network(codes), network(codes[[0, 2, 2]])
    for other, why in (
        (again[0], "another image each time"),
        (company[0], "another image beside other codes, as batch normalisation without running statistics does,"),
    ):
        if not torch.allclose(images[0], other, atol=_SAME, rtol=0, equal_nan=True):
            raise ModelError(
                f"{name} gives {why} for one code in eval mode; an image must follow from its code alone: draw random "
                "numbers, and look at the batch, in training mode alone"
            )
