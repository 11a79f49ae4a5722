"""The space of a sweep: which values a key may have, and the points of a grid or a random search."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kdray.errors import ConfigError
from kdray.sections.base import did_you_mean

_FARTHEST = {"uniform": 1e300, "loguniform": 1e300, "randint": 1 << 62}
"""Ends of a range, of which differences and logarithms stay numbers of the generator."""
KINDS = ("grid", "choice", "uniform", "loguniform", "randint")
Kind = Literal["grid", "choice", "uniform", "loguniform", "randint"]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The values of one key.

    Attributes:
        kind: how they are drawn: `grid` values are all tried; of `choice` each is as likely; of a range every number
            (uniform), every logarithm (loguniform) or every whole number (randint).
        values: the listed values; None for a range.
        low, high: ends of a range, both included.
    """

    kind: Kind
    values: tuple[Any, ...] | None = None
    low: float = 0.0
    high: float = 0.0

    def draw(self, generator: np.random.Generator) -> Any:
        """One value at random."""
        if self.values is not None:
            return self.values[int(generator.integers(len(self.values)))]
        if self.kind == "randint":
            return int(generator.integers(int(self.low), int(self.high), endpoint=True))
        if self.kind == "loguniform":
            drawn = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
            return min(max(drawn, self.low), self.high)
        return float(generator.uniform(self.low, self.high))


def parse_space(space: Mapping[str, Any]) -> dict[str, Domain]:
    """The domains of a space: key with dots -> domain.

    Raises:
        ValueError: one is invalid; the message names its key and says what to do.
    """
    return {str(key): _domain(f"space.{key}", value) for key, value in space.items()}


def _domain(name: str, value: Any) -> Domain:
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ValueError(f"{name} should be one of {_forms()}, got {value!r}")
    ((kind, given),) = value.items()
    if kind not in KINDS:
        raise ValueError(f"{name}: unknown kind {kind!r}; {did_you_mean(str(kind), KINDS) or 'use one of ' + _forms()}")
    if not isinstance(given, list | tuple):
        raise ValueError(f"{name}: {kind} takes a list, got {given!r}")
    if kind in ("grid", "choice"):
        if not given:
            raise ValueError(f"{name}: {kind} lists no value; give at least one")
        if twice := [item for k, item in enumerate(given) if item in given[:k] and same_type(item, given[:k])]:
            raise ValueError(f"{name}: {twice[0]!r} is listed twice; keep one of the two")
        return Domain(kind=kind, values=tuple(given))
    if len(given) != 2 or any(isinstance(end, bool) or not isinstance(end, int | float) for end in given):
        raise ValueError(f"{name}: {kind} takes [low, high], got {given!r}")
    low, high = given
    if not low < high or math.inf in (-low, high):
        raise ValueError(f"{name}: {kind} takes a low end below the high end, got {given!r}")
    if max(-low, high) > _FARTHEST[kind]:
        raise ValueError(f"{name}: {kind} takes ends up to {_FARTHEST[kind]:.3g} in size, got {given!r}")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"{name}: loguniform takes ends above 0, got {given!r}; use uniform")
    if kind == "randint" and not (isinstance(low, int) and isinstance(high, int)):
        raise ValueError(f"{name}: randint takes whole numbers, got {given!r}; use uniform")
    return Domain(kind=kind, low=low, high=high)


def same_type(item: Any, others: Any) -> bool:
    """Whether an equal item of the same type is among the others: True and 1 are two values."""
    return any(item == other and type(item) is type(other) for other in others)


def _forms() -> str:
    return "{grid: [...]}, {choice: [...]}, {uniform: [low, high]}, {loguniform: [low, high]}, {randint: [low, high]}"


def points(
    domains: Mapping[str, Domain], search: Literal["grid", "random"], samples: int, generator: np.random.Generator
) -> list[dict[str, Any]]:
    """The points of a search, key -> value, in the order in which they are tried.

    Args:
        search: grid: every combination of the listed values. random: every combination of the `grid` values, each with
            `samples` draws of the other keys; without other keys, every combination once.
    """
    all_of = ("grid", "choice") if search == "grid" else ("grid",)
    whole = [key for key, domain in domains.items() if domain.kind in all_of]
    drawn = [key for key in domains if key not in whole]
    found = []
    for _ in range(samples if drawn else 1):
        for combination in itertools.product(*(domains[key].values or () for key in whole)):
            fixed = dict(zip(whole, combination, strict=True))
            found.append({key: fixed[key] if key in fixed else domains[key].draw(generator) for key in domains})
    return found


def flatten(
    data: Mapping[str, Any], until: Callable[[Any], bool] = lambda value: False, prefix: str = ""
) -> dict[str, Any]:
    """A mapping of mappings as key with dots -> value.

    Args:
        until: says which mappings are values themselves. Empty ones always are.
    """
    found: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and not until(value):
            found |= flatten(value, until, f"{name}.")
        else:
            found[name] = value
    return found


def nested(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The mapping with keys with dots taken apart: {"a.b": 1} becomes {"a": {"b": 1}}.

    Raises:
        ConfigError: a key is given twice, or is a part of another one.
    """
    found: dict[str, Any] = {}
    for key, value in data.items():
        *path, last = str(key).split(".")
        section = found
        for name in path:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{where}: {key} is part of another key there; keep one of the two")
        inner = nested(value, where) if isinstance(value, Mapping) else value
        if last in section:
            if not (isinstance(inner, dict) and isinstance(section[last], dict)) or set(inner) & set(section[last]):
                raise ConfigError(f"{where}: {key} is given twice; keep one of the two")
            section[last] |= inner
        else:
            section[last] = inner
    return found
