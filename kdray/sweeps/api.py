"""Sweeps from Python: `kdray.sweep`, and `kdray.trainable` for a `tune.Tuner` of your own."""

import atexit
import os
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kdray.errors import ConfigError
from kdray.sweeps.config import SweepConfig, load_sweep, parse_sweep, with_absolute_paths
from kdray.sweeps.display import make_sweep_display
from kdray.sweeps.folder import SweepFolder, choose_folder
from kdray.sweeps.outcome import SweepResult
from kdray.sweeps.sweep import open_ledger, write_config
from kdray.sweeps.sweep import sweep as run_sweep
from kdray.sweeps.trial import TrialPlan, TrialRuns

Source = str | os.PathLike[str] | Mapping[str, Any]


def sweep(
    source: str | os.PathLike[str] | None = None,
    *,
    base: Source | None = None,
    space: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> SweepResult:
    """Run many trials of one config with some fields changed, on Ray Tune, with one ledger and one cap for all.

    Args:
        source: the file of a sweep, as for `kdray sweep`. None: `base` and `space` say what it would.
        base: the config that all trials share, a path or a mapping. A teacher that is a function is named as
            `module:function`: trials run in other processes.
        space: key with dots -> `{"grid": [...]}`, `{"choice": [...]}`, `{"uniform": [low, high]}`, `{"loguniform":
            [low, high]}` or `{"randint": [low, high]}`.
        out: folder of the sweep. None takes runs/NAME of a file NAME.yaml, or runs/sweep.
        resume: go on with the sweep in `out`, or start it there. With nothing but `out`, go on with it as it is.
        progress: show progress on standard error.
        options: fields of the section `sweep`: `metric`, `mode`, `seeds`, `search`, `samples`, `scheduler`,
            `budget={"queries": N}`, `resources={...}`, ...

    Returns:
        The result: `trials` with their figures, `best`, `failed`, `directory`. `best.yaml` there is a ready config.

    Raises:
        KdrayError: see `kdray.sweeps.sweep.sweep`.
    """
    if source is not None and (base is not None or space is not None or options):
        raise ConfigError("give the file of a sweep, or base, space and options; not both")
    config: SweepConfig | None = None
    if source is not None:
        config = load_sweep(Path(source))
    elif base is not None:
        config = parse_sweep(_mapping(base, space or {}, options), origin="kdray.sweep")
    elif not (resume and out is not None):
        raise ConfigError("give the file of a sweep, or base and space; or out with resume=True")
    folder = SweepFolder(out) if out is not None else choose_folder(Path(source).stem if source else "sweep")
    return run_sweep(config, folder, resume=resume, display=make_sweep_display() if progress else None)


def trainable(base: Source, *, out: str | os.PathLike[str], queries: int | None = None, **options: Any) -> "type[Any]":
    """A `ray.tune.Trainable` for a `tune.Tuner` of your own. Ray must be connected.

    A trial's config holds the fields that differ, key with dots -> value. A step is one round of each seed; it reports
    `round`, the mean of each figure (`student_accuracy`, ...), `asked`, `bought`, `saved` and `done`. All trials share
    one ledger. The state of a trial is its folder in `out`: a trial that is started again goes on from there, so Tune
    needs no checkpoint of it.

    Args:
        base: the config that all trials share, a path or a mapping.
        out: a folder that all nodes see. The same folder again goes on with its ledger and its trials.
        queries: hard cap on the training queries of all trials together; None sets none.
        options: `seeds`, and `resources={"scoring_workers": ..., ...}`, as in the section `sweep`. Use
            `tune.with_resources` with a placement group of the same size.

    Raises:
        KdrayError: the base is no config, or the folder cannot be used.
    """
    from actors.ledger import NamedLedger, RayLedger
    from actors.tuning import make_trainable

    options |= {"budget": {"queries": queries}}
    config = parse_sweep(_mapping(base, {}, options), origin="kdray.trainable")
    config = with_absolute_paths(config, config.config_of({}))
    folder = SweepFolder(out)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    ledger = open_ledger(RayLedger, folder, queries, folder.identity())
    atexit.register(ledger.close)  # until then the ledger's actor stays for the trials
    plan = TrialPlan(
        folder=folder.path,
        identity=folder.identity(),
        config=config,
        open_ledger=partial(NamedLedger, folder.identity(), str(folder.ledger)),
        secrets=config.config_of({}).teacher.read_secrets(),
        cwd=os.getcwd(),
        session=uuid.uuid4().hex,
    )
    return make_trainable(partial(TrialRuns, plan))


def _mapping(base: Source, space: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    return {"base": base if isinstance(base, Mapping) else os.fspath(base), "space": space, "sweep": dict(options)}
