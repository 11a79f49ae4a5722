"""Networks by name: those that come with kdray, torchvision's, and a user's own by `module:object`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from kdray.errors import ModelError
from kdray.models.torchvision import PREFIX, build_torchvision, torchvision_names
from kdray.sections.base import did_you_mean
from kdray.sections.registry import Catalogue, import_object

if TYPE_CHECKING:
    from torch import nn

Builder = Callable[[tuple[int, int, int], int], "nn.Module"]
"""Makes a network with fresh weights for images of shape (C, H, W) and K classes.

The network takes normalised images, float32 [B, C, H, W], and gives logits, float32 [B, K].
"""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network that can be built by name.

    Attributes:
        name: in configs and model files.
        build: makes the network.
        light: a training step takes about a millisecond, so that one CPU thread is the fastest.
        users_own: it does not come with kdray, and what `build` returns has to be checked.
    """

    name: str
    build: Builder
    light: bool = False
    users_own: bool = False


_ARCHITECTURES: dict[str, Architecture] = {}
_CATALOGUE = Catalogue("kdray.models.zoo")


def register_model(name: str, *, light: bool = False) -> Callable[[Builder], Builder]:
    """Decorator: register a builder under `name`; see `Architecture` for `light`."""

    def register(build: Builder) -> Builder:
        architecture = Architecture(name=name, build=build, light=light)
        if _ARCHITECTURES.setdefault(name, architecture) != architecture:
            raise ValueError(f"two models are named {name!r}")
        return build

    return register


def model_names() -> list[str]:
    """Names of the networks that come with kdray, sorted."""
    _CATALOGUE.load()
    return sorted(_ARCHITECTURES)


def find_model(name: str) -> Architecture:
    """The network of that name: of the zoo, else torchvision's, or a user's own by `module:object`.

    Args:
        name: `torchvision/NAME` is torchvision's also where the zoo has one of that name; so are `torchvision:NAME` and
            `torchvision.models:NAME`.

    Raises:
        ModelError: there is none, or what is named cannot be imported or called.
    """
    if (theirs := re.match(r"torchvision(/|:|\.models:)", name)) is not None:
        return _of_torchvision(name[theirs.end() :])
    if ":" in name:
        try:
            build = import_object(name)
        except LookupError as error:
            raise ModelError(f"no model {name!r}: {error.args[0]}") from None
        if not callable(build):
            raise ModelError(
                f"no model {name!r}: it is a {type(build).__name__}, not a class or a function of (image shape, K)"
            )
        return Architecture(name=name, build=build, users_own=True)
    names = model_names()
    if name in names:
        return _ARCHITECTURES[name]
    if name in torchvision_names():
        return _of_torchvision(name)
    near = did_you_mean(name, [*names, *torchvision_names()])
    hint = f"; {near}" if near else "."
    raise ModelError(
        f"no model named {name!r}{hint} There are: {', '.join(names)}; and torchvision's classifiers, such as resnet50"
    )


def _of_torchvision(name: str) -> Architecture:
    """Its name in configs and files says that it is torchvision's: a later zoo may have a network of that name."""
    names = torchvision_names()
    if name not in names:
        near = did_you_mean(name, names)
        raise ModelError(f"torchvision has no classifier named {name!r}" + (f"; {near}" if near else ""))
    return Architecture(name=f"{PREFIX}{name}", build=partial(build_torchvision, name))


def known_model(name: str) -> str:
    """The name of a network in full: `resnet50`, which the zoo has not, is `torchvision/resnet50`.

    Raises:
        ValueError: `find_model` does not find it; the message is that of `find_model`.
    """
    try:
        return find_model(name).name
    except ModelError as error:
        raise ValueError(str(error)) from None


ModelName = Annotated[str, AfterValidator(known_model)]
"""A config field that names a network."""
