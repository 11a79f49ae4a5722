"""What is found out about a sweep before anything is paid: its points, and whether each of them can run."""

import json
from dataclasses import dataclass, field
from typing import Any

from kdray.config.root import Config
from kdray.errors import ConfigError, KdrayError, SweepError
from kdray.images.base import ImageSet
from kdray.runs.evaluation import queries_allowed
from kdray.runs.inputs import Data, InMemoryInputs, read_data, resolve
from kdray.sweeps.config import SweepConfig, in_words, with_absolute_paths
from kdray.sweeps.folder import trial_name
from kdray.sweeps.rounds import most_rounds
from kdray.sweeps.space import points
from kdray.utils.seeds import numpy_generator
from kdray.utils.text import counted

_TRIED = 20  # random points that are checked where Optuna will propose them
_REDRAWN = 50  # draws for each point of a random search, of which one must be valid


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a sweep will do.

    Attributes:
        points: the values of each trial; of Optuna's, some examples.
        trials: how many there will be.
        configs: of the points.
        queries: of each run of a point, over all its rounds.
        rounds: most rounds of any point, without round 0; of Optuna's, of any that it may propose.
        first: least queries of a round 0.
    """

    points: list[dict[str, Any]]
    trials: int
    configs: list[Config]
    queries: list[int]
    rounds: int
    first: int


@dataclass
class _Reader:
    """Reads and checks the data of configs; image sets that several of them name are read once."""

    _sets: dict[str, ImageSet] = field(default_factory=dict)

    def read(self, config: Config) -> Data:
        config = resolve(config)
        keys = {
            name: json.dumps([config.seed, section.model_dump(mode="json")])
            for name in ("images", "labelled", "validation", "test")
            if (section := getattr(config, name)) is not None
        }
        known: dict[str, Any] = {name: self._sets.get(f"{name} {key}") for name, key in keys.items()}
        data = read_data(config, InMemoryInputs(**known), ledger_here=False)
        sets = {"labelled": data.labelled, "validation": data.validation, "test": data.test}
        for name, found in (sets | {"images": data.pooled.images}).items():
            if name in keys and found is not None:
                self._sets.setdefault(f"{name} {keys[name]}", found)
        return data


def located(config: SweepConfig) -> SweepConfig:
    """The sweep with absolute paths.

    Raises:
        ConfigError: a point of it is no valid config.
    """
    return with_absolute_paths(config, *(config.config_of(values) for values in _draw(config)))


def look_ahead(config: SweepConfig) -> Outlook:
    """The points of a sweep, each checked as `kdray run` would check it.

    Raises:
        ConfigError: a key is unknown, a value invalid, or the metric is not measured.
        SweepError: the cap does not pay for round 0 of a trial.
        KdrayError: a point names images that cannot be read, or more queries than there are candidates.
    """
    if not config.space:
        raise ConfigError("space is empty; give at least one key, for example budget.queries: {grid: [500, 1000]}")
    found, configs, queries, first, rounds = [], [], [], [], 0
    reader = _Reader()
    for values in _draw(config):
        parsed = config.config_of(values)
        try:
            data = reader.read(parsed)
        except KdrayError as error:
            error.args = (f"the trial {in_words(values)}: {error}", *error.args[1:])
            raise
        check_metric(config.sweep.metric, parsed, data)
        found.append(values)
        configs.append(parsed)
        queries.append(sum(data.pooled.schedule) + data.pooled.estimate)
        first.append(data.pooled.schedule[0])
        rounds = max(rounds, len(data.pooled.schedule) - 1)
    if config.search == "optuna":  # it may propose other values than these examples
        rounds = most_rounds(config, found, rounds)
    cap = config.sweep.budget.queries
    if cap is not None and cap < min(first):
        raise SweepError(
            f"sweep.budget.queries: {cap:,} queries do not pay for round 0 of one trial, which asks for "
            f"{min(first):,}; raise it"
        )
    if config.sweep.scheduler == "asha" and config.sweep.grace_rounds >= rounds:
        raise ConfigError(
            f"sweep.grace_rounds: {config.sweep.grace_rounds} of {rounds} rounds leave asha nothing to stop; lower it, "
            "raise select.rounds, or set sweep.scheduler to none"
        )
    trials = config.sweep.samples if config.search == "optuna" else len(found)
    return Outlook(points=found, trials=trials, configs=configs, queries=queries, rounds=rounds, first=min(first))


def _draw(config: SweepConfig) -> list[dict[str, Any]]:
    """The points of a sweep, each once: two that give the same config are one. For Optuna, some random points.

    Of a random search, a draw that is no valid config is replaced by another; so λ min and λ max can both be ranges.

    Raises:
        ConfigError: a point of a grid, or every draw of a random one, is no valid config.
    """
    domains, samples = config.domains, config.sweep.samples
    generator = numpy_generator(config.sweep.seed, "sweep")
    if config.search == "grid":
        return _once(config, points(domains, "grid", 1, generator))
    wanted = _TRIED if config.search == "optuna" else samples
    drawn: list[dict[str, Any]] = []
    for _ in range(wanted):
        for attempt in range(_REDRAWN):
            try:
                part = points(domains, "random", 1, generator)
                for values in part:
                    config.config_of(values)
                drawn += part
                break
            except ConfigError:
                if attempt == _REDRAWN - 1:
                    raise
        if all(domain.kind == "grid" for domain in domains.values()):
            break
    return _once(config, drawn)


def _once(config: SweepConfig, drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for values in drawn:
        found.setdefault(config.config_of(values).model_dump_json(), values)
    return list({trial_name(values): values for values in found.values()}.values())


def check_metric(metric: str, config: Config, data: Data) -> None:
    """Refuse a metric that the runs of a config do not measure.

    Raises:
        ConfigError: so it is; the message says what would be measured.
    """
    if metric not in _OF_TEST:
        return
    test = data.test
    if test is None:
        raise ConfigError(f"sweep.metric: {metric} is not measured, because the base config has no test set; add test")
    free = config.teacher.local or getattr(config.teacher, "metered", True) is False
    asked = queries_allowed(config.budget.evaluation, len(test), metered=not free)
    if test.labels is None and metric != "agreement" and not metric.startswith("agreement_"):
        raise ConfigError(f"sweep.metric: {metric} is not measured, because test has no labels; use agreement")
    if metric != "student_accuracy" and not asked:
        raise ConfigError(
            f"sweep.metric: {metric} is not measured, because budget.evaluation allows no queries on test images; set "
            "it to a number of queries, or use student_accuracy"
        )


_OF_TEST = {"student_accuracy", "teacher_accuracy", "success_rate", "agreement", "agreement_low", "agreement_high"}


def outlook_lines(config: SweepConfig, outlook: Outlook) -> list[tuple[str, str]]:
    """What a sweep will do as (what, value) rows."""
    seeds, cap = config.sweep.seeds, config.sweep.budget.queries
    share = outlook.trials / len(outlook.queries)  # of Optuna's trials only examples are known
    asked = round(share * sum(outlook.queries)) * seeds
    bought = asked if cap is None else min(asked, cap)
    price, currency = outlook.configs[0].budget.price_per_query, outlook.configs[0].budget.currency
    cost = f"at most {bought * (price or 0.0):,.2f} {currency}"
    about = "about " if config.search == "optuna" else ""
    told = f"{about}{asked:,} asked by all trials" + ("; no cap" if cap is None else f"; cap {cap:,}")
    return [
        ("trials", f"{outlook.trials:,} ({config.search}), {counted(seeds, 'seed')} each"),
        ("rounds", f"up to {outlook.rounds} after round 0"),
        ("queries", f"{told}; what one trial buys the others have for nothing"),
        ("cost", "unknown: set budget.price_per_query" if price is None else cost),
        ("a trial", "kdray plan with its config: pool, scoring and memory"),
    ]
