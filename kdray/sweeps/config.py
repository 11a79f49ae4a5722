"""The file of a sweep: a base config, what is changed in it for all trials, the space, and how it is searched."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from kdray.config.files import read_yaml
from kdray.config.load import apply_overrides, parse_config, parse_section
from kdray.config.root import Config
from kdray.errors import ConfigError
from kdray.sections.base import Section, did_you_mean
from kdray.sweeps.results import METRICS, Mode
from kdray.sweeps.space import Domain, flatten, nested, parse_space, same_type

FIXED = {
    "seed": "every trial has the seeds that sweep.seeds says",
    "ledger": "all trials share the ledger of the sweep",
    "test": "figures of different test images cannot be compared",
    "budget.evaluation": "figures of different test images cannot be compared",
    "resources.scoring_workers": "sweep.resources.scoring_workers says it for all trials",
    "resources.scoring_gpus": "sweep.resources.scoring_gpus says it for all trials",
    "resources.trainer.workers": "each trial trains its students in its own process",
}
"""Keys that no space may have, and why."""


class SweepBudget(Section):
    """The limit on queries of all trials together."""

    resumable_fields: ClassVar[tuple[str, ...]] = ("queries",)

    queries: Annotated[int, Field(ge=1)] | None = None
    """Hard cap on the training queries of all trials together, in addition to the `budget.queries` of each run. null
    sets no cap. A trial that meets the cap fails, and goes on when the sweep is resumed with a higher one."""


class TrialResources(Section):
    """The resources of one trial. All its processes are in one placement group of this size."""

    resumable_fields: ClassVar[tuple[str, ...]] = ("cpus", "gpus", "scoring_workers", "scoring_gpus", "trials", "wait")

    cpus: Annotated[int, Field(ge=1)] = 1
    """CPUs of a trial's own process, which trains the student."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of that process; may be a fraction."""
    scoring_workers: Annotated[int, Field(ge=0)] = 0
    """Scoring workers of a trial, one CPU each. With 0 the trial's own process scores too."""
    scoring_gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of each scoring worker; may be a fraction."""
    trials: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Most trials at once; auto: as many as fit into the cluster."""
    wait: bool = False
    """Whether to wait for the cluster to grow if a trial does not fit into it as it is. false refuses the sweep."""

    def bundles(self) -> list[dict[str, float]]:
        """The bundles of a trial's placement group: its own process first, then each scoring worker."""
        own = {"CPU": float(self.cpus)} | ({"GPU": self.gpus} if self.gpus else {})
        worker = {"CPU": 1.0} | ({"GPU": self.scoring_gpus} if self.scoring_gpus else {})
        return [own] + [dict(worker) for _ in range(self.scoring_workers)]


class SweepSection(Section):
    """How the space is searched, and what it may cost."""

    metric: str = "student_accuracy"
    """The figure that is compared, one of a round's metrics."""
    mode: Literal["auto", "max", "min"] = "auto"
    """Whether a higher or a lower figure is better; auto: a lower `loss`, a higher figure of all others."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """Runs of each trial, with the seeds `seed`, `seed` + 1, ... of the base config. A trial's figure is their mean."""
    search: Literal["auto", "grid", "random", "optuna"] = "auto"
    """grid: every combination of the listed values. random: every combination of the values of `grid` keys, each with
    `samples` draws of the others. optuna: `samples` trials that Optuna's TPE proposes. auto: grid if all keys are
    `grid`, else random."""
    samples: Annotated[int, Field(ge=1)] = 10
    """Draws of a random search, or trials of Optuna."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The seed of the draws."""
    scheduler: Literal["none", "asha"] = "none"
    """asha: stop a trial after a round in which it is not among the best (Li et al., A System for Massively Parallel
    Hyperparameter Tuning). none: every trial makes all its rounds."""
    grace_rounds: Annotated[int, Field(ge=1)] = 1
    """Rounds that asha lets every trial make, without round 0."""
    reduction: Annotated[float, Field(gt=1)] = 3
    """At each of its levels asha lets the best 1/`reduction` of the trials go on; the levels are `grace_rounds` times
    powers of this number."""
    budget: SweepBudget = SweepBudget()
    """The limit on queries of all trials together."""
    resources: TrialResources = TrialResources()
    """The resources of one trial."""

    @property
    def best(self) -> Mode:
        """The mode, with `auto` decided."""
        if self.mode == "auto":
            return "min" if self.metric == "loss" else "max"
        return self.mode

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        if value not in METRICS:
            hint = did_you_mean(value, METRICS) or f"known are {', '.join(METRICS)}"
            raise ValueError(f"no trial reports {value!r}; {hint}")
        return value


