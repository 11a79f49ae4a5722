"""Sweeps on Ray Tune: each trial is a Tune trial, whose state is on disk in its own folder.

Tune decides what runs when, keeps the searcher and restarts trials that died. It holds no checkpoint: a trial that is
started again reports the rounds it finds on disk and goes on. The state of ASHA, which Tune does not restore, is kept
beside, and so is why a trial failed.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import ray.util.client
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from kdray.errors import Halted, KdrayError, SweepError

_DEATHS = 8  # of a trial's process, in one session, before the trial counts as failed
_POINT = "values"
_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class TrialLike(Protocol):
    """What runs in a trial's process; see `kdray.sweeps.trial.TrialRuns`."""

    def step(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Watch(Protocol):
    """The sweep, as Tune's driver sees it."""

    def reported(self, values: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """A trial has finished a round."""

    def ended(self, values: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """A trial ends after this report, its last or one after which the scheduler stops it."""

    def failed(self, values: Mapping[str, Any], reason: str, *, final: bool) -> bool:
        """A trial has ended with an error; `final`: Tune does not start it again. Returns whether the trial itself
        failed, and did not lose its process."""

    def tick(self) -> None:
        """Called about once a second. Raises `Halted` to stop the sweep."""


@dataclass(frozen=True, kw_only=True)
class TuneJob:
    """A sweep, for Tune.

    Attributes:
        open_trial: makes a trial of its values, in the trial's process.
        points: the values of each trial, for a grid or a random search.
        space: key -> (kind, values or (low, high)), for Optuna.
        samples, seed: of Optuna.
        metric, mode: what is compared.
        bundles: of a trial's placement group.
        trials: most trials at once, or None.
        asha: (grace rounds, reduction, last round), or None for no scheduler.
        folder: for Tune's own files.
        scheduler_file: keeps the state of ASHA.
    """

    open_trial: Callable[[Mapping[str, Any]], TrialLike]
    points: Sequence[Mapping[str, Any]] | None
    space: Mapping[str, tuple[str, Sequence[Any]]]
    samples: int
    seed: int
    metric: str
    mode: str
    bundles: list[dict[str, float]]
    trials: int | None
    asha: tuple[int, float, int] | None
    folder: Path
    scheduler_file: Path


def make_trainable(open_trial: Callable[[Mapping[str, Any]], TrialLike]) -> type[tune.Trainable]:
    """A class for `tune.Tuner`. Its config is {"values": {key with dots: value}}, or those values themselves."""

    class KdrayTrial(tune.Trainable):
        """One round of a trial is one step."""

        def setup(self, config: dict[str, Any]) -> None:
            """The first step opens the trial: an error in `setup` would be reported as a process that died."""
            self._runs: TrialLike | None = None
            self._values = config.get(_POINT, config)

        def step(self) -> dict[str, Any]:
            """The next round."""
            if self._runs is None:
                self._runs = open_trial(self._values)
            try:
                return self._runs.step()
            except Halted:  # no failure, and Ray would print its traceback: the driver ends this process at once
                return {"halted": True, "done": False}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            """A reference: the state of a trial is its folder, which its values name."""
            return {"values": self._values}

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            """Nothing is to be loaded: the first step finds the folder."""

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """Take another trial in the same process, which has imported torch."""
            self.cleanup()
            self.setup(new_config)
            return True

        def cleanup(self) -> None:
            """End the workers."""
            if self._runs is not None:
                self._runs.close()
            self._runs = None

    return KdrayTrial


class RoundsASHA(ASHAScheduler):
    """ASHA over rounds. It writes its state after each result and reads it at the start: Tune restores none of it."""

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Called when the sweep starts or is resumed."""
        known: bool = super().set_search_properties(metric, mode, **spec)
        path = _session().job.scheduler_file
        if path.exists():
            self.restore(str(path))
        return known

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on. The decision is on disk before it is carried out."""
        action: str = super().on_trial_result(tune_controller, trial, result)
        path = _session().job.scheduler_file
        temporary = path.with_suffix(".tmp")
        self.save(str(temporary))
        os.replace(temporary, path)
        return action


class _Follower(tune.Callback):
    """Passes what happens on to the session's watch. It has no state: Tune pickles it."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if not result.get("halted"):
            _session().watch.reported(trial.config[_POINT], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _session().watch.ended(trial.config[_POINT], trial.last_result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        _session().watch.failed(trial.config[_POINT], _reason(trial), final=True)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Tune starts a trial again after any error. After one of kdray's own, it must not: it would fail again, and
        # might pay for it. The trial refuses to start, and that failure is its last.
        if _session().watch.failed(trial.config[_POINT], _reason(trial), final=False):
            trial.max_failures = 0

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        session = _session()
        for trial in trials:
            if trial.trial_id not in session.seen:  # of an earlier session: its deaths do not count here
                session.seen.add(trial.trial_id)
                trial.max_failures, trial.run_metadata.num_failures = _DEATHS, 0

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        _session().watch.tick()


class _Session:
    """The sweep that this process drives."""

    def __init__(self, job: TuneJob, watch: Watch) -> None:
        self.job, self.watch = job, watch
        self.seen: set[str] = set()


_SESSIONS: list[_Session] = []


def _session() -> _Session:
    return _SESSIONS[-1]


def _reason(trial: Any) -> str:
    """Why a trial's process ended, in one line."""
    error = trial.get_pickled_error()
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, KdrayError):
        return str(cause)
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"{type(cause).__name__}: {cause}"
    return "its process died" + (f": {str(error).strip().splitlines()[0]}" if error else "")


def run_trials(job: TuneJob, watch: Watch, *, resume: bool) -> None:
    """Run all trials of a sweep, or those that are left.

    Raises:
        Halted: `watch.tick` has stopped it.
        SweepError: Tune failed.
    """
    trainable = tune.with_resources(make_trainable(job.open_trial), tune.PlacementGroupFactory(job.bundles))
    with _tune_environment(), _driving(job, watch):
        if resume and tune.Tuner.can_restore(str(job.folder)):
            tuner = tune.Tuner.restore(
                str(job.folder), trainable=trainable, resume_unfinished=True, resume_errored=True
            )
        else:
            tuner = _new_tuner(job, trainable)
        try:
            tuner.fit()
        except Halted:
            raise
        except Exception as error:  # Tune's own
            if isinstance(cause := error.__cause__ or error, Halted):
                raise cause from None
            raise SweepError(f"Ray Tune failed: {type(cause).__name__}: {cause}") from error


def _new_tuner(job: TuneJob, trainable: Any) -> tune.Tuner:
    search, space, samples = None, {}, 1
    if job.points is not None:
        space = {_POINT: tune.grid_search([dict(point) for point in job.points])}
    else:
        search, samples = _optuna(job), job.samples
        space = {_POINT: {key: _domain(kind, given) for key, (kind, given) in job.space.items()}}
    scheduler: TrialScheduler = FIFOScheduler()
    if job.asha is not None:
        grace, reduction, last = job.asha
        scheduler = RoundsASHA(
            time_attr="round", grace_period=grace, reduction_factor=reduction, max_t=max(last, grace)
        )
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=job.metric,
            mode=job.mode,
            num_samples=samples,
            search_alg=search,
            scheduler=scheduler,
            max_concurrent_trials=job.trials,
            reuse_actors=True,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=job.folder.name,
            storage_path=str(job.folder.parent),
            verbose=0,
            callbacks=[_Follower()],
            failure_config=tune.FailureConfig(max_failures=_DEATHS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )


def _folder_name(trial: Any) -> str:
    """Tune's own name of a trial would hold its values, as long as they are."""
    return str(trial.trial_id)


def check_driver() -> None:
    """Refuse to drive a sweep through Ray Client, where Tune's driver is another process than this one.

    Raises:
        SweepError: so it is.
    """
    if ray.util.client.ray.is_connected():
        raise SweepError(
            "a sweep cannot be driven over ray://; submit it as a job: "
            "ray job submit --working-dir . -- python -m kdray sweep ..."
        )


def check_optuna() -> None:
    """Refuse a search that needs it where it is not installed.

    Raises:
        SweepError: so it is.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise SweepError("sweep.search: optuna is not installed; pip install 'kdray[optuna]', or use random") from None


def _optuna(job: TuneJob) -> Any:
    """Optuna's TPE, seeded."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return OptunaSearch(seed=job.seed)


def _domain(kind: str, given: Sequence[Any]) -> Any:
    if kind in ("grid", "choice"):
        return tune.choice(list(given))
    low, high = given
    return tune.randint(low, high + 1) if kind == "randint" else getattr(tune, kind)(low, high)


@contextmanager
def _driving(job: TuneJob, watch: Watch) -> Iterator[None]:
    _SESSIONS.append(_Session(job, watch))
    try:
        yield
    finally:
        _SESSIONS.pop()


@contextmanager
def _tune_environment() -> Iterator[None]:
    """Tune without its own display, signal handler and log files."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
