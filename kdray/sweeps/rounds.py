"""The most rounds that any trial of a sweep can have, where not all of its trials are known: ASHA needs it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdray.config.root import Config
from kdray.errors import ConfigError
from kdray.pools.base import PoolSection
from kdray.select.base import Strategy
from kdray.sweeps.config import SweepConfig

_MATTER = ("budget", "select", "pool", "images", "labelled", "student")


def most_rounds(config: SweepConfig, points: Sequence[Mapping[str, Any]], known: int) -> int:
    """A number of rounds, without round 0, that no trial with values of the space has more of.

    How many rounds a run has follows from its budget, its schedule, its images and its pool. Every value that is listed
    and both ends of every range are looked at; of values that do not go together the larger number counts.

    Args:
        points: values of some trials.
        known: most rounds of these; that is all where the space sets nothing that rounds depend on.
    """
    if not any(key.partition(".")[0] in _MATTER for key in config.space):
        return known
    configs = list(_configs(config, points))
    budget = max([found.budget.queries for found in configs] + _numbers(config, "budget.queries"))
    ends = _numbers(config, "select.rounds")
    rounds = max(_chosen(found.select, budget, ends) for found in configs)
    for schedule in _listed(config, "select.schedule"):
        rounds = max(rounds, _scheduled(schedule, budget, ends))
    rounds += any(type(found.pool).trial is not PoolSection.trial for found in configs)
    rounds += any(found.student.labels != "reuse" for found in configs)
    return max(known, min(rounds, budget))  # a round asks at least once


def _chosen(select: Strategy, budget: int, ends: list[int]) -> int:
    """Most rounds that a strategy chooses in."""
    if type(select).queries is not Strategy.queries:  # a user's own may divide the budget in any way
        return budget
    return _scheduled(select.schedule, budget, [*ends, select.rounds or 0])


def _scheduled(schedule: Any, budget: int, rounds: list[int]) -> int:
    if schedule == "nested":  # the queries in all double, from one on
        return math.ceil(math.log2(budget)) if budget > 1 else 0
    return len(schedule) + 1 if isinstance(schedule, list | tuple) else max(rounds, default=0)


def _configs(config: SweepConfig, points: Sequence[Mapping[str, Any]]) -> Iterator[Config]:
    """The configs of some points, and for each value of the space one with it, if any is valid."""
    for point in points:
        yield config.config_of(point)
    for key, domain in config.domains.items():
        for value in domain.values if domain.values is not None else (domain.low, domain.high):
            for point in points:
                try:
                    yield config.config_of({**point, key: value})
                    break
                except ConfigError:
                    continue


def _numbers(config: SweepConfig, key: str) -> list[int]:
    """The whole numbers that a key of the space may have: the listed ones, or the ends of its range."""
    domain = config.domains.get(key)
    if domain is None:
        return []
    given = domain.values if domain.values is not None else (domain.low, domain.high)
    return [math.ceil(value) for value in given if isinstance(value, int | float) and not isinstance(value, bool)]


def _listed(config: SweepConfig, key: str) -> Sequence[Any]:
    domain = config.domains.get(key)
    return () if domain is None else domain.values or ()