class SweepConfig(Section):
    """A sweep: many runs of one config with some fields changed, on one ledger."""

    base: dict[str, Any]
    """The config that all trials share. In a file also the path of a config."""
    space: dict[str, Any]
    """The fields that differ: key with dots -> `{grid: [...]}`, `{choice: [...]}`, `{uniform: [low, high]}`,
    `{loguniform: [low, high]}` or `{randint: [low, high]}` (both ends included)."""
    sweep: SweepSection = SweepSection()
    """How the space is searched, and what it may cost."""

    @model_validator(mode="after")
    def _space_is_one(self) -> "SweepConfig":
        domains = parse_space(self.space)
        for key in domains:
            for fixed, reason in FIXED.items():
                if key == fixed or key.startswith(f"{fixed}.") or fixed.startswith(f"{key}."):
                    raise ValueError(f"space.{key} is fixed in a sweep: {reason}; take it out of the space")
        ranges = [key for key, domain in domains.items() if domain.values is None]
        if self.sweep.search == "grid" and ranges:
            raise ValueError(
                f"space.{ranges[0]} is a range, which has no grid; list values, or set sweep.search to random"
            )
        return self

    @property
    def domains(self) -> dict[str, Domain]:
        """The space: key with dots -> domain."""
        return parse_space(self.space)

    @property
    def search(self) -> Literal["grid", "random", "optuna"]:
        """The search, with `auto` decided."""
        if self.sweep.search != "auto":
            return self.sweep.search
        return "grid" if all(domain.kind == "grid" for domain in self.domains.values()) else "random"

    def config_of(self, values: Mapping[str, Any]) -> Config:
        """The config of a trial: the base with some fields set.

        Args:
            values: key with dots -> value.

        Raises:
            ConfigError: it is none.
        """
        config = parse_config(with_values(self.base, values), origin="the trial " + in_words(values))
        workers = config.resources.trainer.workers
        if workers > 1:
            raise ConfigError(
                f"base.resources.trainer.workers is {workers}, but each trial of a sweep trains its students in its "
                "own process; set it to 1"
            )
        return config


def with_values(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the mapping `base` with some fields set."""
    data = dict(base)
    for key, value in values.items():
        *path, last = key.split(".")
        section = data
        for name in path:
            below = section.get(name)
            section[name] = dict(below) if isinstance(below, Mapping) else {}
            section = section[name]
        section[last] = value
    return data


def in_words(values: Mapping[str, Any]) -> str:
    """Values as "key=value, key=value"."""
    return ", ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()
    )


def load_sweep(path: str | Path, overrides: Iterable[str] = ()) -> SweepConfig:
    """Read the file of a sweep and apply `key.sub=value` overrides; see `parse_sweep`."""
    return parse_sweep(read_yaml(path), overrides, origin=str(path))


def parse_sweep(data: Any, overrides: Iterable[str] = (), *, origin: str = "sweep") -> SweepConfig:
    """Convert a mapping, as read from YAML, to the config of a sweep.

    Args:
        data: `base` is a mapping or the path of a config; fields of `change` are set in it. Keys in `change` and
            `space` may have dots.

    Raises:
        ConfigError: the message names every invalid field.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{origin}: expected a mapping with base, space and sweep, got {type(data).__name__}")
    data = dict(data)
    for name in ("change", "space"):
        if not isinstance(data.get(name, {}) or {}, Mapping):
            raise ConfigError(f"{origin}: {name} should be a mapping of keys, got {data[name]!r}")
        data[name] = nested(data.get(name) or {}, f"{origin}: {name}")
    data = apply_overrides(data, overrides)
    base, change = data.get("base"), flatten(data.pop("change"))
    if isinstance(base, str):
        base = read_yaml(base)
    if not isinstance(base, Mapping):
        raise ConfigError(f"{origin}: base should be the path of a config, or a config, got {base!r}")
    swept = flatten(data["space"], until=lambda value: not all(isinstance(part, Mapping) for part in value.values()))
    if twice := sorted(set(change) & set(swept)):
        raise ConfigError(f"{origin}: {twice[0]} is in change and in space; keep one of the two")
    return parse_section(SweepConfig, {**data, "base": with_values(base, change), "space": swept}, origin=origin)


def dump_sweep(config: SweepConfig) -> str:
    """The whole sweep as YAML, including defaults."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


def with_absolute_paths(config: SweepConfig, *examples: Config) -> SweepConfig:
    """The sweep with absolute paths in its base and its space, so that trials read the same files wherever they run.

    Args:
        examples: configs of trials, which say which fields hold paths.
    """
    fixed = {
        key: path for example in examples for key, path in _paths(example).items() if not _swept(key, config.space)
    }
    base = {name: _located(name, value, fixed, os.curdir) for name, value in config.base.items()}
    space = {}
    for key, domain in config.domains.items():
        space[key] = dict(config.space[key])
        if domain.values is not None:
            values: list[Any] = []
            for value in (_absolute(key, value, examples) for value in domain.values):
                if not same_type(value, values):  # two spellings of one path
                    values.append(value)
            space[key] = {domain.kind: values}
    return config.model_copy(update={"base": base, "space": space})


def with_absolute_values(config: SweepConfig, values: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The values of a trial with absolute paths; as they are if they give no valid config.

    Args:
        folder: that relative paths start from.
    """
    try:
        paths = _paths(config.config_of(values))
    except ConfigError:
        return dict(values)
    return {key: _located(key, value, paths, folder) for key, value in values.items()}


def _swept(key: str, space: Mapping[str, Any]) -> bool:
    """Whether a space sets a key, or a section that it is in."""
    return any(key == swept or key.startswith(f"{swept}.") for swept in space)


def _absolute(key: str, value: Any, examples: Iterable[Config]) -> Any:
    """A value of a key with the paths in it absolute, if any of these configs is valid with it."""
    if _holds_text(value):
        for example in examples:
            try:
                with_it = parse_config(with_values(example.model_dump(mode="json"), {key: value}))
            except ConfigError:
                continue
            return _located(key, value, _paths(with_it), os.curdir)
    return value


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_text, value.values()))
    return isinstance(value, str) or (isinstance(value, list) and any(map(_holds_text, value)))


def _located(key: str, value: Any, paths: Mapping[str, str], folder: str) -> Any:
    """A value with those of `paths` in it that are relative to `folder` absolute."""
    if isinstance(value, Mapping):
        return {name: _located(f"{key}.{name}", part, paths, folder) for name, part in value.items()}
    if isinstance(value, list):
        return [_located(f"{key}.{number}", part, paths, folder) for number, part in enumerate(value)]
    return os.path.abspath(os.path.join(folder, paths[key])) if key in paths else value


def _paths(section: Section, prefix: str = "") -> dict[str, str]:
    """Fields that hold a path, of a section and those below: key with dots, and numbers in a list -> path."""
    found: dict[str, str] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        inner = {name: value} | ({f"{name}.{k}": one for k, one in enumerate(value)} if isinstance(value, list) else {})
        for key, one in inner.items():
            if isinstance(one, Section):
                found |= _paths(one, f"{prefix}{key}.")
        if name in section.path_fields and value:
            found[f"{prefix}{name}"] = value
    return found
